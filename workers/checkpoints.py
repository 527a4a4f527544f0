"""Checkpoints: a run's whole state in one file, written aside and renamed, so that what is there is complete.

They lie in Ray Train's storage, on any of its file systems. They don't go through ``ray.train.report``: that is
a barrier over all workers of a Ray Train run, and its list of checkpoints is rewritten in place, so that a kill
at the wrong moment leaves a directory that Ray Train refuses to resume from (read in Ray 2.60.0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import torch
from pyarrow import fs
from torch import Tensor

from .engine import State
from .errors import CheckpointError
from .methods.base import Gradients

_FORMAT = 1
_NAME = re.compile(r"step-(\d{9})\.ckpt")


@dataclass
class Record:
    """What a run remembers besides its state, the same on every worker.

    Attributes:
        seconds: Spent on committed steps.
        window: Losses of the steps since the last report of metrics.
        told: Reports of metrics and evaluations since the checkpoint before the last, as (kind, data). A runner may
            die before it has stored what it was told; whoever resumes from the next checkpoint tells it again.
        evaluations: All evaluations so far, each with ``step``, ``epoch``, ``split`` and its metrics.
    """

    seconds: float = 0.0
    window: list[float] = field(default_factory=list)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete: its step, its path below the run's directory, its size."""

    step: int
    path: str
    bytes: int


class Checkpoints:
    """The checkpoints of one run.

    Args:
        filesystem: Where they are.
        directory: The run's directory on it; they lie in ``checkpoints`` below.
        identity: What must be the same for a checkpoint to be of use: the plan and the model's layout.
        keep: How many of the newest stay.
    """

    def __init__(self, filesystem: fs.FileSystem, directory: str, identity: dict[str, Any], keep: int) -> None:
        self._fs, self._identity, self._keep = filesystem, identity, keep
        self._directory = PurePosixPath(directory) / "checkpoints"

    def save(self, state: State, own: dict[int, Tensor], record: Record) -> Saved:
        """Write the state, with every shard's own gradient where the method keeps them, and drop old checkpoints."""
        content = {
            "format": _FORMAT,
            "identity": self._identity,
            "step": state.step,
            "weights": state.weights,
            "optimizer": state.optimizer,
            "carried": None if state.carried is None else state.carried.mean,
            "own": own,
            "others": state.others,
            "record": asdict(record),
        }
        name = f"step-{state.step:09d}.ckpt"
        self._fs.create_dir(str(self._directory), recursive=True)
        aside = str(self._directory / f".{name}.{uuid4().hex}")
        try:
            with self._fs.open_output_stream(aside) as file:
                torch.save(content, file)
            self._make_durable(aside)
            self._fs.move(aside, str(self._directory / name))
            self._make_durable(str(self._directory))
        except Exception as error:
            if self._fs.get_file_info(aside).type != fs.FileType.NotFound:
                self._fs.delete_file(aside)
            raise CheckpointError(
                f"the checkpoint of step {state.step} can't be written to {self._directory}: {error}; make room "
                f"there, or check its permissions. The checkpoints before it are kept."
            ) from error
        self._drop_old()
        return self.describe(state.step)

    def describe(self, step: int) -> Saved:
        """Return what there is to say of the checkpoint of ``step``."""
        name = f"step-{step:09d}.ckpt"
        return Saved(step, f"checkpoints/{name}", self._fs.get_file_info(str(self._directory / name)).size)

    def load_newest(self) -> dict[str, Any] | None:
        """Return the content of the newest checkpoint that can be read, or None if there is none.

        Removes what killed writers left half-written.

        Raises:
            CheckpointError: If it is of another plan or model.
        """
        for name in self._names():
            if name.startswith(".step-"):
                self._fs.delete_file(str(self._directory / name))
        for step in sorted(self.steps(), reverse=True):
            try:
                with self._fs.open_input_file(str(self._directory / f"step-{step:09d}.ckpt")) as file:
                    content: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
            except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
                print(f"the checkpoint of step {step} can't be read ({error}); taking the one before it")
                continue
            self._check(content)
            return content
        return None

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, in no order."""
        return [int(match[1]) for match in map(_NAME.fullmatch, self._names()) if match]

    def _check(self, content: dict[str, Any]) -> None:
        if content["format"] != _FORMAT:
            raise CheckpointError(
                f"the checkpoints in {self._directory} are of format {content['format']}, this version reads "
                f"{_FORMAT}; use the version of sampa that wrote them, or another directory"
            )
        theirs, ours = content["identity"], self._identity
        different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if different:
            raise CheckpointError(
                f"the checkpoints in {self._directory} belong to a run with another {', '.join(different)}; give "
                f"another directory, or remove them to start anew"
            )

    def _names(self) -> list[str]:
        selector = fs.FileSelector(str(self._directory), allow_not_found=True)
        return [info.base_name for info in self._fs.get_file_info(selector)]

    def _drop_old(self) -> None:
        for step in sorted(self.steps())[: -self._keep]:
            self._fs.delete_file(str(self._directory / f"step-{step:09d}.ckpt"))

    def _make_durable(self, path: str) -> None:
        if isinstance(self._fs, fs.LocalFileSystem):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def restore(state: State, content: dict[str, Any], take: Callable[[], Tensor]) -> tuple[dict[int, Tensor], Record]:
    """Fill ``state`` from a checkpoint's content; return every shard's own gradient, and the record.

    ``take`` gives a vector for the carried gradient.
    """
    state.step = content["step"]
    state.weights.copy_(content["weights"])
    for name, vector in state.optimizer.items():
        vector.copy_(content["optimizer"][name])
    for other, saved in zip(state.others, content["others"], strict=True):
        other.copy_(saved)
    saved = content["carried"]
    state.carried = None if saved is None else Gradients(take()[: len(saved)].copy_(saved))
    return content["own"], Record(**content["record"])
