"""What is trained, in which order, for how long and at which learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from madakv.evaluation.digits import Shape

SEED = 7
TOKENS_PER_STEP = 6000
CAPTIONS_PER_STEP = 190

ASKED = {"code": 3, "show": 3, "owner": 3, "which": 2, "list": 1}
"""Questions per training document, which do not see each other."""

TASKS: Mapping[str, Shape | None] = {
    "copy": None,
    "caption": None,
    "codes4": Shape(0, 4, 0, 4, {"code": 4}),
    "codes10": Shape(0, 10, 0, 6, {"code": 8}),
    # With one owner or two, guessing is nearly as good as looking the name up, and the look-up is not learnt.
    "owners2": Shape(2, 1, 2, 1, {"owner": 2, "show": 2, "code": 1}),
    "owners4": Shape(4, 2, 4, 2, {"owner": 4, "show": 2, "code": 2, "which": 1, "list": 1}),
    **{f"images{n}": Shape.of(n, ASKED) for n in (2, 4, 6, 8, 12)},
}


@dataclass(frozen=True)
class Stage:
    """`mix` gives the chance of every task, one of which is drawn per step.

    The learning rate warms up over `warmup` steps, is constant, and falls linearly over the last `decay`
    steps to `end` times its height. With `hints`, what can be copied is also read off the middle of the text model:
    from answers alone copying settles in the last layer, and there it is too late for the second half of a hop.
    """

    name: str
    steps: int
    mix: Mapping[str, float]
    lr: float = 1e-3
    warmup: int = 0
    decay: int = 0
    end: float = 0.03
    hints: bool = False

    def learning_rate(self, step: int) -> float:
        """At `step`, counted from 0 within the stage."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        left = self.steps - step
        if left >= self.decay:
            return self.lr
        return self.lr * (self.end + (1 - self.end) * left / self.decay)


LAST_MIX = {"images12": 0.65, "images8": 0.1, "images6": 0.05, "images4": 0.05, "caption": 0.15}

STAGES = (
    Stage("copy", 450, {"copy": 1.0}, warmup=50),
    Stage("captions", 500, {"caption": 0.85, "copy": 0.15}),
    Stage("codes of 4", 150, {"codes4": 0.6, "caption": 0.3, "copy": 0.1}),
    Stage("codes of 10", 150, {"codes10": 0.6, "caption": 0.3, "copy": 0.1}),
    Stage("2 images", 350, {"images2": 0.7, "caption": 0.2, "codes10": 0.1}),
    Stage("4 images", 900, {"images4": 0.65, "images2": 0.15, "caption": 0.2}),
    Stage("6 images, early", 50, {"images6": 0.6, "images4": 0.15, "images2": 0.05, "caption": 0.2}),
    Stage("owners of 4", 150, {"owners4": 0.7, "images4": 0.15, "caption": 0.15}),
    Stage("owners of 2", 300, {"owners2": 0.45, "owners4": 0.3, "images4": 0.15, "caption": 0.1}),
    Stage("early copying", 350, {"copy": 0.5, "owners4": 0.3, "images4": 0.1, "caption": 0.1}, hints=True),
    Stage("6 images", 300, {"images6": 0.6, "images4": 0.1, "owners4": 0.15, "caption": 0.15}),
    Stage("8 images", 350, {"images8": 0.6, "images6": 0.1, "owners4": 0.15, "caption": 0.15}),
    Stage("12 images", 1100, LAST_MIX),
    Stage("12 images, cooling", 1200, LAST_MIX, decay=1200),
)
