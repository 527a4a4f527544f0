"""The shape of every method: rounds of halves in, an update out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ..schedules import Schedule
from ..settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["perturbed", "plain"]
EPSILON = 1e-12  # of the paper's released code; keeps a zero gradient from dividing by zero
_NORM_CHUNK = 1 << 16  # float32 sums over millions of terms lose digits; sums of sums don't


@dataclass(frozen=True)
class Half:
    """One gradient of every shard, to be taken in the same round as the others it is yielded with.

    Attributes:
        kind: Which half of the pair.
        batch: Index of the batch whose shards the gradient is taken on.
        place: ``place(out, shard)`` writes the point of ``shard`` into ``out``, shape ``(n,)``; it is called
            only where that half is hosted.
    """

    kind: Kind
    batch: int
    place: Callable[[Tensor, int], object]


@dataclass(frozen=True)
class Gradients:
    """What a kind of half gave: the mean over shards, in fixed order, and perhaps single shards' own.

    Attributes:
        mean: Shape ``(n,)``; the same bits on every worker.
        own: Shard to gradient, shape ``(n,)``, for the shards whose next perturbation is computed here; empty
            where the mean perturbs.
    """

    mean: Tensor
    own: Mapping[int, Tensor] = field(default_factory=dict)

    def of(self, shard: int) -> Tensor:
        """Return the gradient that perturbs ``shard``: its own if it is kept, else the mean."""
        return self.own[shard] if self.own else self.mean


@dataclass(frozen=True)
class Moment:
    """All that a step may read.

    Attributes:
        step: Index of the step, from 0.
        weights: All parameters, flattened; shape ``(n,)``. Not to be written.
        carried: What the step before handed over, or None for methods that carry nothing.
        rho: Radius of this step, in units of the weights.
        look_ahead: ``look_ahead(gradient, out)`` writes into ``out`` where the base optimizer's step with
            ``gradient`` would land; the optimizer's state stays as it is.
    """

    step: int
    weights: Tensor
    carried: Gradients | None
    rho: float
    look_ahead: Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Update:
    """How a step ends: the base optimizer steps with ``direction``, the next step receives ``carried``."""

    direction: Tensor
    carried: Gradients | None = None


Round = tuple[Half, ...]
Answer = Mapping[Kind, Gradients]
Start = Generator[Round, Answer, Gradients | None]
Step = Generator[Round, Answer, Update]


class Method(Settings):
    """Settings of a method, and its arithmetic."""

    paired: ClassVar[bool] = False  # True: both halves of a pair are computed in the same round
    name: str

    def start(self, now: Moment) -> Start:
        """Yield the rounds that must come before step 0; return what step 0 receives as ``carried``."""
        yield from ()
        return None

    def step(self, now: Moment) -> Step:
        """Yield the rounds of one step; return its update."""
        raise NotImplementedError

    def radius(self, step: int, steps: int) -> float:
        """Return rho of ``step``, in units of the weights; 0 for methods that don't perturb."""
        return 0.0

    @property
    def perturbs_by_shard(self) -> bool:
        """Whether each shard is perturbed by its own gradient rather than by the mean."""
        return False


class Perturbing(Method):
    """Settings that all methods with a perturbation share."""

    rho: float = Field(0.05, ge=0, description="radius of the perturbation, in units of the weights")
    rho_schedule: Schedule = Field(Schedule(), description="how rho changes from step to step")
    perturbation: Literal["global", "shard", "pair"] = Field(
        "global", description="whose gradient perturbs: the mean over all shards, or each shard's own"
    )

    def radius(self, step: int, steps: int) -> float:
        return self.rho * self.rho_schedule.factor(step, steps)

    @property
    def perturbs_by_shard(self) -> bool:
        return self.perturbation != "global"


def norm(vector: Tensor) -> Tensor:
    """Return the L2 norm of ``vector``, shape ``(n,)``, as a tensor of shape ``()``: a norm of norms of pieces."""
    whole = len(vector) - len(vector) % _NORM_CHUNK
    squares = vector[whole:].norm().square()
    if whole:
        squares = squares + vector[:whole].view(-1, _NORM_CHUNK).norm(dim=1).square().sum()
    root: Tensor = squares.sqrt()
    return root


def perturb(weights: Tensor, gradient: Tensor, out: Tensor, *, rho: float) -> Tensor:
    """Write the point where the perturbed half takes its gradient into ``out``, and return it.

    With ``x`` the weights and ``g`` the plain gradient::

        x~ = x + rho * g / (||g|| + 1e-12)

    A gradient so small that its squares underflow gives a step far below ``rho``, never an infinite one.

    Args:
        weights: All parameters, flattened; shape ``(n,)``, floating.
        gradient: Same shape, dtype and device as ``weights``.
        out: Receives the point; the same again, and no alias of the two.
        rho: Radius of the perturbation, in units of the weights; ``>= 0``.

    Raises:
        ValueError: If the shapes differ or ``rho`` is negative.

    Source: Foret et al., "Sharpness-Aware Minimization", ICLR 2021, https://arxiv.org/abs/2010.01412;
    Xie, Pethick, Cevher, "SAMPa", NeurIPS 2024, https://arxiv.org/abs/2410.10683
    """
    if not weights.shape == gradient.shape == out.shape:
        raise ValueError(
            f"weights, gradient and out must have one shape, but have {tuple(weights.shape)}, "
            f"{tuple(gradient.shape)} and {tuple(out.shape)}"
        )
    if rho < 0:
        raise ValueError(f"rho must be 0 or more, but is {rho}")
    return out.copy_(gradient).mul_(rho / (norm(gradient) + EPSILON)).add_(weights)
