"""Deciding again: over what was kept, and what came since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from madakv.attention import ragged_partial, weights_on_entries, weights_on_tail
from madakv.cache import LayerMemory
from madakv.errors import ConfigurationError
from madakv.methods import Method
from madakv.methods.grouped import GroupedMethod
from madakv.plan import KeepPlan
from madakv.reading.allocate import Decisions
from madakv.reading.candidates import Candidates
from madakv.reading.probes import lookahead, speaking
from madakv.reading.prompt import Prompt
from madakv.reading.triggers import Trigger
from madakv.scoring import LayerView


class Revision:
    """Hears later tokens, and decides once more when the trigger says so, as often as it does.

    The budget is a share of all that was read by then. What is gone scores nothing, and does not come back: a method
    that ranks by more than scores, such as by those of neighbours, may choose it all the same, and keeps less then.

    Args:
        method: how to score and decide.
        prompt: what was decided over.
        memories: of the evicted layers, in order.
        kept: what each of them holds.
        frames: a view of no tokens of each layer, for what entries are worth there.
        trigger: when to decide.
        later: [B, n] of `Modality` values, of what was read behind the prompt before it was decided.

    Attributes:
        prompt: all that the next decision is made over, the tail aside.
    """

    def __init__(
        self,
        method: Method,
        prompt: Prompt,
        memories: Sequence[LayerMemory],
        kept: Sequence[Candidates],
        frames: Sequence[LayerView],
        trigger: Trigger,
        later: Tensor,
    ) -> None:
        self.method = method
        self.prompt = prompt
        self._memories = memories
        self._kept = list(kept)
        self._frames = frames
        self._trigger = trigger
        self._listener = lookahead(method)
        self._later = later
        # Of these, the first decision knew already.
        self._known = later.shape[1]
        self._tails: list[Tensor | None] = [None] * len(memories)

    @property
    def repeats(self) -> bool:
        """That is what it is for."""
        return True

    @staticmethod
    def check(method: Method) -> None:
        """Refuse methods that can decide once alone.

        Raises:
            ConfigurationError: it looks at the whole prompt's attention or queries, or merges what it evicts.
        """
        if method.sees_all_layers or method.decides_once or method.merge is not None:
            raise ConfigurationError(f"{method.label} needs the whole prompt to decide, and can do so once alone")

    def announce(self, modality: Tensor) -> None:
        """Say what the next pass reads, [B, n] of `Modality` values."""
        self._later = torch.cat([self._later, modality.to(self._later.device)], 1)

    def attend(self, number: int, query: Tensor, **options: Any) -> Tensor:
        """Attention of later tokens over a layer's memory, which are heard on the way; see `ragged_attention`."""
        memory, mask = self._memories[number], options.get("mask")
        part = ragged_partial(query, memory.kept, memory.tail, **options)
        logits: dict[str, Any] = {name: options.get(name) for name in ("scaling", "softcap")}
        on_entries = weights_on_entries(query, memory.kept, part.lse, **logits)
        on_tail = weights_on_tail(query, memory.tail, part.lse, mask=mask, **logits)
        if (said := speaking(mask, query.shape[2])) is not None:
            rows = self._kept[number].plan.rows().to(said.device)
            said = said.expand(len(query), -1)
            on_entries = on_entries.masked_fill(~said[rows][:, None], 0.0)
            on_tail = on_tail.masked_fill(~said[:, None, None, :, None], 0.0)
        # Heads of uneven length lie one behind another, as one head of one row.
        packed = self._listener.told(on_entries.permute(1, 2, 0)[None, None])[0, 0]
        self._kept[number] = self._kept[number].heard(packed.to(self._kept[number].psi.device))
        before, told = self._tails[number], self._listener.told(on_tail)
        if before is not None:
            told[..., : before.shape[-1]] += before
        self._tails[number] = told
        B, Hq, Q, _ = query.shape
        return part.out.to(query.dtype).view(B, Hq, Q, -1)

    @property
    def is_due(self) -> bool:
        """Whether to decide, now that a pass is over."""
        return self._since > 0 and self._trigger.after_pass(self._since)

    def is_due_before(self, tokens: int) -> bool:
        """Whether to decide before a pass of so many tokens."""
        return tokens > 1 and self._since > 0 and self._trigger.before_turn(self._since)

    @property
    def _since(self) -> int:
        """Tokens that were read since the last decision."""
        return self._memories[0].tail.length - self._known

    @torch.no_grad()
    def decide(self) -> list[KeepPlan]:
        """Decide and evict; returns the plans of all layers, over all tokens so far."""
        visible = Prompt(self._later).valid
        span = self.prompt.length
        for number, memory in enumerate(self._memories):
            self._take_tail(number, memory, visible, span)
        self.prompt = Prompt(torch.cat([self.prompt.modality, self._later], 1))
        self._later, self._known, self._tails = self._later[:, :0], 0, [None] * len(self._memories)
        heads = self._kept[0].plan.counts.shape[1]
        decisions = Decisions(self.method, self.prompt.modality, heads=heads, layers=len(self._memories))
        wanted = decisions.decide_all([own.dense(self.prompt.length) for own in self._kept])
        plans = []
        for number, (memory, plan) in enumerate(zip(self._memories, wanted, strict=True)):
            held = self._kept[number].plan
            plan = plan.within(held)
            device = memory.kept.counts.device
            memory.narrow(held.to(device), plan.to(device))
            self._kept[number] = self._kept[number].subset(plan)
            plans.append(plan)
        return plans

    def _take_tail(self, number: int, memory: LayerMemory, visible: Tensor, span: int) -> None:
        """Make candidates of a layer's tail."""
        keys, values = memory.tail.written()
        device = visible.device
        frame = self._frames[number]
        query = keys.new_zeros(len(keys), frame.query.shape[1], *keys.shape[2:])
        view = replace(frame, query=query, key=keys, value=values, modality=self._later.to(keys.device))
        worth = self.method.worth(view)
        psi = self._tails[number]
        psi = keys.new_zeros(keys.shape[:3], dtype=torch.float32) if psi is None else psi
        if not isinstance(self.method, GroupedMethod):
            # Not by who attends to them: later tokens have a score of their own, as those of the prompt had.
            psi = psi + self.method.score(view).to(psi.device)
        more = Candidates.chosen(
            KeepPlan.of_tokens(visible, keys.shape[1]), psi.to(device), None if worth is None else worth.to(device)
        )
        held = self._kept[number].plan.to(keys.device)
        memory.fold_tail(held, visible.to(keys.device))
        self._kept[number] = self._kept[number].followed_by(more, span)
