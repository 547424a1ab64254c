"""One prompt being read: from views of its layers to kept entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor

from madakv.attention import ragged_partial, weights_on_prompt
from madakv.cache import LayerMemory
from madakv.merge import merge_evicted
from madakv.methods import Method
from madakv.plan import KeepPlan
from madakv.reading.allocate import Decisions
from madakv.reading.candidates import Candidates
from madakv.reading.echo import echo_places
from madakv.reading.probes import Probe, echo, lookahead
from madakv.reading.prompt import Prompt
from madakv.reading.revision import Revision
from madakv.reading.scores import Scores
from madakv.reading.triggers import Trigger, trigger_of
from madakv.recording import Recording
from madakv.scoring import LayerView


class Phase(Enum):
    """Where a reading stands."""

    OPEN = "the prompt is read, or about to be"
    HOLDING = "the prompt was read and is kept whole, until it is decided"
    DONE = "it is decided what stays"


class Reading:
    """Scores the layers of a prompt, decides when its trigger says so, and fills their memories.

    It belongs to one pass on one cache. Memories know nothing of it.

    Args:
        method: how to score and decide.
        prompt: what is read.
        memories: of the layers that are evicted, in order.
        probes: who is read behind the prompt in the same pass, in the order of their tokens.
        trigger: when to decide; None: as the method has it.
        scores: of all layers, where they are known already.
        recording: who looks on; None: nobody.
    """

    def __init__(
        self,
        method: Method,
        prompt: Prompt,
        memories: Sequence[LayerMemory],
        *,
        probes: Sequence[Probe] = (),
        trigger: Trigger | None = None,
        scores: Scores | None = None,
        recording: Recording | None = None,
    ) -> None:
        self.method = method
        self.prompt = prompt
        self.phase = Phase.OPEN
        self._memories = tuple(memories)
        self._probes = list(probes)
        self._trigger = trigger_of(method) if trigger is None else trigger
        self.scores = Scores(method, prompt.modality.device) if scores is None else scores
        self._recording = recording
        self._decisions: Decisions | None = None
        self._held: list[KeepPlan] = []
        # A view of no tokens of each layer, for those that decide again.
        self._frames: list[LayerView] = []
        if self._trigger.repeats:
            Revision.check(method)
        self._listener = lookahead(method)
        self._awaits_echo = False
        self._most_echoed = torch.zeros(len(prompt.modality), dtype=torch.int64, device=prompt.modality.device)
        self._relevance = torch.zeros(prompt.modality.shape, dtype=torch.float32, device=prompt.modality.device)
        self._later = prompt.modality[:, :0]

    # -- the prompt's pass

    def add_probe(self, probe: Probe) -> None:
        """Announce tokens that are read behind all others in the prompt's pass."""
        self._probes.append(probe)

    def hold_for_echo(self, most: Tensor) -> None:
        """Keep the prompt whole until an echo was heard that is read after it; see `hearing_echo`.

        Args:
            most: [B] int64, how many tokens of each row that is of.
        """
        self._awaits_echo, self._most_echoed = True, most.to(self._most_echoed.device)

    @property
    def modality(self) -> Tensor:
        """[B, T] of `Modality` values: of all tokens of the prompt's pass, those of probes included."""
        own = self.prompt.modality
        return torch.cat([own, *(probe.modality(own) for probe in self._probes)], 1)

    @property
    def tokens(self) -> int:
        """T, how many that are."""
        return self.prompt.length + sum(probe.span for probe in self._probes)

    @property
    def layers_read(self) -> int:
        """How many layers have been kept of."""
        return len(self._held)

    @torch.no_grad()
    def layer(self, view: LayerView) -> None:
        """Take in the next layer: score it, and keep what is decided, or all of it as long as nothing is.

        Without gradients: an autograd graph behind the kept entries would keep the evicted ones alive.

        Args:
            view: of all tokens of the prompt's pass.
        """
        N = self.prompt.length
        own = view.prefix(N)
        number = len(self.scores)
        if self._recording is not None:
            self._recording.read(own)
        sought = self.scores.add_layer(own, seek=self._awaits_echo)
        if sought is not None:
            self._relevance += sought
        start = N
        for probe in self._probes:
            for psi in probe.listen(view, start, N):
                self.scores.add(number, psi)
            start += probe.span
        self.settle(own)

    @torch.no_grad()
    def settle(self, view: LayerView) -> None:
        """Keep what is decided of the next layer, which has been scored; or all of it, as long as nothing is.

        Args:
            view: of the prompt alone.
        """
        number, heads = self.layers_read, view.key.shape[1]
        if self._decisions is None:
            layers = len(self._memories)
            self._decisions = Decisions(self.method, self.prompt.modality, heads=heads, layers=layers)
        self._decisions.observe(view)
        memory, device = self._memories[number], view.key.device
        if self._at_once:
            plan = self._decisions.decide(self.scores.final(number))
            if not self._trigger.repeats:
                self.scores.forget(number)
            # What others lose has to be gone before this layer takes memory.
            self._narrow(self._decisions.plans[:-1])
            memory.keep(view.key, view.value, plan.to(device))
            self._merge(memory, view.key, view.value, plan.to(device))
        else:
            plan = KeepPlan.everything(view.modality, heads)
            memory.keep(view.key, view.value, plan.to(device))
        self._held.append(plan)
        if self._trigger.repeats:
            self._frames.append(view.without_tokens())
        if self.layers_read == len(self._memories) and not self._at_once:
            self.phase = Phase.HOLDING

    # -- later passes

    @property
    def repeats(self) -> bool:
        """Whether it is decided again, so that whatever is read has to be announced."""
        return self._trigger.repeats

    def announce(self, modality: Tensor) -> None:
        """Say what the next pass behind the prompt's reads, [B, n] of `Modality` values."""
        self._later = torch.cat([self._later, modality.to(self._later.device)], 1)

    @property
    def awaits_echo(self) -> bool:
        """Whether all layers were read, and an echo of what they found relevant is to come."""
        return self._awaits_echo and self.layers_read == len(self._memories)

    def echo_places(self, summed: Callable[[Tensor], Tensor] = lambda own: own) -> tuple[Tensor, Tensor]:
        """What that echo is of, see there.

        Args:
            summed: over the processes among which a layer's heads are dealt out, so that all read the same.
        """
        return echo_places(self.prompt.modality, self._most_echoed, summed(self._relevance))

    @contextmanager
    def hearing_echo(self, places: Tensor, heard: Tensor) -> Iterator[None]:
        """What is read inside the block, in one pass, is the prompt's text once more; nothing is decided meanwhile.

        Args:
            places: [B, E] int64, where the text stands in the prompt.
            heard: [B, E] bool, what is more than padding.
        """
        before, self._awaits_echo = self._listener, False
        self._listener = echo(self.method, heard, self.prompt.modality, places)
        try:
            yield
        except BaseException:
            # What some layers have heard is no echo.
            self._awaits_echo = True
            raise
        finally:
            self._listener = before

    @torch.no_grad()
    def hear(self, number: int, query: Tensor, lse: Tensor, *, scaling: float, softcap: float | None) -> None:
        """Listen to what later tokens pay to the prompt, which is still whole.

        Args:
            number: of the layer.
            query: [B, Hq, Q, Dk].
            lse: [B, H, G * Q] fp32, log-sum-exp of their logits over all that they see.
            scaling, softcap: of the logits.
        """
        weights = weights_on_prompt(query, self._memories[number].kept, lse, scaling=scaling, softcap=softcap)
        valid = self.prompt.valid.to(query.device)
        paid = weights[0].new_zeros(len(valid), *weights[0].shape[:3], self.prompt.length)
        for row, own, told in zip(paid, valid, weights, strict=True):
            row[..., own] = told
        self.scores.add(number, self._listener.told(paid))

    def attend(
        self,
        number: int,
        query: Tensor,
        *,
        scaling: float,
        mask: Tensor | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of later tokens over a layer's memory, which are heard on the way; see `ragged_attention`."""
        memory = self._memories[number]
        if self._listener.heard is not None:
            # What its tokens see of each other is causal, and a mask says no more.
            return self._attend_echo(number, query, scaling=scaling, softcap=softcap, sinks=sinks)
        part = ragged_partial(
            query, memory.kept, memory.tail, scaling=scaling, mask=mask, softcap=softcap, sinks=sinks
        )
        self.hear(number, query, part.lse, scaling=scaling, softcap=softcap)
        B, Hq, Q, _ = query.shape
        return part.out.to(query.dtype).view(B, Hq, Q, -1)

    def _attend_echo(
        self,
        number: int,
        query: Tensor,
        *,
        scaling: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """The same of an echo, which may be as long as the prompt: dense attention, and nothing of E x N is held."""
        memory, prompt, E = self._memories[number], self.prompt, query.shape[2]
        keys, values = memory.kept.rectangle(prompt.valid.to(query.device))
        keys = torch.cat([keys, memory.tail.keys[:, :, -E:]], 2)
        values = torch.cat([values, memory.tail.values[:, :, -E:]], 2)
        view = LayerView(
            query=query,
            key=keys,
            value=values,
            modality=torch.cat([prompt.modality, self._listener.modality(prompt.modality)], 1).to(query.device),
            scaling=scaling,
            softcap=softcap,
            sinks=sinks,
        )
        psi, out = self._listener.attend(view, prompt.length)
        self.scores.add(number, psi)
        return out

    # -- the decision

    @property
    def is_due(self) -> bool:
        """Whether to decide, now that a pass is over."""
        # Of a method that sees all layers, the first moment at which it can be decided.
        if self._trigger.at_once:
            return not self._awaits_echo
        return self._listener.reduce != "most" and self._trigger.after_pass(self._memories[0].tail.length)

    def is_due_before(self, tokens: int) -> bool:
        """Whether to decide before a pass of so many tokens behind the prompt's."""
        return (
            tokens > 1
            and self._listener.reduce != "most"
            and self._trigger.before_turn(self._memories[0].tail.length)
        )

    @torch.no_grad()
    def decide(self) -> list[KeepPlan]:
        """Decide what is still open, and evict it; returns the plans of all layers."""
        if self._decisions is None or self.layers_read < len(self._memories):
            raise RuntimeError("decided before all layers were read")
        if self.phase is Phase.HOLDING:
            plans = self._decisions.decide_all([self.scores.final(number) for number in range(len(self.scores))])
            for number, (memory, plan) in enumerate(zip(self._memories, plans, strict=True)):
                device = memory.kept.counts.device
                whole = memory.kept.rectangle(self.prompt.valid.to(device)) if self.method.merge else None
                self._keep_less(number, plan)
                if whole is not None:
                    self._merge(memory, *whole, plan.to(device))
        self.phase = Phase.DONE
        return self._decisions.plans

    def revision(self) -> Revision | None:
        """Who decides again, once this reading is done; None if nobody does."""
        if not self._trigger.repeats:
            return None
        kept = [Candidates.chosen(plan, *self.scores.parts(number)) for number, plan in enumerate(self._held)]
        return Revision(self.method, self.prompt, self._memories, kept, self._frames, self._trigger, self._later)

    @property
    def _at_once(self) -> bool:
        return self._trigger.at_once and not self.method.sees_all_layers and not self._awaits_echo

    def _narrow(self, plans: Sequence[KeepPlan]) -> None:
        for number, plan in enumerate(plans):
            self._keep_less(number, plan)

    def _keep_less(self, number: int, plan: KeepPlan) -> None:
        held, memory = self._held[number], self._memories[number]
        if plan is not held:
            device = memory.kept.counts.device
            memory.narrow(held.to(device), plan.to(device))
            self._held[number] = plan

    def _merge(self, memory: LayerMemory, keys: Tensor, values: Tensor, plan: KeepPlan) -> None:
        """Leave a trace of evicted entries in those that stay, if the method does so."""
        if self.method.merge is not None:
            modality = self.prompt.modality.to(keys.device)
            memory.replace(*merge_evicted(keys, values, plan, modality, self.method.merge))
