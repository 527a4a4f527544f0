"""A searched field as coordinates that a smoother can use: numbers on their scale, choices as indicators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .space import Domain, key_of

Array = NDArray[np.float64]
_WIDE = 8.0  # a grid of numbers above zero whose ends differ by more than this ratio is taken to be logarithmic


@dataclass(frozen=True)
class Axis:
    """One searched field.

    A value lies at a ``place`` in [0, 1]: a number by its share of the range on the field's scale, a choice in the
    middle of the stretch that belongs to it.

    Attributes:
        path: The field, "method.rho" for example.
        log: Whether equal ratios of a number are equally far apart.
        low: Where the place is 0, in the field's units.
        high: Where it is 1.
        allowed: The only values there are, in order; empty for a range.
        choice: Whether values have no order.
        whole: Whether the field takes whole numbers only.
    """

    path: str
    log: bool = False
    low: float = 0.0
    high: float = 1.0
    allowed: tuple[JsonValue, ...] = ()
    choice: bool = False
    whole: bool = False
    _index: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def width(self) -> int:
        """Number of columns that a smoother sees."""
        return len(self.allowed) if self.choice else 1

    def place(self, value: JsonValue) -> float:
        """Return where a value lies; outside of [0, 1] if it is a number outside of the range.

        Raises:
            ValueError: If it can't be a value of this field.
        """
        if self.choice:
            return (self.index(value) + 0.5) / len(self.allowed)
        if not _is_number(value):
            raise ValueError(f"{value!r} is no number, but {self.path} was searched among numbers")
        return (self._scaled(float(value)) - self._start) / self._length  # type: ignore[arg-type]

    def index(self, value: JsonValue) -> int:
        """Return which of the choices a value is; raises as ``place``."""
        found = self._index.get(key_of(value))
        if found is None:
            raise ValueError(f"{value!r} is none of the choices of {self.path}: {', '.join(map(repr, self.allowed))}")
        return found

    def value(self, place: float) -> JsonValue:
        """Return the value at a place, the nearest one if only some are allowed."""
        if self.choice:
            return self.allowed[min(int(place * len(self.allowed)), len(self.allowed) - 1)]
        if self.allowed:
            return min(self.allowed, key=lambda value: abs(self.place(value) - place))
        number = self._start + place * self._length
        number = math.exp(number) if self.log else number
        return round(number) if self.whole else float(f"{number:.6g}")

    def snapped(self, places: Array) -> Array:
        """Return the places, shape (n,), of the allowed values nearest to ``places``."""
        if not (self.allowed or self.whole):
            return places
        return np.array([self.place(self.value(float(place))) for place in places])

    def columns(self, places: Array) -> Array:
        """Return what a smoother sees of ``places``, shape (n, width).

        Indicators are 1/sqrt(2) high, so that two choices are as far apart as the ends of a range.
        """
        if not self.choice:
            return places[:, None]
        index = np.minimum((places * len(self.allowed)).astype(int), len(self.allowed) - 1)
        return np.asarray(np.eye(len(self.allowed))[index] / math.sqrt(2))

    def _scaled(self, number: float) -> float:
        return math.log(max(number, 1e-300)) if self.log else number

    @property
    def _start(self) -> float:
        return self._scaled(self.low)

    @property
    def _length(self) -> float:
        return self._scaled(self.high) - self._start


def axes_of(space: Mapping[str, Domain]) -> list[Axis]:
    """Return the axis of each searched field, in their order."""
    return [_axis(path, domain) for path, domain in space.items()]


def _axis(path: str, domain: Domain) -> Axis:
    if domain.ends:
        low, high = domain.ends
        return Axis(path, domain.kind == "loguniform", float(low), float(high), whole=domain.kind == "integer")
    numbers: list[Any] = [value for value in domain.listed if _is_number(value)]
    if len(numbers) < len(domain.listed) or min(numbers) == max(numbers):
        index = {key_of(value): number for number, value in enumerate(domain.listed)}
        return Axis(path, allowed=tuple(domain.listed), choice=True, _index=index)
    low, high = min(numbers), max(numbers)
    between = domain.kind == "grid" and any(isinstance(value, float) for value in numbers)
    allowed = () if between else tuple(sorted(numbers))
    return Axis(path, low > 0 and high / low > _WIDE, float(low), float(high), allowed)


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def places_of(axes: Sequence[Axis], values: Sequence[Mapping[str, JsonValue]]) -> Array:
    """Return where configurations lie, shape (configurations, axes)."""
    return np.array([[axis.place(each[axis.path]) for axis in axes] for each in values]).reshape(-1, len(axes))


def columns_of(axes: Sequence[Axis], places: Array) -> Array:
    """Return what a smoother sees of ``places``, shape (n, axes), as shape (n, columns)."""
    return np.hstack([axis.columns(places[:, index]) for index, axis in enumerate(axes)])
