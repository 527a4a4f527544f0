"""Which spaces are refused: those with values from which no job can be composed, with the field that is to blame."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations, product
from typing import Any, get_args

from pydantic import JsonValue, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from ...workers.tasks import BUILT_IN
from ..fields import find, show
from ..specs import JobSpec
from .space import Domain, Values, compose

Path = tuple[str, ...]
UNSEARCHABLE = {
    "name": "trials are named after the sweep",
    "seed": "give the number of seeds of each configuration as seeds",
    "workers": "workers change how fast a trial is, not what it gives",
    "code": "all trials run the same code",
    "checkpoint": "it changes nothing that is measured",
    "report": "it changes nothing that is measured",
    "evaluate": "it decides when a trial is measured, not what it gives",
    "max_restarts": "it changes nothing that is measured",
}
_MOST_COMBINATIONS = 5000  # 25 microseconds each
_DRAWN = 50  # combinations of all fields, besides those
_PATH = re.compile(r"[^./]{1,100}(\.[^./]{1,100}){0,9}")
_KINDS = get_args(core_schema.ErrorType)


@dataclass(frozen=True)
class Fault:
    """Why a job can't be composed.

    Attributes:
        path: The field of the job, from its root.
        error: The entry of pydantic's ``errors()``.
    """

    path: Path
    error: Mapping[str, Any] = field(compare=False)

    @property
    def key(self) -> tuple[str, Path]:
        """The same for faults of the same kind at the same field."""
        return self.error["type"], self.path

    @property
    def unknown(self) -> bool:
        """Whether there is no such field."""
        return bool(self.error["type"] == "extra_forbidden")

    @property
    def plain(self) -> bool:
        """Whether it lies in one field alone, so that it can be told with that field elsewhere."""
        return "field" not in self.error.get("ctx", {}) and not self.error["type"].startswith("union_tag")

    @property
    def sentence(self) -> str:
        """What is wrong, naming the field."""
        name, context = ".".join(self.path), self.error.get("ctx", {})
        if "field" in context:
            return str(context["message"])
        if self.unknown:
            return f"there is no field {name}"
        if self.error["type"] == "missing":
            return f"{name} is missing"
        if self.error["type"] == "union_tag_invalid":
            return f"{name} must be one of {context['expected_tags']}, but is {show(context['tag'])}"
        message = str(self.error["msg"]).removeprefix("Value error, ")
        return message if name in message else f"{name}: {message}"


def composed(name: str, base: Mapping[str, JsonValue], values: Mapping[str, JsonValue]) -> JobSpec | list[Fault]:
    """Return the job of these values, or what is wrong with it."""
    try:
        return JobSpec.model_validate({**compose(base, values), "name": name})
    except ValidationError as error:
        return [Fault(_path_of(each), each) for each in error.errors(include_url=False)]


def _path_of(error: Mapping[str, Any]) -> Path:
    context = error.get("ctx", {})
    if "field" in context:
        return tuple(str(context["field"]).split("/"))
    path = find(JobSpec, error["loc"]).path
    return (*path, context["discriminator"].strip("'")) if error["type"].startswith("union_tag") else path


def refused(field: str, message: str, value: object = None) -> InitErrorDetails:
    """Return a fault of ours at ``field``, "space/method.rho" for example, as an entry of a ValidationError."""
    kind = PydanticCustomError("contradiction", "{message}", {"field": field, "message": message})
    return InitErrorDetails(type=kind, loc=(), input=value)


def moved(error: Mapping[str, Any], *loc: str | int) -> InitErrorDetails:
    """Return an error of a job as one at ``loc``."""
    kind, context = error["type"], error.get("ctx", {})
    if kind not in _KINDS:
        kind = PydanticCustomError(kind, "{message}", {"message": str(error["msg"])})
    return InitErrorDetails(type=kind, loc=loc, input=error["input"], ctx=context)


def refusals(name: str, base: Mapping[str, JsonValue], space: Mapping[str, Domain]) -> list[InitErrorDetails]:
    """Return what is wrong with ``base`` and ``space``, at most one fault for each searched field.

    Each sample of a field is tried with the first of every other field, then each pair of listed values, and some
    combinations as a search may draw them.
    """
    found = [fault for path, domain in space.items() for fault in _meaningless(path, domain, space)]
    return found or _Trying(name, base, space).refusals()


def _meaningless(path: str, domain: Domain, space: Mapping[str, Domain]) -> Iterator[InitErrorDetails]:
    """Yield why the field can't be searched at all."""
    if not _PATH.fullmatch(path) or not path.isprintable():
        at = f"space/{path}" if path.isprintable() and "/" not in path else "space"
        yield refused(at, f"{show(path)} in space is no field's path: give names with dots in between, as method.rho")
        return
    above, *_ = path.split(".")
    if above in UNSEARCHABLE:
        yield refused(f"space/{path}", f"{path} can't be searched: {UNSEARCHABLE[above]}")
    inside = [other for other in space if other.startswith(f"{path}.")]
    for other in inside:
        if any(_has(value, other[len(path) + 1 :].split(".")) for value in domain.listed):
            yield refused(f"space/{other}", f"{other} is searched, but values of {path} set it too; leave it out there")
            return


