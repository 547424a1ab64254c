"""What the plug-in refuses, each in one line by name. Looks at vLLM's config by attribute, and imports none of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from madakv.errors import ConfigurationError, InputError, UnsupportedModelError, UnsupportedOptionError
from madakv.integrations.vllm.settings import Settings

VERSIONS = ("0.32.0",)
"""Those it was run with. Every hook is a name inside vLLM that another version may have moved."""

BACKEND_OF = {"cpu": None, "cuda": "TRITON_ATTN"}
"""Devices, and the attention backend that stands in for; None: there is but one."""

_WRITES = "vllm::unified_kv_cache_update"
"""By which vLLM writes a layer's keys and values."""

SEEING = frozenset(
    {
        "Idefics3ForConditionalGeneration",
        "InternVLForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
    }
)
"""Architectures of models that see, of which pictures were tried."""


def _context_parallel(config: Any) -> bool:
    return bool(config.decode_context_parallel_size > 1 or config.prefill_context_parallel_size > 1)


def _records_attention(config: Any) -> bool:
    """Whether CUDA graphs would hold what evicts. `FULL_...` give way to `PIECEWISE` where a backend asks for it."""
    mode = config.cudagraph_mode.name
    return mode == "FULL" or (mode != "NONE" and _WRITES not in (config.splitting_ops or ()))


_OPTIONS: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (lambda c: c.speculative_config, "speculative decoding takes tokens back, but evicted entries cannot come back"),
    (lambda c: c.kv_transfer_config, "KV connectors move whole prompts, of which only a part is here"),
    (lambda c: c.cache_config.kv_sharing_fast_prefill, "layers that share a KV cache are not supported"),
    (
        lambda c: c.cache_config.cache_dtype not in ("auto", str(c.model_config.dtype).removeprefix("torch.")),
        "a KV cache of another dtype than the model's is not supported: leave out --kv-cache-dtype",
    ),
    (
        lambda c: (seen := c.model_config.multimodal_config) and seen.mm_processor_cache_type == "shm",
        "pictures in shared memory cannot be read once more: leave out --mm-processor-cache-type shm",
    ),
    (lambda c: c.lora_config, "LoRA adapters are not supported: an echo would be read without them"),
    (lambda c: c.parallel_config.pipeline_parallel_size > 1, "pipeline parallelism is not supported yet"),
    (
        lambda c: _context_parallel(c.parallel_config),
        "context parallelism cuts prompts apart between devices",
    ),
    (lambda c: c.parallel_config.use_ubatching, "dual batch overlap cuts steps apart: leave out --enable-dbo"),
    (
        lambda c: c.use_v2_model_runner,
        "model runner V2 is not supported yet: leave out VLLM_USE_V2_MODEL_RUNNER, and what needs it",
    ),
    (
        lambda c: _records_attention(c.compilation_config),
        "CUDA graphs may record neither attention nor the writing of keys: leave out what turns that on, such as "
        "cudagraph_mode FULL, or add --enforce-eager",
    ),
)


def check_version(version: str) -> None:
    """Refuse versions of vLLM that nobody tried."""
    if version not in VERSIONS:
        raise UnsupportedOptionError(
            f"madakv was tested with vLLM {', '.join(VERSIONS)}; this is {version}, inside which the places "
            "that it hooks into may have moved: install one of those, or leave madakv out of --additional-config"
        )


def check_method(settings: Settings) -> None:
    """Refuse methods that need what an engine does not have."""
    method = settings.resolved()
    if method.draft:
        raise ConfigurationError(f"{method.label} reads its prompt twice; an engine reads it once: leave out draft")
    if method.lookahead:
        raise ConfigurationError(f"{method.label} waits for generated tokens before it evicts: leave out lookahead")
    if method.merge is not None:
        raise ConfigurationError(f"{method.label} merges what it evicts, which is not supported in vLLM")
    if method.name == "expected_attention":
        raise ConfigurationError(f"{method.label} turns queries back to before RoPE, and vLLM does not say how")


def check_config(config: Any, settings: Settings, version: str, device: str) -> None:
    """Refuse servers that cannot evict.

    Args:
        config: vLLM's `VllmConfig`.
        settings: as asked for.
        version: of vLLM.
        device: the platform's name, in small letters.

    Raises:
        MadaKVError: one line, with what to do.
    """
    check_version(version)
    if device not in BACKEND_OF:
        raise UnsupportedOptionError(
            f"madakv in vLLM: of devices there are CPUs and NVIDIA's GPUs (cuda); {device} is not supported: leave "
            "madakv out of --additional-config"
        )
    wanted, given = BACKEND_OF[device], getattr(config.attention_config.backend, "name", "vLLM's choice")
    if wanted not in (None, given):
        raise UnsupportedOptionError(
            f"madakv in vLLM: on GPUs it stands in for the attention backend {wanted}, not for {given}: leave out "
            "--attention-backend"
        )
    check_method(settings)
    for asked, why in _OPTIONS:
        if asked(config):
            raise UnsupportedOptionError(f"madakv in vLLM: {why}")
    model = config.model_config
    if model.use_mla:
        raise UnsupportedModelError("madakv in vLLM: models with latent attention (MLA) hold no keys per head")
    if model.is_multimodal_model and (others := set(model.architectures) - SEEING):
        raise UnsupportedModelError(
            f"madakv in vLLM: of models that see or hear {', '.join(sorted(SEEING))} were tested, and "
            f"{', '.join(sorted(others))} was not"
        )
    ropes = getattr(model.hf_text_config, "rope_parameters", None) or {}
    if "mrope_section" in ropes and ropes.get("rope_type") == "llama3":
        raise UnsupportedModelError("vLLM knows one position per token with llama3's RoPE, and this model has three")
    if model.is_encoder_decoder or model.runner_type != "generate":
        raise UnsupportedModelError("madakv in vLLM: only models that generate, with a decoder alone")


def check_request(request: Any, settings: Settings) -> None:
    """Refuse requests that cannot be evicted as asked.

    Args:
        request: vLLM's `EngineCoreRequest`.
        settings: of the server.

    Raises:
        MadaKVError: one line, with what to do.
    """
    if request.sampling_params is None or settings.budget_of(request.sampling_params.extra_args) == 1.0:
        return
    if request.resumable:
        raise InputError("madakv in vLLM: prompts that are streamed in have no end at which to evict")
    if request.prompt_token_ids is None or request.prompt_embeds is not None:
        raise InputError("madakv in vLLM: prompts of embeddings cannot be evicted; set madakv_budget to 1")


def check_layers(kinds: Iterable[str], spec: str) -> None:
    """Refuse models whose layers do not all hold their keys alike.

    Args:
        kinds: of each KV cache group, the name of its spec.
        spec: the name that there should be, once.
    """
    kinds = list(kinds)
    if kinds != [spec]:
        raise UnsupportedModelError(
            f"madakv in vLLM: all layers must hold whole prompts alike, in one KV cache group; this model has "
            f"{', '.join(kinds) or 'none'} (sliding windows, state spaces or several kinds of attention)"
        )
