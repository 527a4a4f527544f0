"""What a sweep searches: the domain of each field, and how values of fields enter a job."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, JsonValue, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from ...workers.methods import METHODS
from ...workers.settings import Settings
from ..fields import show
from .storable import MOST, no_bool

Values = dict[str, JsonValue]  # by field path, "method.rho"
RANGES = ("uniform", "loguniform", "integer")
LISTS = ("choice", "grid")
MOST_VALUES = 1000
_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")  # 1e-3 and the like, which YAML 1.1 takes for text
_GOLDEN = (math.sqrt(5) - 1) / 2  # a share of a range at which no whole number is likely


def _number_of(value: JsonValue) -> JsonValue:
    number = float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else math.inf
    return number if math.isfinite(number) else value


Listed = Annotated[JsonValue, BeforeValidator(_number_of)]
Real = Annotated[float, BeforeValidator(no_bool)]
Whole = Annotated[int, Field(ge=-MOST, le=MOST), BeforeValidator(no_bool)]


class Domain(Settings):
    """The values of one field: exactly one of these."""

    uniform: tuple[Real, Real] | None = Field(None, description="from the first to the second, evenly")
    loguniform: tuple[Real, Real] | None = Field(None, description="from the first to the second, evenly on a log")
    integer: tuple[Whole, Whole] | None = Field(None, description="whole numbers, both ends included")
    choice: Annotated[list[Listed], Field(max_length=MOST_VALUES)] | None = Field(None, description="one of these")
    grid: Annotated[list[Listed], Field(max_length=MOST_VALUES)] | None = Field(None, description="each of these")

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        given = [kind for kind in (*RANGES, *LISTS) if getattr(self, kind) is not None]
        message = (
            f"give exactly one of {', '.join((*RANGES, *LISTS))}" + (f", not {' and '.join(given)}" if given else "")
            if len(given) != 1
            else _range_fault(self.kind, *self.ends)
            if self.ends
            else _list_fault(self.kind, self.listed)
        )
        if message:
            raise PydanticCustomError("domain", "{message}", {"message": message})
        return self

    @model_serializer(mode="wrap")
    def _as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        return {kind: values for kind, values in plain(self).items() if values is not None}

    @property
    def kind(self) -> str:
        """Which of the five it is."""
        return next(kind for kind in (*RANGES, *LISTS) if getattr(self, kind) is not None)

    @property
    def ends(self) -> tuple[float, float] | None:
        """Smallest and largest value of a range, in the field's units; None for a list."""
        return self.uniform or self.loguniform or self.integer

    @property
    def listed(self) -> list[JsonValue]:
        """The values of a choice or grid; empty for a range."""
        return self.choice or self.grid or []

    @property
    def samples(self) -> list[JsonValue]:
        """Values which, if all of them will do, make it likely that every one does; the first is used as an example."""
        if not self.ends:
            return self.listed
        low, high = self.ends
        inner = low + 1 if self.integer else self._at(_GOLDEN)
        return [low, inner, high] if inner != high else [low, high]

    def cut(self, count: int) -> list[JsonValue]:
        """Return ``count`` values of a range, evenly spaced on its scale, both ends included.

        Those between the ends are rounded to six digits.

        Args:
            count: At least 2; for integers at most as many as there are.
        """
        low, high = self._range
        shares = [index / (count - 1) for index in range(1, count - 1)]
        if self.integer:
            return [low, *(round(self._at(share)) for share in shares), high]
        return [low, *(float(f"{self._at(share):.6g}") for share in shares), high]

    @property
    def _range(self) -> tuple[float, float]:
        assert self.ends is not None, "only a range is cut"
        return self.ends

    def _at(self, share: float) -> float:
        """Return what lies at ``share``, in [0, 1], of a range on its scale."""
        low, high = self._range
        return low ** (1 - share) * high**share if self.loguniform else low + (high - low) * share

    def draw(self, share: float) -> JsonValue:
        """Return the value at ``share``, in [0, 1), of the range or of the list."""
        if not self.ends:
            return self.listed[int(share * len(self.listed))]
        return self.clip(self._at(share))

    def clip(self, value: JsonValue) -> JsonValue:
        """Return a number moved into the range; values of a list as they are."""
        if not self.ends or not isinstance(value, (int, float)):
            return value
        inside = min(max(value, self.ends[0]), self.ends[1])
        return round(inside) if self.integer else float(inside)


def _range_fault(kind: str, low: float, high: float) -> str:
    if kind == "loguniform" and low <= 0:
        return f"{kind} starts at {low:g}, which has no logarithm; start above 0, or use uniform"
    if low == high:
        return f"{kind} from {low:g} to {high:g} is a constant; widen it, or give the value in base"
    if low > high:
        return f"{kind} runs from {low:g} down to {high:g}; give the smaller end first"
    if not math.isfinite(high - low):
        return f"{kind} from {low:g} to {high:g} is wider than the largest number; narrow it"
    return ""


def _list_fault(kind: str, values: Sequence[JsonValue]) -> str:
    if len(values) < 2:
        return f"{kind} needs two values or more, but has {len(values)}; a constant belongs into base"
    seen: set[str] = set()
    for value in values:
        key = key_of(value)
        if key in seen:
            return f"{kind} has {show(value)} twice; remove one"
        seen.add(key)
    return ""


def key_of(value: JsonValue) -> str:
    """Return a text that is the same for equal values: 1 and 1.0, but not 1 and true."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True)  # type: ignore[arg-type]


def compose(base: Mapping[str, JsonValue], values: Mapping[str, JsonValue]) -> Values:
    """Return ``base`` with the fields that ``values`` names by their paths; nothing given is changed.

    A field below one that is missing or null makes it an object; ``method`` and others that have a name may be
    given as that name alone. Where the method is among the values, the job's width is fitted to it, see ``fitted``.
    """
    job = dict(base)
    for path, value in sorted(values.items(), key=lambda item: item[0].count(".")):
        *above, last = path.split(".")
        holder = job
        for part in above:
            inner = _named(holder.get(part))
            own: Values = dict(inner) if isinstance(inner, Mapping) else {}
            holder[part] = own
            holder = own
        holder[last] = _named(value) if path in ("method", "optimizer") else value
    return fitted(job) if {"method", "method.name"} & set(values) else job


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def fitted(job: Mapping[str, JsonValue]) -> Values:
    """Return ``job`` with the width that its method has: ``pairs`` and ``shards`` stand for each other.

    A batch is cut into as many shards as before; ``workers`` are lowered to what can be of use.
    """
    job = dict(job)
    method = job.get("method")
    cls = METHODS.get(str(method.get("name"))) if isinstance(method, Mapping) else None
    if cls is None:
        return job
    has, lacks = ("pairs", "shards") if cls.paired else ("shards", "pairs")
    if job.get(lacks) is not None and job.get(has) is None:
        job[has] = job[lacks]
        job[lacks] = None
    width, workers = job.get(has) or 1, job.get("workers")
    if isinstance(width, int) and isinstance(workers, Mapping):
        most = width * (2 if cls.paired else 1)
        job["workers"] = {
            name: min(value, most) if name in ("min", "max") and isinstance(value, int) else value
            for name, value in workers.items()
        }
    return job


def values_in(document: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Return what stands in a document at each path, such as "method.rho"; None where there is nothing."""
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = document
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        found[path] = value
    return found
