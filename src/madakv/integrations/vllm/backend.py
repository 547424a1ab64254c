"""The attention backend: the engine's own where nobody asks for eviction, and for all that is not evicted.

What is evicted, the evictor attends to; see `evictor.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from madakv.integrations.vllm.evictor import Evictor
from madakv.integrations.vllm.settings import Settings


class EvictingImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """Attention of one layer.

    Attributes:
        evictor: who sees to evicted requests; None until there is a cache.
        number: which of the evicted layers this is.
    """

    evictor: Evictor | None = None
    number: int = -1

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The engine's attention, then that of evicted requests in their rows."""
        evictor = self.evictor
        output: Tensor = kwargs["output"] if "output" in kwargs else args[0]
        if evictor is not None and evictor.aside is not None:
            evictor.attend_aside(self.number, query, key, value, output)
            return output
        if evictor is None or evictor.step is None or attn_metadata is None:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)
            return output
        if evictor.step.engine_attends:
            super().forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)
        evictor.attend(self.number, query, key, value, output)
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """The engine writes what it reads again, and the evictor the rest."""
        if self.evictor is not None and self.evictor.step is not None:
            slot_mapping = self.evictor.store(self.number, key, value, slot_mapping)
            if not self.evictor.step.engine_attends:
                return
        super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)


class EvictingBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    """Metadata in which evicted requests are as short as their new tokens: the engine attends to them in vain."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """For one step."""
        layers = self.vllm_config.compilation_config.static_forward_context
        evictor = getattr(layers[self.layer_names[0]].impl, "evictor", None)
        if evictor is not None and evictor.step is not None:
            lengths = evictor.step.engine_lengths(common_attn_metadata.seq_lens)
            common_attn_metadata = replace(common_attn_metadata, seq_lens=lengths)
        return super().build(common_prefix_len, common_attn_metadata, fast_build)


class EvictingBackend(CPUAttentionBackend):  # type: ignore[misc]
    """Stands where CPU_ATTN does."""

    @staticmethod
    def get_impl_cls() -> Any:
        """Ours if the config of the model that is being made asks for it."""
        if Settings.of(get_current_vllm_config().additional_config) is None:
            return CPUAttentionBackendImpl
        from madakv.integrations.vllm.worker import wrap_runner

        wrap_runner()
        return EvictingImpl

    @staticmethod
    def get_builder_cls() -> Any:
        """Ours looks whether there is an evictor."""
        return EvictingBuilder
