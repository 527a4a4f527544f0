"""How a rate changes from step to step: constant, linear or cosine, after an optional warm-up.

A schedule is a pure function of the step, so that a resumed run continues on the same curve. It scales a
base value (the learning rate, or rho) by a factor in [0, 1].
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from .settings import Settings


class Schedule(Settings):
    """The factor of each step: it rises over the warm-up, then follows the named curve to ``final``."""

    name: Literal["constant", "linear", "cosine"] = Field("constant", description="the curve after the warm-up")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps over which the factor rises linearly; the step after them has factor 1"
    )
    final: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="factor that linear and cosine approach at the last step"
    )

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of ``step``, counted from 0, in a run of ``steps`` steps.

        With W the warm-up, T the steps and ``u = (t - W) / (T - W)``::

            t < W      (t + 1) / (W + 1)
            constant   1
            linear     1 - (1 - final) * u
            cosine     final + (1 - final) * (1 + cos(pi * u)) / 2

        The cosine is that of ``torch.optim.lr_scheduler.CosineAnnealingLR`` stepped once per step.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.name == "constant":
            return 1.0
        u = min((step - self.warmup_steps) / max(steps - self.warmup_steps, 1), 1.0)
        if self.name == "linear":
            return 1.0 - (1.0 - self.final) * u
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * u)) / 2.0
