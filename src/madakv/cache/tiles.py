"""Who owns what in packed memory that is read in equal tiles, whoever they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """Which heads attend to which tile; made once per eviction, read at every step.

    A tile has as many slots as the fullest tile has heads.

    Attributes:
        owner: [tiles, slots] int64, flat (row, head) index, or the number of them for an unused slot.
        query: [tiles, slots] int64, the same with unused slots pointing at some valid head.
        visible: [tiles, slots, 1, size] bool, which entries of the tile the slot's head owns.
    """

    owner: Tensor
    query: Tensor
    visible: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], size: int, device: torch.device) -> TileSchedule:
        """Assign tiles to heads that lie one behind another.

        Args:
            lengths: entries of each (row, head).
            size: entries per tile.
            device: where the schedule is needed.
        """
        heads, used = len(lengths), sum(lengths)
        tiles = -(-used // size)
        head_of = torch.full((tiles * size,), heads)
        head_of[:used] = torch.arange(heads).repeat_interleave(torch.tensor(lengths))
        head_of = head_of.view(tiles, size)
        # The heads of a tile ascend; a new slot opens at each change.
        opens = torch.cat([torch.zeros(tiles, 1, dtype=torch.bool), head_of.diff(dim=1) != 0], dim=1)
        slot = opens.cumsum(1)
        owner = torch.full((tiles, int(slot.max()) + 1), heads).scatter(1, slot, head_of)
        visible = (slot[:, None] == torch.arange(owner.shape[1])[:, None]) & (owner < heads)[..., None]
        return cls(
            owner=owner.to(device),
            query=owner.clamp_max(heads - 1).to(device),
            visible=visible[:, :, None].to(device),
        )
