"""What a method may look at when one layer has just run its attention over the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from madakv.scoring.projection import OutputProjection
from madakv.scoring.rotary import Rotary


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer's prefill, exactly as its attention function received it.

    Attributes:
        query: [B, Hq, N, Dk], after RoPE and any query norm; `most_attention` takes the newest Q of them alone.
        key: [B, H, N, Dk], after RoPE and any key norm; never repeated over groups.
        value: [B, H, N, Dv].
        modality: [B, N] int64 of `Modality` values, -1 at padding.
        mask: [B or 1, 1 or Hq, N, N], a row for each query, bool (true = visible) or additive float; None = plain
            causal.
        scaling: factor on the logits.
        softcap: logits become `softcap * tanh(logits / softcap)` before masking; None = no cap.
        sinks: [Hq] logits of a virtual key that takes attention and has no value; None = none.
        projection: o_proj, what becomes of the heads' outputs; None = nobody knows.
        divisor: [B] what an RMSNorm behind o_proj divides by; None = there is none.
        rotary: how queries and keys were turned by their positions; None = nobody knows.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    modality: Tensor
    scaling: float
    mask: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    projection: OutputProjection | None = None
    divisor: Tensor | None = None
    rotary: Rotary | None = None

    def prefix(self, length: int) -> LayerView:
        """The view of the first `length` tokens alone."""
        cut = slice(None, length)
        return replace(
            self,
            query=self.query[:, :, cut],
            key=self.key[:, :, cut],
            value=self.value[:, :, cut],
            modality=self.modality[:, cut],
            mask=None if self.mask is None else self.mask[:, :, cut, cut],
            rotary=None if self.rotary is None else self.rotary.prefix(length),
        )

    def without_tokens(self) -> LayerView:
        """The view of no token at all, which holds on to none: what remains is how the layer attends."""
        none = {name: getattr(self, name)[:, :, :0].clone() for name in ("query", "key", "value")}
        return replace(self, **none, modality=self.modality[:, :0].clone(), mask=None, rotary=None)
