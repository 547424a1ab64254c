"""Who owns what in packed memory that is read in equal tiles, whoever they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """Which heads attend to which tile; made once per eviction, read at every step.

    Every tile is attended by the head that owns its first entry. Where heads meet within a tile, each further
    head attends to it once more; there are fewer such pairs than heads, however short some heads are.

    Attributes:
        owner: [tiles + extras] int64, flat (row, head) index of each pair: first owners, then further ones.
        extra_tile: [extras] int64, the tile of each further pair.
        mask: [tiles + extras, 1, 1, size], additive, -inf at entries of the tile that are not the owner's.
    """

    owner: Tensor
    extra_tile: Tensor
    mask: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], size: int, like: Tensor) -> TileSchedule:
        """Assign tiles to heads that lie one behind another.

        Args:
            lengths: entries of each (row, head).
            size: entries per tile.
            like: gives the device and the dtype of the mask.
        """
        used = sum(lengths)
        tiles = -(-used // size)
        nobody = len(lengths)
        head_of = torch.full((tiles * size,), nobody)
        head_of[:used] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        head_of = head_of.view(tiles, size)
        # Within a tile heads ascend, so a further one begins wherever the owner changes.
        begins = torch.zeros_like(head_of, dtype=torch.bool)
        begins[:, 1:] = (head_of.diff(dim=1) != 0) & (head_of[:, 1:] != nobody)
        extra_tile, first = begins.nonzero(as_tuple=True)
        owner = torch.cat([head_of[:, 0], head_of[extra_tile, first]])
        tile = torch.cat([torch.arange(tiles), extra_tile])
        hidden = head_of[tile] != owner[:, None]
        mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, float("-inf"))
        return cls(
            owner=owner.to(like.device),
            extra_tile=extra_tile.to(like.device),
            mask=mask[:, None, None].to(like.device),
        )
