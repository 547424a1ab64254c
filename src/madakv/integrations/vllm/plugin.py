"""The entry point: what is put in place in every process, and what is checked before a server starts.

As long as nobody asks for eviction, all of it does what vLLM does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from vllm import __version__
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.logger import init_logger
from vllm.multimodal.media import ImageMediaIO
from vllm.platforms import current_platform
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor

from madakv.errors import InputError, MadaKVError
from madakv.integrations.vllm.guards import BACKEND_OF, check_config, check_request, check_version
from madakv.integrations.vllm.metrics import Cache, Ledger
from madakv.integrations.vllm.serving import promise
from madakv.integrations.vllm.settings import Settings
from madakv.integrations.vllm.wrapping import wrap

BACKENDS = {
    AttentionBackendEnum.CPU_ATTN: "madakv.integrations.vllm.backend_cpu.EvictingCPUBackend",
    AttentionBackendEnum.TRITON_ATTN: "madakv.integrations.vllm.backend_triton.EvictingTritonBackend",
}
"""Ours, by whose place they take."""

_OURS = "_madakv"

# Only loggers below vLLM's are heard.
logger = init_logger(f"vllm.{__name__}")


class RefusedRequestError(InputError, VLLMClientError):  # type: ignore[misc]
    """A request that cannot be evicted as asked, in the way by which vLLM knows that it is not the server's fault."""


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except MadaKVError as refusal:
        raise RefusedRequestError(str(refusal)) from refusal


def install() -> None:
    """Stand in for backends, and look at each server's config; safe to call again."""
    for theirs, ours in BACKENDS.items():
        register_backend(theirs, ours)
    wrap(VllmConfig, "_get_v2_model_runner_unsupported_features", _around_unsupported)
    wrap(EngineArgs, "create_engine_config", _around_create_engine_config)
    wrap(InputProcessor, "process_inputs", _around_process_inputs)


def _around_create_engine_config(args: Any, original: Any, *more: Any, **kwargs: Any) -> Any:
    settings = Settings.of(args.additional_config)
    if settings is None:
        return original(*more, **kwargs)
    version = __version__.partition("+")[0]
    check_version(version)
    # ROCm's type of device is "cuda", too.
    device = current_platform._enum.name.lower()
    if (wanted := BACKEND_OF.get(device)) is not None and not _names_backend(args):
        args.attention_backend = AttentionBackendEnum[wanted]
    config = original(*more, **kwargs)
    check_config(config, settings, version, device)
    _wrap_front_end()
    return config


def _names_backend(args: Any) -> bool:
    """Whether a server is told which attention backend to take."""
    return args.attention_config.backend is not None or args.attention_backend not in (None, "auto")


def _around_unsupported(config: Any, original: Any) -> list[str]:
    """The newer of vLLM's model runners, its default on GPUs, reads prompts' lengths where ours has other ones."""
    features: list[str] = original()
    return features if Settings.of(config.additional_config) is None else [*features, "eviction by madakv"]


def _wrap_front_end() -> None:
    """Where requests come in and answers go out. vLLM imports what it needs for that late, and so do we."""
    from vllm.entrypoints.openai.chat_completion.batch_serving import OpenAIServingChatBatch
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.entrypoints.openai.completion.serving import OpenAIServingCompletion
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.llm_engine import LLMEngine

    wrap(ImageMediaIO, "load_bytes", _around_load_bytes)
    wrap(OutputProcessor, "add_request", _around_add_request)
    wrap(OutputProcessor, "process_outputs", _around_process_outputs)
    for engine in (AsyncLLM, LLMEngine):
        wrap(engine, "__init__", _around_engine)
    wrap(OpenAIServingChat, "create_chat_completion", _around_create)
    wrap(OpenAIServingChatBatch, "create_batch_chat_completion", _around_create_batch)
    wrap(OpenAIServingCompletion, "create_completion", _around_create)
    wrap(OpenAIServingResponses, "create_responses", _around_create)


def _around_engine(engine: Any, original: Any, *args: Any, **kwargs: Any) -> None:
    """Once it runs, its config says how large its pool is."""
    original(*args, **kwargs)
    config = engine.vllm_config
    settings = Settings.of(config.additional_config)
    if settings is None:
        return
    cache = config.cache_config
    dtype = kv_cache_dtype_str_to_dtype(cache.cache_dtype, config.model_config)
    setattr(engine.output_processor, _OURS, Ledger(settings, Cache.of(config, dtype.itemsize)))
    logger.info(
        "madakv %s", promise(settings, config.model_config.max_model_len, cache.block_size, cache.num_gpu_blocks)
    )


def _around_process_inputs(processor: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Requests that cannot be meant are refused where they come in; behind this, they would stop the engine."""
    settings = Settings.of(processor.vllm_config.additional_config)
    made = original(*args, **kwargs)
    if settings is not None:
        with _refusing():
            check_request(made, settings)
    return made


def _around_load_bytes(_media: Any, original: Any, data: bytes) -> Any:
    """vLLM takes a decompression bomb for the server's fault, unlike all else that is wrong with pictures."""
    try:
        return original(data)
    except Image.DecompressionBombError as bomb:
        raise RefusedRequestError(f"Failed to load image: {bomb}") from bomb


async def _around_create(serving: Any, original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """A request of the protocol, refused before its stream begins."""
    from madakv.integrations.vllm.protocol import ask, with_usage

    settings = Settings.of(serving.engine_client.vllm_config.additional_config)
    if settings is None:
        return await original(request, *args, **kwargs)
    with _refusing():
        account = ask(request, settings)
    return with_usage(await original(request, *args, **kwargs), account)


async def _around_create_batch(serving: Any, original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    from madakv.integrations.vllm.protocol import ask_nothing

    if Settings.of(serving.engine_client.vllm_config.additional_config) is not None:
        with _refusing():
            ask_nothing(request)
    return await original(request, *args, **kwargs)


def _around_add_request(
    processor: Any, original: Any, request: Any, text: Any, parent: Any = None, choice: int = 0, queue: Any = None
) -> None:
    """The last step before a request leaves for the engine's process."""
    ledger: Ledger | None = getattr(processor, _OURS, None)
    if ledger is None or request.sampling_params is None:
        original(request, text, parent, choice, queue)
        return
    prompt = ledger.open(request.sampling_params, len(request.prompt_token_ids or ()), choice)
    original(request, text, parent, choice, queue)
    # The end of a prompt that was streamed in may be the end of its request.
    if (state := processor.request_states.get(request.request_id)) is not None:
        setattr(state, _OURS, prompt)


def _around_process_outputs(processor: Any, original: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    """Before an answer's second token was read, its prompt was decided about."""
    ledger: Ledger | None = getattr(processor, _OURS, None)
    if ledger is not None:
        for output in outputs:
            state = processor.request_states.get(output.request_id)
            if state is not None and output.new_token_ids and state.detokenizer.num_output_tokens() == 1:
                ledger.settle(getattr(state, _OURS))
    return original(outputs, *args, **kwargs)
