"""What a sweep tries next: Ray Tune's searchers, asked one configuration after the other.

The same calls in the same order give the same suggestions, in any process. Of a list, searchers see the indexes alone,
so that its values may be of any kind.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import JsonValue

from .space import Domain, Values
from .spec import SweepSpec


class Search:
    """Suggests configurations, whatever comes of them.

    Attributes:
        adaptive: Whether what is told changes what is suggested next.
    """

    adaptive = False

    def suggest(self, configuration: int) -> Values:
        """Return the values of a configuration by field path; to be asked for 0, 1, 2 ... in turn."""
        raise NotImplementedError

    def tell(self, configuration: int, score: float | None) -> None:
        """Say how a suggested configuration did: its metric, which is no finite number if it fell apart, or None if
        nothing is known of it."""

    def tell_other(self, values: Mapping[str, JsonValue], score: float | None) -> None:
        """Say how values did that were not suggested; tell None of the configuration in whose place they were."""


class Grid(Search):
    """All points of a grid, in Tune's order: the first field changes fastest."""

    def __init__(self, values: Mapping[str, list[JsonValue]]) -> None:
        from ray.tune.search.variant_generator import generate_variants, grid_search

        self._values = values
        self._points = [
            spec for _, spec in generate_variants({p: grid_search(range(len(v))) for p, v in values.items()})
        ]

    def suggest(self, configuration: int) -> Values:
        return {path: self._values[path][index] for path, index in self._points[configuration].items()}


class Random(Search):
    """Each configuration drawn for itself, by Tune's domains from the search's seed and the configuration's index."""

    def __init__(self, spec: SweepSpec) -> None:
        self._seed, self._space = spec.seed, spec.space
        self._domains = {path: tune_domain(domain) for path, domain in spec.space.items()}

    def suggest(self, configuration: int) -> Values:
        import numpy as np

        drawn = np.random.RandomState([self._seed, configuration])
        found = {path: domain.sample(random_state=drawn) for path, domain in self._domains.items()}
        return _values_of(found, self._space)


class Model(Search):
    """Optuna's model of the metric, by Tune's OptunaSearch: TPE, or a Gaussian process.

    Configurations that were suggested and not told of yet count as well, so that several at once differ.
    """

    adaptive = True

    def __init__(self, spec: SweepSpec) -> None:
        from ray.tune.search.optuna import OptunaSearch

        self._space, self._metric = spec.space, spec.metric
        self._worse, self._worst = (max if spec.mode == "min" else min), math.nan  # of what was told
        domains = {path: tune_domain(domain) for path, domain in spec.space.items()}
        with quiet():
            self._tune = OptunaSearch(
                OptunaSearch.convert_search_space(domains),
                metric=spec.metric,
                mode=spec.mode,
                sampler=_sampler_of(spec),
            )

    def suggest(self, configuration: int) -> Values:
        with quiet():
            found: dict[str, Any] = self._tune.suggest(str(configuration))
        return _values_of(found, self._space)

    def tell(self, configuration: int, score: float | None) -> None:
        score = self._counted(score)
        with quiet():
            if _finite(score):
                self._tune.on_trial_complete(str(configuration), {self._metric: score})
            else:
                self._tune.on_trial_complete(str(configuration), error=True)

    def tell_other(self, values: Mapping[str, JsonValue], score: float | None) -> None:
        parameters = {
            path: domain.listed.index(values[path]) if domain.listed else values[path]
            for path, domain in self._space.items()
        }
        score = self._counted(score)
        with quiet():
            self._tune.add_evaluated_point(parameters, score, error=not _finite(score))

    def _counted(self, score: float | None) -> float | None:
        """Return what a score counts as: one that is no finite number as the worst so far, since the model learns
        nothing from what it is told has failed."""
        if score is None:
            return None
        if math.isfinite(score):
            self._worst = score if math.isnan(self._worst) else self._worse(self._worst, score)
        return score if math.isfinite(score) else self._worst


def search_of(spec: SweepSpec) -> Search:
    """Return the search that a sweep asks for, as it is before its first suggestion."""
    if spec.search == "grid":
        return Grid(spec.grid)
    return Random(spec) if spec.search == "random" else Model(spec)


def tune_domain(domain: Domain) -> Any:
    """Return Tune's domain: a range, or the indexes of a list."""
    from ray import tune

    if domain.integer:
        low, high = domain.integer
        return tune.randint(low, high + 1)  # Tune's upper end is left out
    if domain.ends:
        return tune.loguniform(*domain.ends) if domain.loguniform else tune.uniform(*domain.ends)
    return tune.choice(range(len(domain.listed)))


def _sampler_of(spec: SweepSpec) -> Any:
    from optuna.samplers import GPSampler, TPESampler

    if spec.search == "gp":
        return GPSampler(seed=spec.seed, n_startup_trials=10)
    return TPESampler(seed=spec.seed, n_startup_trials=10, multivariate=True, constant_liar=True)


def _values_of(found: Mapping[str, Any], space: Mapping[str, Domain]) -> Values:
    """Return what a searcher found as plain numbers and values of lists, in the order of the space."""
    return {
        path: domain.listed[int(found[path])]
        if domain.listed
        else int(found[path])
        if domain.integer
        else domain.clip(float(found[path]))
        for path, domain in space.items()
    }


def _finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


@contextmanager
def quiet() -> Iterator[None]:
    """Let neither Optuna nor Tune log or warn, without changing what others see of them."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
