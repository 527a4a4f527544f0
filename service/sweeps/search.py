"""Where configurations come from: Ray Tune's searchers, and the grid, behind one small class.

The same calls in the same order give the same suggestions, in any process.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import JsonValue

from .space import Domain, Values

if TYPE_CHECKING:
    from .spec import SweepSpec


class Search(Protocol):
    """What finds configurations.

    Attributes:
        adaptive: Whether suggestions depend on what is told.
    """

    adaptive: bool

    def suggest(self, configuration: int) -> Values:
        """Return a configuration's values; to be called for 0, 1, 2 ... in order."""

    def tell(self, configuration: int, score: float | None) -> None:
        """Take what a configuration has come to, or None if it failed."""

    def tell_other(self, values: Values, score: float | None) -> None:
        """Take what a configuration has come to that was not suggested."""


def search_of(spec: SweepSpec) -> Search:
    """Return the search of a sweep, at its beginning."""
    if spec.search == "grid":
        names = list(spec.grid)
        return Listed([dict(zip(names, point, strict=True)) for point in itertools.product(*spec.grid.values())])
    if spec.search == "random":
        return Random(spec.space, spec.seed)
    return Optuna(spec)


class Listed:
    """Configurations that are known beforehand."""

    adaptive = False

    def __init__(self, points: list[Values]) -> None:
        self._points = points

    def suggest(self, configuration: int) -> Values:
        return self._points[configuration]

    def tell(self, configuration: int, score: float | None) -> None: ...

    def tell_other(self, values: Values, score: float | None) -> None: ...


class Random(Listed):
    """Independent draws from Tune's distributions, each configuration from a stream of its own."""

    def __init__(self, space: Mapping[str, Domain], seed: int) -> None:
        self._seed = seed
        self._domains = {path: tune_domain(domain) for path, domain in space.items()}

    def suggest(self, configuration: int) -> Values:
        stream = np.random.RandomState([self._seed, configuration])
        return {path: plain(domain.sample(random_state=stream)) for path, domain in self._domains.items()}


class Optuna:
    """Optuna's samplers, through Tune.

    Sources: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011 (tpe); Snoek et al., "Practical
    Bayesian Optimization of Machine Learning Algorithms", NIPS 2012 (gp)
    """

    adaptive = True

    def __init__(self, spec: SweepSpec) -> None:
        with _silence():
            import optuna
            from ray.tune.search.optuna import OptunaSearch

            samplers = optuna.samplers
            sampler = (
                samplers.GPSampler(seed=spec.seed)
                if spec.search == "gp"
                else samplers.TPESampler(seed=spec.seed, multivariate=True)
            )
            self._metric = spec.metric
            self._distributions = {path: _distribution(domain) for path, domain in spec.space.items()}
            self._lists = {path: domain.listed for path, domain in spec.space.items() if domain.listed}
            self._tune = OptunaSearch(self._distributions, metric=spec.metric, mode=spec.mode, sampler=sampler)

    def suggest(self, configuration: int) -> Values:
        with _silence():
            found = self._tune.suggest(str(configuration)) or {}
        return {
            path: self._lists[path][value] if path in self._lists else plain(value) for path, value in found.items()
        }

    def tell(self, configuration: int, score: float | None) -> None:
        with _silence():
            result = None if score is None else {self._metric: score}
            self._tune.on_trial_complete(str(configuration), result, error=score is None)

    def tell_other(self, values: Values, score: float | None) -> None:
        if score is None:
            return
        point = {
            path: self._lists[path].index(value) if path in self._lists else value for path, value in values.items()
        }
        with _silence():
            self._tune.add_evaluated_point(point, score)


def tune_domain(domain: Domain) -> Any:
    """Return Tune's word for a domain; whole numbers include both ends."""
    from ray import tune

    if domain.ends is None:
        return tune.choice(domain.listed)
    low, high = domain.ends
    return tune.randint(int(low), int(high) + 1) if domain.integer else getattr(tune, domain.kind)(low, high)


def _distribution(domain: Domain) -> Any:
    """Return Optuna's word for a domain; of a list, its indices, since values may be anything."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.ends is None:
        return CategoricalDistribution(range(len(domain.listed)))
    low, high = domain.ends
    if domain.kind == "integer":
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=domain.kind == "loguniform")


def plain(value: Any) -> JsonValue:
    """Return a value without numpy's types."""
    return value.item() if isinstance(value, np.generic) else value  # type: ignore[no-any-return]


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Optuna and Tune have to say about themselves out of the log."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
