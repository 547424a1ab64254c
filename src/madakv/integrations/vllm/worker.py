"""What is wrapped in vLLM's model runner: before, at and after each step, the evictor is told what goes on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import set_forward_context
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from madakv.errors import UnsupportedModelError
from madakv.hf.attention import norms_behind, projection_of
from madakv.hf.echo import most_echoed
from madakv.integrations.vllm.decoding import Span
from madakv.integrations.vllm.devices import on
from madakv.integrations.vllm.evictor import Evictor, LayerHow
from madakv.integrations.vllm.guards import check_layers
from madakv.integrations.vllm.layout import Layout
from madakv.integrations.vllm.pictures import embedded_pictures
from madakv.integrations.vllm.requests import Request, modality_of
from madakv.integrations.vllm.settings import Settings, first_kept_block
from madakv.integrations.vllm.spec import EvictedSpec
from madakv.integrations.vllm.wrapping import wrap
from madakv.scoring import OutputProjection

_EVICTOR = "_madakv_evictor"
_NO_WINDOW = (-1, (-1, -1))
"""As backends say it."""


class _Local(nn.Module):
    """A projection of vLLM, of the heads that this process has, without the sum over all processes."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module

    def forward(self, x: Tensor) -> Tensor:
        """What these heads add to the residual stream."""
        module: Any = self._module
        out: Tensor = module.quant_method.apply(module, x)
        return out


def wrap_runner() -> None:
    """Wrap the model runner's methods, once. Runners of which nobody asks for eviction do as before."""
    for wrapper in _WRAPPERS:
        wrap(GPUModelRunner, wrapper.__name__.removeprefix("_around_"), wrapper)


def _evictor(runner: Any) -> Evictor | None:
    return getattr(runner, _EVICTOR, None)


def _around_get_kv_cache_spec(runner: Any, original: Any) -> Any:
    """Layers that hold whole prompts get the spec that our manager serves."""
    specs = original()
    settings = Settings.of(runner.vllm_config.additional_config)
    if settings is None:
        return specs
    check_layers(sorted({type(spec).__name__ for spec in specs.values()}), FullAttentionSpec.__name__)
    return {name: EvictedSpec.around(spec, settings) for name, spec in specs.items()}


