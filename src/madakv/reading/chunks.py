"""An echo in chunks: what is read again of a stretch of the prompt competes for attention with that stretch alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from madakv.modality import Modality
from madakv.scoring import LayerView, most_attention


@dataclass(frozen=True, eq=False)
class Chunks:
    """Which stretch of the prompt each echoed token is of.

    A stretch's softmax runs over the prompt's first tokens, the stretch, and what was read again by then.

    Attributes:
        size: tokens of a stretch, whatever their modality.
        first: how many of the prompt's first tokens every softmax has.
        modality: [B, N] of the prompt.
        places: [B, n] int64, where echoed tokens stand in it.
    """

    size: int
    first: int
    modality: Tensor
    places: Tensor

    def numbers(self) -> Tensor:
        """[B, N] int64: the stretch of each of the prompt's tokens; -1 at padding."""
        valid = self.modality != Modality.PADDING
        return torch.where(valid, (valid.cumsum(-1) - 1) // self.size, -1)

    def most(self, view: LayerView, heard: Tensor, start: int) -> Tensor:
        """The most that any echoed token attends to the entries of its own stretch.

        Args:
            view: of the whole pass.
            heard: [B, n] bool, the echoed tokens.
            start: where these begin.

        Returns:
            [B, H, G, N] fp32, zero where nothing of a stretch was read again.
        """
        B, H, N = len(heard), view.key.shape[1], self.modality.shape[1]
        most = torch.zeros(B, H, view.query.shape[1] // H, N, device=view.key.device)
        numbers, first = self.numbers(), self._first()
        told = numbers.gather(1, self.places)
        for b in range(B):
            for number in range(int(numbers[b].max()) + 1):
                own = numbers[b] == number
                speaks = (told[b] == number) & heard[b].to(told.device)
                if not speaks.any():
                    continue
                until = int(speaks.nonzero()[-1]) + 1
                context = (own | first[b]).nonzero()[:, 0]
                behind = torch.arange(start, start + until, device=context.device)
                part = _part(view, b, torch.cat([context, behind]), until)
                queries = torch.cat([torch.zeros_like(context, dtype=torch.bool), speaks[:until]])
                paid = most_attention(part, queries[None].to(view.key.device))[0, ..., : len(context)]
                mine = own[context].to(paid.device)
                most[b, :, :, own.to(most.device)] = paid[..., mine]
        return most

    def _first(self) -> Tensor:
        valid = self.modality != Modality.PADDING
        return valid & (valid.cumsum(-1) <= self.first)


def _part(view: LayerView, row: int, tokens: Tensor, newest: int) -> LayerView:
    """One row's view of some tokens alone, in ascending order, with the queries of the newest of them."""
    tokens = tokens.to(view.key.device)
    asking = tokens[-newest:] - (view.key.shape[2] - view.query.shape[2])
    key, value = (states[row : row + 1, :, tokens] for states in (view.key, view.value))
    mask = view.mask
    if mask is not None:
        mask = mask[row : row + 1] if len(mask) > 1 else mask
        mask = mask[:, :, asking][..., tokens]
    query = view.query[row : row + 1, :, asking]
    modality = view.modality[row : row + 1, tokens]
    return replace(view, query=query, key=key, value=value, modality=modality, mask=mask, rotary=None)