def _has(value: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


class _Trying:
    """Composes jobs from the samples of a space, and blames fields for what fails."""

    def __init__(self, name: str, base: Mapping[str, JsonValue], space: Mapping[str, Domain]) -> None:
        self._name, self._base, self._space = name, base, space
        self._firsts: Values = {path: domain.samples[0] for path, domain in space.items()}

    def refusals(self) -> list[InitErrorDetails]:
        at_first = self._faults({})
        known = {fault.key for fault in at_first}
        in_base: list[InitErrorDetails] = []
        by_field: dict[str, InitErrorDetails] = {}
        for fault in at_first:
            path = self._to_blame(fault)
            if path is not None:
                by_field.setdefault(path, self._of_value({path: self._firsts[path]}, fault))
            else:
                in_base.append(_of_base(fault))
        for path, domain in self._space.items():
            for value in domain.samples:
                new = [fault for fault in self._faults({path: value}) if fault.key not in known]
                if new and path not in by_field:
                    by_field[path] = self._of_value({path: value}, new[0])
        return [*in_base, *by_field.values()] or list(self._pairs()) or list(self._drawn())

    def _faults(self, values: Values) -> list[Fault]:
        """Return what is wrong with the job of ``values`` and the first value of every other field."""
        job = composed(self._name, self._base, self._firsts | values)
        if not isinstance(job, JobSpec):
            return job
        as_run = job.model_dump(mode="json", by_alias=True)
        return [fault for path in values or self._space for fault in _untaken(as_run, path, self._firsts | values)]

    def _to_blame(self, fault: Fault) -> str | None:
        """Return the searched field whose first value leads to the fault: its own, or one without which it is gone."""
        own = [path for path in self._space if _same_line(fault.path, tuple(path.split(".")))]
        lifting = [
            path
            for path, domain in self._space.items()
            if any(fault.key not in {f.key for f in self._faults({path: value})} for value in domain.samples[1:])
        ]
        return next((path for path in own if path in lifting or not lifting), next(iter(lifting), None))

    def _pairs(self) -> Iterator[InitErrorDetails]:
        """Yield the first pair of listed values that contradict each other, where there are few enough to try."""
        listed = [(path, domain.listed[1:]) for path, domain in self._space.items() if domain.listed]
        tried = 0
        for (one, its), (other, others) in combinations(listed, 2):
            tried += len(its) * len(others)
            if tried > _MOST_COMBINATIONS:
                return
            for value, second in product(its, others):
                for fault in self._faults({one: value, other: second}):
                    yield self._of_value({one: value, other: second}, fault)
                    return

    def _drawn(self) -> Iterator[InitErrorDetails]:
        """Yield the first contradiction among combinations that are drawn, of as few fields as it takes."""
        drawn = random.Random(0)
        for _ in range(_DRAWN if len(self._space) > 1 else 0):
            values = {path: domain.draw(drawn.random()) for path, domain in self._space.items()}
            if found := self._faults(values):
                key = found[0].key
                for path in self._space:
                    fewer = {other: value for other, value in values.items() if other != path}
                    if fewer and key in {fault.key for fault in self._faults(fewer)}:
                        values = fewer
                fault = next(fault for fault in self._faults(values) if fault.key == key)
                yield self._of_value(values, fault)
                return

    def _of_value(self, values: Values, fault: Fault) -> InitErrorDetails:
        """Return the fault as one of the searched fields, whose ``values`` led to it."""
        path, *others = values
        own, at, fault = tuple(path.split(".")), f"space/{path}", _in_params(fault)
        if not others and _same_line(fault.path, own):
            above = len(fault.path) - len(own)
            if fault.unknown and above <= 0:
                return refused(at, self._unknown(own, fault))
            if above < 0 and fault.error["type"].endswith("_type"):
                return refused(at, f"{path} can't be searched, since {'.'.join(fault.path)} has no fields")
            if fault.error["type"] == "int_from_float" and self._space[path].ends:
                return refused(at, f"{path} takes whole numbers only; search it by integer, choice or grid")
            if above >= 0 and fault.plain and not fault.unknown:
                return moved(fault.error, "space", path, *fault.path[len(own) :])
        named = " and ".join(f"{name} {_short(value)}" for name, value in values.items())
        if fault.unknown:
            lacking = ".".join(fault.path)
            advice = "search the two in sweeps of their own" if lacking in self._space else "leave it out"
            return refused(at, f"with {named} there is no {lacking}; {advice}", values[path])
        enough = not others and path in fault.sentence
        return refused(at, fault.sentence if enough else f"with {named}: {fault.sentence}")

    def _unknown(self, own: Path, fault: Fault) -> str:
        """Say that there is no such field, and which one may be meant."""
        depth, siblings = len(fault.path) - 1, fault.error.get("siblings") or find(JobSpec, fault.error["loc"]).siblings
        near = get_close_matches(fault.path[depth], siblings, n=1)
        meant = ".".join((*own[:depth], *near, *own[depth + 1 :]))
        advice = f"did you mean {meant}?" if near else f"there are: {', '.join(siblings)}" if siblings else "remove it"
        holder = ".".join(own[:depth]) or "a job"
        return f"{'.'.join(own)} can't be searched, since {holder} has no field {fault.path[depth]}; {advice}"


def _in_params(fault: Fault) -> Fault:
    """Return what exactly is wrong with a parameter of a built-in task, of which a job says only the first words."""
    given = fault.error["input"]
    if fault.path[:2] != ("task", "params") or not isinstance(given, Mapping):
        return fault
    task = BUILT_IN.get(str(given.get("entrypoint")))
    if task is None:
        return fault
    try:
        task.Params.model_validate(given.get("params"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        siblings = find(task.Params, first["loc"]).siblings
        return Fault(("task", "params", *map(str, first["loc"])), {**first, "siblings": siblings})
    return fault


def _of_base(fault: Fault) -> InitErrorDetails:
    context = fault.error.get("ctx", {})
    if "field" in context:
        return refused(f"base/{context['field']}", str(context["message"]), fault.error["input"])
    return moved(fault.error, "base", *fault.error["loc"])


def _same_line(one: Path, other: Path) -> bool:
    """Say whether one path is the other, or leads to it."""
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]


def _untaken(job: Mapping[str, JsonValue], path: str, values: Values) -> Iterator[Fault]:
    """Yield that a job has not taken the value of ``path`` as it is: under another name, or as another type."""
    own, value = tuple(path.split(".")), values[path]
    place: Any = job
    for depth, part in enumerate(own, start=1):
        if not isinstance(place, Mapping) or part not in place:
            siblings = tuple(place) if isinstance(place, Mapping) else ()
            yield Fault(own[:depth], {"type": "extra_forbidden", "loc": own, "input": value, "siblings": siblings})
            return
        place = place[part]
    if _type_of(place) and _type_of(value) and _type_of(place) != _type_of(value):
        message = f"{path} takes {_type_of(place)}, but {_short(value)} is {_type_of(value)}"
        yield Fault(own, {"type": "wrong_type", "loc": own, "input": value, "msg": message})


def _type_of(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, (int, float)) else "text" if isinstance(value, str) else ""


def _short(value: JsonValue) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return str(value["name"])
    return value if isinstance(value, str) else show(value)
