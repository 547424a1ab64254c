"""Who is heard besides the prompt: tokens whose attention says what will be needed, and who are not kept for it.

There is one way to be heard. Tokens attend to the prompt; what they pay to its entries is reduced over the tokens,
weighted by the method, and added to the scores. A draft, an echo and a lookahead differ in where their tokens stand
and in how they are reduced, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from madakv.attention import attention_of_newest
from madakv.methods import Method
from madakv.modality import Modality
from madakv.reading.chunks import Chunks
from madakv.scoring import LayerView, attention_paid, most_and_attended, most_attention

Reduction = Literal["each", "most"]
"""`"each"`: every token counts; `"most"`: the most that any of them pays."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Tokens that are heard.

    Attributes:
        heard: [B, n] bool, which of a span of n tokens, read in one pass with the prompt and behind it, are heard;
            the others are padding there. None: whatever is read after the prompt's pass.
        reduce: over tokens.
        weight: what the attention of a token, or the most of several, [B, H, G, N] fp32, adds to psi [B, H, N].
        chunks: of an echo whose tokens compete for attention within stretches of the prompt; None: over all of it.
    """

    heard: Tensor | None
    reduce: Reduction
    weight: Callable[[Tensor], Tensor]
    chunks: Chunks | None = None

    @property
    def span(self) -> int:
        """How many tokens are read with the prompt."""
        return 0 if self.heard is None else self.heard.shape[1]

    def modality(self, like: Tensor) -> Tensor:
        """[B, n] of `Modality` values: text where it is heard, else padding."""
        if self.heard is None:
            return like[:, :0]
        text = torch.where(self.heard.to(like.device), int(Modality.TEXT), int(Modality.PADDING))
        return text.to(like.dtype)

    def listen(self, view: LayerView, start: int, prompt: int) -> Iterator[Tensor]:
        """What the tokens of the span add to psi, [B, H, N], one after another.

        Args:
            view: of the whole pass.
            start: where the span begins.
            prompt: N.
        """
        if self.heard is None:
            return
        behind = view.key.shape[2] - start - self.span
        heard = self.heard.to(view.key.device)
        if self.chunks is not None:
            yield self.weight(self.chunks.most(view, heard, start))
            return
        if self.reduce == "most":
            yield self.weight(most_attention(view, pad(heard, (start, behind)))[..., :prompt])
            return
        # One after another, as those are that are read later: a maximum over groups is not linear.
        apart = torch.eye(self.span, dtype=torch.bool, device=heard.device)[:, None] & heard
        for paid in attention_paid(view, pad(apart, (start, behind))):
            yield self.weight(paid[..., :prompt])

    def attend(self, view: LayerView, prompt: int) -> tuple[Tensor, Tensor]:
        """What an echo that is read in a pass of its own adds to psi, [B, H, N]; and its attention, [B, Hq, n, Dv].

        Args:
            view: of that pass: the prompt's entries and its own, and its own queries.
            prompt: N.
        """
        assert self.heard is not None
        heard = pad(self.heard.to(view.key.device), (prompt, 0))
        both = most_and_attended(view, heard) if self.chunks is None else None
        if both is not None:
            return self.weight(both[0][..., :prompt]), both[1]
        return next(self.listen(view, prompt, prompt)), attention_of_newest(
            view.query,
            view.key,
            view.value,
            scaling=view.scaling,
            hidden=view.modality < 0,
            softcap=view.softcap,
            sinks=view.sinks,
        )

    def told(self, paid: Tensor) -> Tensor:
        """What tokens of a later pass add to psi, [B, H, N].

        Args:
            paid: [B, H, G, Q, N] fp32, what each of them pays.
        """
        # One after another: a maximum over groups is not linear.
        B, Q = paid.shape[0], paid.shape[3]
        each: Tensor = self.weight(paid.permute(3, 0, 1, 2, 4).flatten(0, 1))
        return each.reshape(Q, B, *each.shape[1:]).sum(0)


def speaking(mask: Tensor | None, tokens: int) -> Tensor | None:
    """Which of the newest tokens are more than padding, [B or 1, tokens] bool; None: all.

    Args:
        mask: of the tail, as for `ragged_attention`: padding is hidden from itself, too.
        tokens: how many there are.
    """
    if mask is None:
        return None
    own = mask[:, 0].expand(-1, tokens, -1).diagonal(mask.shape[-1] - tokens, -2, -1)
    return own if own.dtype == torch.bool else own.float().exp() > 0


def draft(method: Method, heard: Tensor) -> Probe:
    """A draft of the answer behind the prompt; `heard`: [B, n] bool."""
    return Probe(heard, "each", method.later_score)


def echo(method: Method, heard: Tensor, modality: Tensor, places: Tensor) -> Probe:
    """Text of the prompt that is read again, with it or in a later pass.

    Args:
        method: that weighs it.
        heard: [B, n] bool, what is more than padding.
        modality: [B, N] of the prompt.
        places: [B, n] int64, where the text stands in it.
    """
    chunks = None
    if method.echo_chunk is not None:
        size, first = method.echo_chunk
        if int((modality != Modality.PADDING).sum(-1).max()) > size:
            chunks = Chunks(size, first, modality, places.to(modality.device))
    return Probe(heard, "most", method.echo_score, chunks)


def lookahead(method: Method) -> Probe:
    """The answer itself, as it is generated."""
    return Probe(None, "each", method.later_score)
