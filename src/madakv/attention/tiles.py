"""Who owns what in packed memory that is read in equal tiles, whoever they belong to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from madakv.cache import Entries

_LEAST_TILE = 8
_SHORT_TILE = 64
_MOST_TILE = 512


@dataclass(frozen=True, eq=False)
class TileSchedule:
    """Which heads attend to which tile; made once per eviction, read at every step.

    The memory is read as whole tiles, each attended by the head that owns its middle entry. What other heads have in
    a tile lies on one side of the middle, so a window of half a tile holds it. Windows are copied before they are
    read; there are at most as many as heads with entries, or one more.

    Attributes:
        owner: [tiles + windows] int64, the flat (row, head) index that attends: of each tile, then of each window.
        mask: [tiles, 1, 1, size], additive, -inf at entries that are not the owner's.
        window: [windows * width] int64, the entries that the windows read.
        window_mask: [windows, 1, 1, width], additive, -inf at entries that are not the owner's, or that another tile
            or window reads for it.
    """

    owner: Tensor
    mask: Tensor
    window: Tensor
    window_mask: Tensor

    @classmethod
    def of(cls, lengths: tuple[int, ...], size: int, like: Tensor) -> TileSchedule:
        """Assign tiles to heads that lie one behind another.

        Args:
            lengths: entries of each (row, head), at least one in all.
            size: entries per tile, at most the sum of the lengths.
            like: gives the device and the dtype of the masks.
        """
        used = sum(lengths)
        tiles, width = used // size, max(1, size // 2)
        head_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        whole = head_of[: tiles * size].view(tiles, size)
        owner = whole[:, size // 2]
        foreign = whole != owner[:, None]
        # Entries that no tile reads for their own head, cut where they or their heads change and after each width.
        left = torch.cat([foreign.flatten(), foreign.new_ones(used - tiles * size)]).nonzero()[:, 0]
        cut = torch.cat([left.new_ones(1), (left.diff() != 1) | (head_of[left].diff() != 0)])[: len(left)].bool()
        run = left[cut][cut.cumsum(0) - 1]
        cut = (left - run) % width == 0
        begin = left[cut]
        end = begin + (cut.cumsum(0) - 1).bincount(minlength=len(begin))
        window = begin.clamp_max(used - width)[:, None] + torch.arange(width)
        hidden = (window < begin[:, None]) | (window >= end[:, None])
        return cls(
            owner=torch.cat([owner, head_of[begin]]).to(like.device),
            mask=_additive(foreign, like),
            window=window.flatten().to(like.device),
            window_mask=_additive(hidden, like),
        )


def tiles_of(entries: Entries) -> TileSchedule:
    """Which heads own which tile of the entries' memory; for `Entries.once`."""
    return TileSchedule.of(entries.lengths, _tile_size(entries.lengths), like=entries.keys)


def _tile_size(lengths: tuple[int, ...]) -> int:
    """Entries per tile: one head's length if all are equal, else a power of two that few heads share.

    A tile in which heads meet is read once more for each; small tiles leave more parts to merge. A sixteenth of a
    head balances the two for long heads, a quarter for short ones, where merging would cost more than reading.
    """
    if len(set(lengths)) == 1:
        return max(1, lengths[0])
    size = (sum(lengths) // len(lengths)).bit_length()
    wanted = max(min(_SHORT_TILE, 1 << max(0, size - 2)), 1 << max(0, size - 4))
    return min(sum(lengths), max(_LEAST_TILE, min(_MOST_TILE, wanted)))


def _additive(hidden: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, float("-inf"))
    return mask[:, None, None].to(like.device)