def _around_initialize_kv_cache(runner: Any, original: Any, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
    original(kv_cache_config, *args, **kwargs)
    # What is made to see how large CUDA graphs are is taken back.
    profiling = kwargs.get("is_profiling", args[0] if args else False)
    if profiling or Settings.of(runner.vllm_config.additional_config) is None:
        return
    groups = runner.kv_cache_config.kv_cache_groups
    check_layers([type(group.kv_cache_spec).__name__ for group in groups], EvictedSpec.__name__)
    context = runner.vllm_config.compilation_config.static_forward_context
    modules = dict(runner.get_model().named_modules())
    norms = norms_behind(runner.get_model())
    layers, hows = [], []
    for name in groups[0].layer_names:
        impl = context[name].impl
        parent = modules.get(name.rpartition(".")[0])
        if not hasattr(impl, "evictor") or impl.sliding_window not in _NO_WINDOW or impl.alibi_slopes is not None:
            raise UnsupportedModelError(f"madakv in vLLM: {name} does not attend to all before it, or has biases")
        projection = None if parent is None else projection_of(parent, norms)
        if projection is None or projection.is_normed:
            raise UnsupportedModelError(
                f"madakv in vLLM: {name} has no output projection of a known name, or a norm behind"
            )
        layers.append(context[name])
        hows.append(
            LayerHow(
                scaling=impl.scale,
                softcap=impl.logits_soft_cap or None,
                sinks=impl.sinks,
                projection=OutputProjection(_Local(projection.module)),
            )
        )
    evictor = Evictor(
        [layer.kv_cache for layer in layers],
        _learned(layers[0]),
        hows,
        functools.partial(most_echoed, config=runner.model_config.hf_config),
        tensor_model_parallel_all_reduce,
    )
    for number, layer in enumerate(layers):
        layer.impl.evictor, layer.impl.number = evictor, number
    setattr(runner, _EVICTOR, evictor)


def _learned(layer: Any) -> Layout:
    """How the engine writes."""

    def write(keys: Tensor, values: Tensor, cache: Tensor) -> None:
        slots = torch.arange(len(keys), device=cache.device)
        layer.impl.do_kv_cache_update(layer, keys, values, cache, slots)

    return Layout.learned(write, layer.kv_cache)


def _around_execute_model(runner: Any, original: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
    """Before a step: what the last one read is decided, whatever became of the blocks since."""
    evictor = _evictor(runner)
    if evictor is not None:
        with torch.inference_mode():
            evictor.finish(
                scheduler_output.finished_req_ids,
                scheduler_output.preempted_req_ids or (),
                functools.partial(_again, runner),
            )
    return original(scheduler_output, *args, **kwargs)


def _around__prepare_inputs(runner: Any, original: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
    prepared = original(scheduler_output, num_scheduled_tokens)
    evictor = _evictor(runner)
    if evictor is not None:
        evictor.begin(_spans(runner, evictor, num_scheduled_tokens.tolist()), runner.input_batch.num_reqs)
    return prepared


def _around__model_forward(runner: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return original(*args, **kwargs)
    finally:
        if (evictor := _evictor(runner)) is not None:
            evictor.step = None


def _spans(runner: Any, evictor: Evictor, scheduled: list[int]) -> Iterator[Span]:
    """The new tokens of requests that are evicted, or will be."""
    begin = 0
    batch = runner.input_batch
    for row, (name, tokens) in enumerate(zip(batch.req_ids, scheduled, strict=True)):
        if name not in evictor.requests:
            evictor.requests[name] = _request(runner, evictor, name)
        if (request := evictor.requests[name]) is not None:
            yield Span(request, row, begin, tokens, int(batch.num_computed_tokens_cpu[row]))
        begin += tokens


def _request(runner: Any, evictor: Evictor, name: str) -> Request | None:
    """What is evicted of a request; None if it stays whole."""
    settings, state = Settings.of(runner.vllm_config.additional_config), runner.requests[name]
    if settings is None or state.sampling_params is None:
        return None
    budget, prompt = settings.budget_of(state.sampling_params.extra_args), state.num_prompt_tokens
    first = first_kept_block(budget, prompt, evictor.block_size)
    if first == 0:
        return None
    return Request(
        prompt=prompt,
        first=first,
        method=settings.resolved(budget),
        modality=modality_of(prompt, state.mm_features),
        blocks=lambda: state.block_ids[0],
        block_size=evictor.block_size,
        device=runner.device,
    )


def _again(runner: Any, name: str, places: Tensor, behind: bool) -> None:
    """Run the model over tokens of a prompt once more, behind it or where they are."""
    state = runner.requests[name]
    ids = on(runner.device, torch.tensor(state.prompt_token_ids)[places].to(runner.input_ids.gpu.dtype))
    if behind:
        positions = torch.arange(len(ids)) + state.num_prompt_tokens + int(state.mrope_position_delta or 0)
        positions = positions.expand(3, -1) if runner.uses_mrope else positions
    else:
        positions = state.mrope_positions[:, places] if runner.uses_mrope else places
    embedded = embedded_pictures(runner, state, ids, places)
    # What was compiled takes for granted which inputs there are, and their strides; these are others.
    how = {"num_tokens": len(ids), "slot_mapping": {}, "skip_compiled": True}
    with set_forward_context(None, runner.vllm_config, **how):
        runner.model(
            input_ids=ids if embedded is None else None,
            positions=on(runner.device, positions),
            inputs_embeds=embedded,
        )


_WRAPPERS = (
    _around_get_kv_cache_spec,
    _around_initialize_kv_cache,
    _around_execute_model,
    _around__prepare_inputs,
    _around__model_forward,
)
"""Each is put around the method that it is named after."""
