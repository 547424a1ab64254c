"""The backend of CPUs."""

from __future__ import annotations

from typing import Any

from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from madakv.integrations.vllm.backend import EvictingBuilder, EvictingImpl, impl_for_config


class EvictingCPUImpl(EvictingImpl, CPUAttentionBackendImpl):  # type: ignore[misc]
    """Attention of one layer."""


class EvictingCPUBuilder(EvictingBuilder, CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Looks whether there is an evictor."""


class EvictingCPUBackend(CPUAttentionBackend):  # type: ignore[misc]
    """Stands where CPU_ATTN does."""

    @staticmethod
    def get_impl_cls() -> Any:
        """Ours if asked for."""
        return impl_for_config(EvictingCPUImpl, CPUAttentionBackendImpl)

    @staticmethod
    def get_builder_cls() -> Any:
        """Ours."""
        return EvictingCPUBuilder
