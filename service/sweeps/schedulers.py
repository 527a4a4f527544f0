"""Settings of the schedulers: which trials of a sweep end early, or go on from another's state."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ...workers.settings import Settings
from .storable import no_bool

Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(no_bool)]


class NoScheduler(Settings):
    """Every trial is trained to its end."""

    name: Literal["none"] = Field("none", description="every trial is trained to its end")


class Stopping(Settings):
    """What the schedulers that end trials early have in common."""

    grace_epochs: Count = Field(
        1, description="epochs before which none is ended; rounded up to the next evaluation, if there is none then"
    )

    def grace(self, every_epochs: int) -> int:
        """Return the epochs before which no trial is ended, where one is evaluated every so many epochs."""
        return -(-self.grace_epochs // every_epochs) * every_epochs


class Asha(Stopping):
    """Asynchronous successive halving.

    Rungs are at grace * reduction^k epochs; a trial goes on from a rung if it is among the best 1/reduction of those
    that came to it so far.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020, https://arxiv.org/abs/1810.05934
    """

    name: Literal["asha"] = Field("asha", description="asynchronous successive halving")
    reduction: Annotated[Count, Field(ge=2)] = Field(3, description="at each rung, the best one of so many goes on")


class Median(Stopping):
    """The median stopping rule.

    A trial ends whose best is worse than the median of the others' running means at the same epoch.

    Source: Golovin et al., "Google Vizier", KDD 2017
    """

    name: Literal["median"] = Field("median", description="the median stopping rule")
    min_trials: Count = Field(3, description="other trials that must have come as far")


class Pbt(Settings):
    """Population based training: at each round, the worst trials go on from the best ones' states and changed values.

    Source: Jaderberg et al., "Population Based Training of Neural Networks", 2017, https://arxiv.org/abs/1711.09846
    """

    name: Literal["pbt"] = Field("pbt", description="population based training")
    every_epochs: Count = Field(5, description="epochs between rounds")
    quantile: Annotated[float, Field(gt=0, le=0.5)] = Field(0.25, description="share of the worst, and of the best")
    resample: Annotated[float, Field(ge=0, le=1)] = Field(
        0.25, description="probability that a value is drawn anew rather than changed a little"
    )
    factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=20)] = Field(
        (0.8, 1.2), description="a number is multiplied by one of these; of a choice, a neighbour is taken"
    )


AnyScheduler = Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="name")]
