"""Who owns what in packed memory that is read in equal tiles, whoever they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """Which heads attend to which tile; made once per eviction, read at every step.

    The memory is read as whole tiles, each attended by the head that owns its first entry. What that leaves out is
    read through extra windows of a tile's size: one for each further head where heads meet within a tile, and those
    for the entries behind the last whole tile. There are at most as many extra windows as heads, or one more.

    Attributes:
        tiles: whole tiles.
        owner: [tiles + extras] int64, the flat (row, head) index that attends: of each tile, then of each window.
        window: [extras, size] int64, the entries that an extra window reads.
        mask: [tiles + extras, 1, 1, size], additive, -inf at entries that are not the owner's, or not read for it
            here.
    """

    tiles: int
    owner: Tensor
    window: Tensor
    mask: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], size: int, like: Tensor) -> TileSchedule:
        """Assign tiles to heads that lie one behind another.

        Args:
            lengths: entries of each (row, head), at least one in all.
            size: entries per tile, at most the sum of the lengths.
            like: gives the device and the dtype of the mask.
        """
        used = sum(lengths)
        tiles = used // size
        head_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        whole = head_of[: tiles * size].view(tiles, size)
        # Within a tile heads ascend, so a further one begins wherever the owner changes.
        tile, changed = (whole.diff(dim=1) != 0).nonzero(as_tuple=True)
        behind = head_of[tiles * size :].unique()
        owner = torch.cat([whole[:, 0], whole[tile, changed + 1], behind])
        start = torch.cat([torch.arange(tiles), tile]) * size
        start = torch.cat([start, torch.full_like(behind, used - size)])
        entry = start[:, None] + torch.arange(size)
        hidden = head_of[entry] != owner[:, None]
        hidden[len(owner) - len(behind) :, : size - used % size] = True
        mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, float("-inf"))
        return cls(
            tiles=tiles,
            owner=owner.to(like.device),
            window=entry[tiles:].to(like.device),
            mask=mask[:, None, None].to(like.device),
        )
