"""psi of every layer: what the method makes of the prompt's own queries, and what probes add to it."""

from __future__ import annotations

import torch
from torch import Tensor

from madakv.errors import InputError
from madakv.methods import Method
from madakv.scoring import LayerView


class Scores:
    """The scores of the layers that were read so far.

    Args:
        method: how to score.
        device: where they are held.
    """

    def __init__(self, method: Method, device: torch.device) -> None:
        self._method = method
        self._device = device
        self._psi: list[Tensor] = []
        self._worth: list[Tensor | None] = []

    def __len__(self) -> int:
        return len(self._psi)

    def copy(self) -> Scores:
        """The same, to be added to apart."""
        other = Scores(self._method, self._device)
        other._psi, other._worth = list(self._psi), list(self._worth)
        return other

    def add_layer(self, view: LayerView, *, seek: bool = False) -> Tensor | None:
        """Score the next layer.

        Args:
            view: of the layer.
            seek: whether to tell what the question is after, [B, N] fp32.

        Raises:
            InputError: its attention or its values are not finite.
        """
        number = len(self._psi)
        worth = self._method.worth(view)
        psi, sought = self._method.score_and_seek(view) if seek else (self._method.score(view), None)
        self._psi.append(psi.to(self._device))
        self._worth.append(None if worth is None else worth.to(self._device))
        if not bool(torch.isfinite(self.final(number)).all()):
            raise InputError(_not_finite(view, number))
        return None if sought is None else sought.to(self._device)

    def add(self, layer: int, psi: Tensor) -> None:
        """Add what a probe has heard, [B, H, N] fp32."""
        self._psi[layer] = self._psi[layer] + psi.to(self._device)

    def parts(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """psi, [B, H, N] fp32; and what it is multiplied by, likewise, if anything."""
        return self._psi[layer], self._worth[layer]

    def final(self, layer: int) -> Tensor:
        """[B, H, N] fp32: what is decided by."""
        psi, worth = self.parts(layer)
        return psi if worth is None else psi * worth

    def forget(self, layer: int) -> None:
        """Free the scores of a layer that is decided."""
        self._psi[layer] = self._psi[layer].new_empty(0)
        self._worth[layer] = None


def _not_finite(view: LayerView, number: int) -> str:
    """What to do about it depends on where it comes from."""
    where, half = f"layer {number} of the evicted ones", view.key.dtype == torch.float16
    if not half and any(bool(torch.isnan(x).any()) for x in (view.query, view.key, view.value)):
        return (
            f"{where} computes NaN from this prompt before it attends to anything: a weight, a picture or an "
            "embedding is not a number. Check the model's files and the prompt; another dtype would not help"
        )
    return (
        f"{where} has attention that is not finite: the model overflows in {view.key.dtype}; "
        f"load it in {'bfloat16 or float32' if half else 'another dtype'}"
    )
