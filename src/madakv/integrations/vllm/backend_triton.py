"""The backend of GPUs: vLLM's kernels in Triton, which run on all of them."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from madakv.integrations.vllm.backend import EvictingBuilder, EvictingImpl, impl_for_config


class EvictingTritonImpl(EvictingImpl, TritonAttentionImpl):  # type: ignore[misc]
    """Attention of one layer."""


class EvictingTritonBuilder(EvictingBuilder, TritonAttentionMetadataBuilder):  # type: ignore[misc]
    """Looks whether there is an evictor."""


class EvictingTritonBackend(TritonAttentionBackend):  # type: ignore[misc]
    """Stands where TRITON_ATTN does."""

    @staticmethod
    def get_impl_cls() -> Any:
        """Ours if asked for."""
        return impl_for_config(EvictingTritonImpl, TritonAttentionImpl)

    @staticmethod
    def get_builder_cls() -> Any:
        """Ours."""
        return EvictingTritonBuilder
