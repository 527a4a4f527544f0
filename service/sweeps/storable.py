"""What every store and every reader of JSON can keep as it is; a sweep holds JSON that no model of its own checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from ..fields import show

MOST = 2**53 - 1  # the whole numbers that all readers of JSON agree on, RFC 8259 section 6
DEEPEST = 40  # objects and lists inside each other


def unstorable(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path, sentence) for each part of a document that can't be kept: a name, a text or a number."""
    name = ".".join(path) or "the sweep"
    if len(path) > DEEPEST:
        yield path, f"{name} lies in {len(path)} objects or lists, but at most {DEEPEST} may lie inside each other"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str) and _unreadable(key):
                yield path, f"a field of {name} has {_unreadable(key)} in its name; remove it"
            else:
                yield from unstorable(inner, (*path, str(key)))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from unstorable(inner, (*path, str(index)))
    elif why := _unkept(value):
        yield path, f"{name} {why}"


def no_bool(value: Any) -> Any:
    """Return what may be a number; true and false, which Python takes for 1 and 0, are refused."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number, but is {value}", {"value": show(value)})
    return value


def _unkept(value: Any) -> str:
    if isinstance(value, str) and _unreadable(value):
        return f"has {_unreadable(value)} in it; remove it"
    if isinstance(value, int) and abs(value) > MOST:
        return f"is beyond {MOST}, up to which whole numbers are exact everywhere; give one that is not"
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number; give one"
    return ""


def _unreadable(text: str) -> str:
    """Return what makes a text one that can't be stored, or nothing."""
    if "\0" in text:
        return "the character NUL"
    return "" if all(not "\ud800" <= letter <= "\udfff" for letter in text) else "half of a surrogate pair"
