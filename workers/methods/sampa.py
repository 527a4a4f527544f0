"""SAMPa: the two gradients of a sharpness-aware step, made independent of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Half, Moment, Perturbing, Start, Step, Update, perturb

if TYPE_CHECKING:
    from torch import Tensor


class Sampa(Perturbing):
    """SAMPa-lambda on pairs.

    With ``g_t`` the plain gradient carried into the step, and ``g_0 = grad f(x_0; xi_0)``::

        x~_t    = x_t + rho * g_t / (||g_t|| + 1e-12)
        p_t     = grad f(x~_t; xi_t)                     the perturbed half
        y_{t+1} = look-ahead(x_t, g_t)
        g_{t+1} = grad f(y_{t+1}; xi_{t+1})              the plain half
        x_{t+1} = base step(x_t, (1 - lambda) * p_t + lambda * g_{t+1})

    Both halves need only what is known when the step starts, so they run at the same time. With
    ``perturbation: pair`` each pair climbs along the plain gradient of its own shard; the look-ahead
    always uses the mean.

    Source: Xie, Pethick, Cevher, "SAMPa", NeurIPS 2024, https://arxiv.org/abs/2410.10683
    """

    paired: ClassVar[bool] = True
    name: Literal["sampa"] = Field("sampa", description="parallel sharpness-aware minimization on pairs")
    rho: float = Field(0.1, ge=0, description="radius of the perturbation, in units of the weights")
    lam: float = Field(
        0.2, alias="lambda", ge=0, le=1, description="weight of the plain gradient in the update; the paper's lambda"
    )
    perturbation: Literal["global", "pair"] = Field(
        "global", description="whose gradient perturbs: the mean over all pairs, or each pair's own"
    )

    def start(self, now: Moment) -> Start:
        got = yield (Half("plain", 0, lambda out, _: out.copy_(now.weights)),)
        return got["plain"]

    def step(self, now: Moment) -> Step:
        x, g = now.weights, now.carried
        assert g is not None, "start() gives the first step its plain gradient"
        got = yield (
            Half("perturbed", now.step, lambda out, shard: perturb(x, g.of(shard), out, rho=now.rho)),
            Half("plain", now.step + 1, lambda out, _: now.look_ahead(g.mean, out)),
        )
        return Update(blend(got["perturbed"].mean, got["plain"].mean, lam=self.lam), carried=got["plain"])


def blend(perturbed_gradient: Tensor, plain_gradient: Tensor, *, lam: float) -> Tensor:
    """Return ``(1 - lambda) * p + lambda * g``, written over the perturbed gradient.

    Exact at both ends: ``p`` for lambda 0, ``g`` for lambda 1.

    Args:
        perturbed_gradient: ``p``; shape ``(n,)``, floating. Overwritten.
        plain_gradient: ``g``; same shape, dtype and device.
        lam: The paper's lambda, in [0, 1].

    Source: Xie, Pethick, Cevher, "SAMPa", NeurIPS 2024, https://arxiv.org/abs/2410.10683
    """
    return perturbed_gradient.lerp_(plain_gradient, lam)
