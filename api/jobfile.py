"""Job and sweep files: YAML in, a checked spec out; what is wrong is said with the file and the line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from ..service.specs import JobSpec
from ..service.sweeps.spec import SweepSpec
from .faults import Fault, faults_of
from .presets import preset_of

Spec = TypeVar("Spec", JobSpec, SweepSpec)


class JobFileError(ValueError):
    """What is wrong with a job or sweep file, in one sentence that starts with the file and the line."""


def read_job(path: Path) -> JobSpec:
    """Return the job of a file, or of the preset of this name where there is no such file.

    Raises:
        JobFileError: If the file can't be read, is no YAML, or holds no valid job.
    """
    if not path.exists():
        path = preset_of(str(path)) or path
    return _read(path, JobSpec, "job", "; sampa presets lists those that ship with sampa")


def read_sweep(path: Path) -> SweepSpec:
    """Return the sweep of a file.

    Raises:
        JobFileError: If the file can't be read, is no YAML, or holds no valid sweep.
    """
    return _read(path, SweepSpec, "sweep")


def _read(path: Path, model: type[Spec], what: str, elsewhere: str = "") -> Spec:
    """Return what is in a file; ``elsewhere`` says where else to look if it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        advice = "" if path.exists() else elsewhere
        raise JobFileError(f"{path}: the {what} file can't be read: {reason}{advice}") from error
    root, value = _parse(path, text, what)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = faults_of(model, error, whole=f"the {what}")
        raise JobFileError("\n".join(f"{path}:{_line(root, fault)}: {fault.detail}" for fault in faults)) from error


def _parse(path: Path, text: str, what: str) -> tuple[yaml.Node, Any]:
    """Return the document as a tree, which knows its lines, and as a value."""
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        if root is None:
            raise JobFileError(f"{path}:1: the {what} file is empty; describe a {what} in it")
        for node in _repeated(root):
            raise JobFileError(f"{path}:{node.start_mark.line + 1}: {node.value} is given twice; remove one")
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        reason = getattr(error, "problem", None) or str(error)
        raise JobFileError(f"{path}:{line}: this is no YAML: {reason}") from error
    return root, value


def _repeated(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield keys that their mapping has already; YAML itself would silently take the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value)


def _line(root: yaml.Node, fault: Fault) -> int:
    """Return the line of the field that is wrong, or of the nearest thing around it."""
    node, line = root, root.start_mark.line
    for part in fault.path:
        entries = _entries(node)
        if part not in entries:
            break
        line, node = entries[part]
    return line + 1


def _entries(node: yaml.Node) -> dict[str, tuple[int, yaml.Node]]:
    """Return, for each name or index below a node, its line and what it holds."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): (key.start_mark.line, value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return {str(index): (value.start_mark.line, value) for index, value in enumerate(node.value)}
    return {}
