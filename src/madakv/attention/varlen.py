"""One new token's attention by kernels for sequences of uneven length: flash-attn's, or the copy that PyTorch ships.

Each head's entries are cut into chunks, and each chunk is a sequence of its own: the G queries of the head over keys
of one head. So the packed memory is read as it lies, long heads keep as many processors busy as short ones, groups
of any size go, and no sequence is ever empty (flash-attn gives those a denominator of +inf). What came after the
prompt, the mask on it and the sinks are PyTorch's operations; the parts are merged by their denominators.

Held against the reference with a plain function in the kernels' place; neither kernel has been run here on a chip,
and nobody knows yet whether one is faster than the Triton kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from madakv.attention.partial import Partial, merge, merge_scattered
from madakv.attention.programs import programs_of
from madakv.attention.ragged import ragged_partial
from madakv.cache import Entries, RaggedEntries, Tail
from madakv.errors import ConfigurationError

DTYPES = (torch.bfloat16, torch.float16)
LARGEST_HEAD = 256
_HEAD_STEP = 8

_LEAST_CHUNK = 256
"""Entries: fewer do not pay for merging one part more."""

Kernel = Callable[..., tuple[Tensor, Tensor]]
"""Takes the arguments of `flash_attn` here; returns out [S * G, 1, D] and lse, S * G elements, fp32, of base e."""


@dataclass(frozen=True, eq=False)
class VarlenSchedule:
    """Chunks of all heads, S in number, in the order of the memory.

    Attributes:
        starts: [S + 1] int32, where each chunk's entries begin, and the end of the last.
        owner: [S] int64, flat (row, head) index.
        number: [S + 1] int32, of each chunk, and S.
        longest: entries of the longest chunk.
        nothing: the same rows and heads without an entry.
    """

    starts: Tensor
    owner: Tensor
    number: Tensor
    longest: int
    nothing: RaggedEntries

    @classmethod
    def of(cls, entries: Entries, *, chunk: int | None = None) -> VarlenSchedule:
        """Cut the heads; the tables are copied to the device once.

        Args:
            entries: of every row and head, fewer than 2**31 in all.
            chunk: most entries of a chunk; None = what keeps the device busy.
        """
        keys, total = entries.keys, len(entries.keys)
        if chunk is None:
            chunk = max(_LEAST_CHUNK, -(-total // programs_of(keys.device)))
        count = torch.tensor(entries.lengths)
        pieces = (count + chunk - 1) // chunk
        owner = torch.arange(len(count)).repeat_interleave(pieces)
        rank = torch.arange(len(owner)) - (pieces.cumsum(0) - pieces)[owner]
        starts = (count.cumsum(0) - count)[owner] + rank * chunk
        nothing = RaggedEntries.pack(keys[:0].clone(), entries.values[:0].clone(), torch.zeros_like(entries.counts))
        return cls(
            starts=torch.cat([starts, torch.tensor([total])]).to(keys.device, torch.int32),
            owner=owner.to(keys.device),
            number=torch.arange(len(owner) + 1, dtype=torch.int32, device=keys.device),
            longest=min(chunk, max(entries.lengths)),
            nothing=nothing,
        )


def varlen_decode(
    query: Tensor,
    entries: Entries,
    tail: Tail,
    kernel: Kernel,
    *,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    schedule: VarlenSchedule | None = None,
) -> Tensor:
    """Attention of one new token per row; see `ragged_attention` for the arguments.

    Args:
        kernel: attends to the prompt's entries.
        schedule: made from `entries`; None = theirs.

    Returns:
        [B, Hq, 1, Dv] in the dtype of the query.

    Raises:
        ConfigurationError: from the kernel, where it has no softcap.
    """
    schedule = entries.once(VarlenSchedule.of) if schedule is None else schedule
    B, Hq, _, D = query.shape
    H = entries.counts.shape[1]
    G = Hq // H
    part = ragged_partial(query, schedule.nothing, tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks)
    S = len(schedule.owner)
    if S:
        out, lse = kernel(
            query.reshape(B * H, G, D)[schedule.owner].view(S * G, 1, D),
            entries.keys[:, None],
            entries.values[:, None],
            schedule.number * G,
            schedule.starts,
            G,
            schedule.longest,
            scaling=scaling,
            softcap=softcap,
        )
        # Of one head, so that it does not matter whether heads or queries come first.
        whole = merge_scattered(out.view(S, G, -1).float(), lse.view(S, G), schedule.owner, B * H)
        part = merge(part, Partial(out=whole.out.view(B, H, G, -1), lse=whole.lse.view(B, H, G)))
    return part.out.to(query.dtype).view(B, Hq, 1, -1)


def flash_attn(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """flash-attn's kernel, from 2.6.0 on: there softcaps begin, and its lse is packed as queries are.

    Args:
        query: [S * G, 1, D].
        keys, values: [T, 1, D].
        query_starts, key_starts: [S + 1] int32, where each sequence begins, and the end of the last.
        most_queries, most_keys: of the longest sequence.
        scaling: factor on the logits.
        softcap: see `LayerView`.
    """
    from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found,import-untyped,unused-ignore]

    out, lse, _ = flash_attn_varlen_func(
        query,
        keys,
        values,
        query_starts,
        key_starts,
        most_queries,
        most_keys,
        softmax_scale=scaling,
        softcap=0.0 if softcap is None else softcap,
        return_attn_probs=True,
    )
    return out, lse


def torch_varlen(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """PyTorch's own: flash-attn 2, or what `activate_flash_attention_impl` put there; see `flash_attn`.

    Raises:
        ConfigurationError: there is a softcap, which it does not have.
    """
    if softcap is not None:
        raise ConfigurationError("PyTorch's varlen_attn has no softcap, which this model needs")
    found = varlen_attn(
        query,
        keys,
        values,
        query_starts,
        key_starts,
        most_queries,
        most_keys,
        return_aux=AuxRequest(lse=True),
        scale=scaling,
    )
    return cast(tuple[Tensor, Tensor], found)


KERNELS: dict[str, Kernel] = {"flash": flash_attn, "varlen": torch_varlen}


def check_model(query: Tensor, entries: Entries) -> None:
    """Refuse what neither kernel can do for any call of a model.

    Raises:
        ConfigurationError: the dtype, or the heads' dimensions.
    """
    D, Dv = entries.keys.shape[-1], entries.values.shape[-1]
    if query.dtype not in DTYPES:
        raise ConfigurationError(f"flash attention takes bfloat16 or float16; the model runs in {query.dtype}")
    if Dv != D or D % _HEAD_STEP or D > LARGEST_HEAD:
        raise ConfigurationError(
            f"flash attention takes keys and values of one dimension, a multiple of {_HEAD_STEP} and at most "
            f"{LARGEST_HEAD}; the model's are {D} and {Dv}"
        )
