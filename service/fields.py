"""Where a fault of pydantic lies: its field as the user wrote it, and what the model knows of the fields there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Location = Sequence[str | int]
_SHOWN = 60  # characters of a wrong value that a sentence repeats


@dataclass(frozen=True)
class Holds:
    """Says of a field that is kept as plain JSON which model it is later checked as."""

    model: type[BaseModel]


@dataclass(frozen=True)
class Place:
    """A field of a model.

    Attributes:
        path: Names and indexes from the root, as the user wrote them.
        siblings: Names of the fields that there are beside it.
        description: What the field is; may be empty.
    """

    path: tuple[str, ...]
    siblings: tuple[str, ...] = ()
    description: str = ""


def find(model: type[BaseModel] | None, location: Location) -> Place:
    """Follow a ``loc`` of pydantic through the fields of ``model``, leaving out the tags that it adds for unions."""
    path: list[str] = []
    siblings: tuple[str, ...] = ()
    description = ""
    choices: Sequence[type[BaseModel]] = [model] if model else []
    named: Sequence[type[BaseModel]] = ()  # what each entry of a mapping may be
    tag = ""  # name of the field that tells the choices apart
    if model is not None and location[:2] == ("task", "params") and "task" not in model.model_fields:
        path, location = ["task", "params"], location[2:]
    for part in location:
        if tag:
            choices, tag = [choice for choice in choices if _has_tag(choice, tag, part)], ""
            continue
        path.append(str(part))
        description, siblings = "", ()
        if named:
            choices, named = named, ()
            continue
        if not choices:
            continue
        fields = {field.alias or name: field for name, field in choices[0].model_fields.items()}
        siblings = tuple(fields)
        field = fields.get(str(part)) or choices[0].model_fields.get(str(part)) or _aliased(choices[0], part)
        choices = list(_models_of(field)) if field else []
        if field:
            description, tag = field.description or "", str(field.discriminator or "")
            named = list(_models_named(field.annotation))
    return Place(tuple(path), siblings, description)


def _aliased(model: type[BaseModel], part: str | int) -> FieldInfo | None:
    """Return the field that has this name in the environment."""
    return next((field for field in model.model_fields.values() if field.validation_alias == part), None)


def _models_of(field: FieldInfo) -> Iterable[type[BaseModel]]:
    """Yield the models that a field may hold, now or later."""
    yield from _models_in(field.annotation)
    yield from (mark.model for mark in field.metadata if isinstance(mark, Holds))


def _models_in(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _models_in(part)


def _models_named(annotation: Any) -> Iterable[type[BaseModel]]:
    """Yield the models that the entries of a mapping may be."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (dict, Mapping):
        yield from _models_in(get_args(annotation)[1])


def _has_tag(model: type[BaseModel], field: str, tag: str | int) -> bool:
    info: FieldInfo | None = model.model_fields.get(field)
    return info is not None and get_origin(info.annotation) is Literal and tag in get_args(info.annotation)


def show(value: object) -> str:
    """Return a wrong value as JSON, short enough for a sentence."""
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
