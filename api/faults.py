"""What is wrong with a request, in sentences: the server and the command line say it in the same words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from ..service.fields import Place, find, show
from ..workers.tasks import BUILT_IN


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        path: Names and indexes from the root to the field; empty for the whole.
        detail: One sentence that names the field, what is wrong and what to do.
        hint: What the field is, or which fields there are; may be empty.
    """

    path: tuple[str, ...]
    detail: str
    hint: str = ""

    @property
    def pointer(self) -> str:
        """The field as a JSON pointer, RFC 6901."""
        return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in self.path)


def summary(faults: Sequence[Fault]) -> str:
    """Return one sentence: the first fault, and how many others there are."""
    others = len(faults) - 1
    return faults[0].detail + (f" (and {others} more)" if others else "")


def faults_of(model: type[BaseModel] | None, error: ValidationError, *, whole: str = "the job") -> list[Fault]:
    """Return what pydantic found wrong with the input of ``model``; ``whole`` as for ``faults_in``."""
    return [fault for one in error.errors() for fault in faults_in(model, one, whole=whole)]


def faults_in(model: type[BaseModel] | None, error: Mapping[str, Any], *, whole: str = "the job") -> list[Fault]:
    """Return what one entry of pydantic's ``errors()`` says; ``whole`` is what a fault without a field is about."""
    context = error.get("ctx", {})
    if "field" in context:
        return _refused(str(context["field"]), str(context["message"]), error["input"])
    place = find(model, error["loc"])
    path = place.path
    if error["type"].startswith("union_tag"):
        path = (*path, context["discriminator"].strip("'"))
    detail, hint = _describe(".".join(path) or whole, error, place)
    return [Fault(path, detail, hint or place.description)]


def _refused(field: str, message: str, value: object) -> list[Fault]:
    """Return the faults of a check of ours, which names its field from the root: ``task/params/x``."""
    path = tuple(field.split("/"))
    inner = path[1:] if path[0] == "base" else path  # a sweep's base is a job
    if inner[:2] == ("task", "params") and isinstance(value, Mapping):
        task = BUILT_IN.get(str(value.get("entrypoint")))
        found = _parameter_faults(task.Params, value.get("params")) if task else []
        if found:
            above = path[: len(path) - len(inner)]
            return [replace(fault, path=(*above, *fault.path)) for fault in found]
    name = ".".join(path)
    return [Fault(path, message if path[-1] in message else f"{name}: {message}")]


def _parameter_faults(model: type[BaseModel], params: object) -> list[Fault]:
    try:
        model.model_validate(params)
    except ValidationError as error:
        inner = [{**one, "loc": ("task", "params", *one["loc"])} for one in error.errors()]
        return [fault for one in inner for fault in faults_in(model, one)]
    return []


_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "less_than_equal": ("le", "at most"),
    "greater_than": ("gt", "more than"),
    "less_than": ("lt", "less than"),
}
_WANTED = re.compile(r"\w+ should ([^,]+)")  # how pydantic says what it wants, before it says why
_OBJECT = {"model_type", "model_attributes_type", "dict_type", "dataclass_type"}


def _describe(  # noqa: PLR0911 - a table of errors
    name: str, error: Mapping[str, Any], place: Place
) -> tuple[str, str]:
    """Return (sentence, hint) for one error of pydantic at the field ``name``."""
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if kind == "missing":
        return f"{name} is missing; add it", ""
    if kind == "extra_forbidden":
        return _unknown(name, place)
    if kind in _LIMITS:
        key, words = _LIMITS[kind]
        return f"{name} must be {words} {_number(context[key])}, but is {show(value)}", ""
    if kind in ("literal_error", "enum"):
        return f"{name} must be {context['expected']}, but is {show(value)}", ""
    if kind == "union_tag_invalid":
        return f"{name} must be one of {context['expected_tags']}, but is {show(context['tag'])}", ""
    if kind == "union_tag_not_found":
        return f"{name} is missing; add it, it says which kind is meant", ""
    if kind in _OBJECT:
        return f"{name} must be an object with named fields, but is {show(value)}", ""
    if kind == "string_pattern_mismatch":
        form = place.description or context["pattern"]
        return f"{name} {show(value)} is not of the form that is allowed: {form}", ""
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if wanted := _WANTED.match(message):
        return f"{name} must {wanted[1]}, but is {show(value)}", ""
    last = name.rsplit(".", 1)[-1]
    return (message if last in message and not last.isdecimal() else f"{name}: {message}"), ""


def _unknown(name: str, place: Place) -> tuple[str, str]:
    *_, wrong = place.path
    near = get_close_matches(wrong, place.siblings, n=1)
    known = f"known: {', '.join(place.siblings)}" if place.siblings else ""
    advice = f"did you mean {near[0]}?" if near else "remove it" + (f", or use one that is {known}" if known else "")
    return f"{name} is not a known field; {advice}", known


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
