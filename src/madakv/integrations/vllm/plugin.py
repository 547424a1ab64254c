"""The entry point: what is put in place in every process, and what is checked before a server starts.

As long as nobody asks for eviction, all of it does what vLLM does.
"""

from __future__ import annotations

from typing import Any

from vllm import __version__
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.engine.input_processor import InputProcessor

from madakv.errors import UnsupportedOptionError
from madakv.integrations.vllm.guards import check_config, check_request, check_version
from madakv.integrations.vllm.settings import Settings
from madakv.integrations.vllm.wrapping import wrap

_BACKEND = "madakv.integrations.vllm.backend.EvictingBackend"


def install() -> None:
    """Stand in for the backend of CPUs, and look at each server's config; safe to call again."""
    register_backend(AttentionBackendEnum.CPU_ATTN, _BACKEND)
    wrap(EngineArgs, "create_engine_config", _around_create_engine_config)
    wrap(InputProcessor, "process_inputs", _around_process_inputs)


def _around_create_engine_config(args: Any, original: Any, *more: Any, **kwargs: Any) -> Any:
    settings = Settings.of(args.additional_config)
    if settings is None:
        return original(*more, **kwargs)
    version = __version__.partition("+")[0]
    check_version(version)
    if args.enable_prefix_caching:
        raise UnsupportedOptionError(
            "madakv in vLLM: prefix caching is not supported yet; leave out --enable-prefix-caching"
        )
    args.enable_prefix_caching = False
    config = original(*more, **kwargs)
    check_config(config, settings, version, current_platform.device_type)
    return config


def _around_process_inputs(processor: Any, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Requests that cannot be meant are refused where they come in; behind this, they would stop the engine."""
    settings = Settings.of(processor.vllm_config.additional_config)
    made = original(*args, **kwargs)
    if settings is not None:
        check_request(made, settings)
    return made
