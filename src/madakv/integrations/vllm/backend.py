"""What is ours in an attention backend: the engine's where nobody asks for eviction, and for all that is not evicted.

What is evicted, the evictor attends to; see `evictor.py`. The engine's classes that these stand before are those of a
device: `backend_cpu.py`, `backend_triton.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionCGSupport

from madakv.integrations.vllm.evictor import Evictor
from madakv.integrations.vllm.settings import Settings


class EvictingImpl:
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
        engine: Any = super()
        evictor = self.evictor
        output: Tensor = kwargs["output"] if "output" in kwargs else args[0]
        if evictor is not None and evictor.aside is not None:
            evictor.attend_aside(self.number, query, key, value, output)
            return output
        if evictor is None or evictor.step is None or attn_metadata is None:
            engine.forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)
            return output
        if evictor.step.engine_attends:
            engine.forward(layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs)
        evictor.attend(self.number, query, key, value, output)
        return output

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """The engine writes what it reads again, and the evictor the rest."""
        engine: Any = super()
        if self.evictor is not None and self.evictor.step is not None:
            slot_mapping = self.evictor.store(self.number, key, value, slot_mapping)
            if not self.evictor.step.engine_attends:
                return
        engine.do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def fused_output_quant_supported(self, _quant_key: Any) -> bool:
        """What the evictor writes is not quantised."""
        return False


class EvictingBuilder:
    """Metadata in which evicted requests are as short as their new tokens: the engine attends to them in vain."""

    vllm_config: Any
    layer_names: list[str]

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
        """A graph of a whole step would repeat what was done to the requests that it was recorded with."""
        if Settings.of(vllm_config.additional_config) is not None:
            return AttentionCGSupport.NEVER
        engine: Any = super()
        return engine.get_cudagraph_support(vllm_config, kv_cache_spec)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """For one step."""
        engine: Any = super()
        layers = self.vllm_config.compilation_config.static_forward_context
        evictor = getattr(layers[self.layer_names[0]].impl, "evictor", None)
        if evictor is not None and evictor.step is not None:
            lengths = evictor.step.engine_lengths(common_attn_metadata.seq_lens)
            common_attn_metadata = replace(common_attn_metadata, seq_lens=lengths)
        return engine.build(common_prefix_len, common_attn_metadata, fast_build)


def impl_for_config(ours: Any, engines: Any) -> Any:
    """The class of layers' attention: ours if the config of the model that is being made asks for eviction."""
    if Settings.of(get_current_vllm_config().additional_config) is None:
        return engines
    from madakv.integrations.vllm.worker import wrap_runner

    wrap_runner()
    return ours
