"""Checkpoints: a run's whole state in one file, which is there as a whole or not at all.

They lie in the run's storage, on any file system. They don't go through ``ray.train.report``: that is
a barrier over all workers of a Ray Train run, and its list of checkpoints is rewritten in place, so that a kill
at the wrong moment leaves a directory that Ray Train refuses to resume from (read in Ray 2.60.0). Whoever writes one
copies the state first and writes in a thread, so that no other worker waits for the storage.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import torch

from .errors import CheckpointError
from .plan import Plan
from .state import State
from .storage import Storage, StorageError, insistently

_FORMAT = 3
_LONGEST_S = 600.0  # that a checkpoint may take, once somebody must wait for it
_WAIT_S = 2.0  # for the checkpoint before; less than any deadline of an exchange
_NAME = re.compile(r"step-(\d{9})\.ckpt")
_ASIDE = re.compile(r"\.step-\d{9}\.ckpt\.(?P<writer>.+)\.[0-9a-f]{32}")


@dataclass
class Record:
    """What a run remembers besides its state, the same on every worker.

    Attributes:
        seconds: Spent on committed steps.
        window: Losses of the steps since the last report of metrics.
        last: What the last step was like, until it is reported.
        told: Reports of metrics and evaluations since the checkpoint before the last, and of the last half minute, as
            (kind, data, time). A worker or a runner may die before it has passed on what it was told; whoever takes
            over tells it again.
        evaluations: All evaluations so far, each with ``step``, ``epoch``, ``split`` and its metrics.
        worker_seconds: Of all workers together, spent on committed steps and on evaluations, waiting included.
    """

    seconds: float = 0.0
    window: list[float] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)
    told: list[tuple[str, dict[str, Any], float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    worker_seconds: float = 0.0

    def copy(self) -> Record:
        """Return a copy whose lists can be changed without changing this one's."""
        return replace(self, window=[*self.window], told=[*self.told], evaluations=[*self.evaluations])


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is complete: its step, its path below the run's directory, its size."""

    step: int
    path: str
    bytes: int


class Checkpoints:
    """The checkpoints of one run, as one worker writes and reads them.

    Args:
        storage: The run's; they lie in ``checkpoints`` below.
        identity: What must be the same for a checkpoint to be of use: the plan and the model's layout.
        keep: How many of the newest stay.
        writer: Name of this worker, by which the files that a killed one left half-written are told apart.
    """

    def __init__(self, storage: Storage, identity: dict[str, Any], keep: int, writer: str) -> None:
        self._identity, self._keep, self._writer = identity, keep, writer
        self._files = storage / "checkpoints"
        self._thread = threading.Thread()
        self._error: Exception | None = None
        self.probe: Callable[[int], None] = lambda step: None  # called while the checkpoint of a step is being written

    def save(self, state: State, record: Record, done: Callable[[Saved], None], *, last: bool = False) -> None:
        """Copy the state and write it in the background; ``done`` is called there once it is durable.

        While the one before is still being written, waits for it a little and then leaves this one out: training
        doesn't wait for slow storage. Nor does it end for a remote one that is away: then this one is left out too,
        unless it is the ``last``, which is tried again, and ``settle`` raises if it isn't written.

        Raises:
            CheckpointError: If the one before could not be written.
        """
        self._wait(_WAIT_S)
        if self._thread.is_alive():
            print(
                f"the checkpoint of step {state.step} is left out, since the one before it is still being written; "
                f"raise checkpoint.every_steps, or use faster storage"
            )
            return
        content = {
            "format": _FORMAT,
            "identity": self._identity,
            "step": state.step,
            "settled": state.settled,
            "carries": state.carried is not None,
            "origin": None if state.origin is None else state.origin.tell(),
            "tensors": [tensor.detach().to("cpu", copy=True) for tensor in state.tensors()],
            "record": asdict(record),
        }
        self._thread = threading.Thread(target=self._write, args=(content, done, last), name="checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Return when nothing is being written.

        Raises:
            CheckpointError: If the last one could not be written, or not within ``_LONGEST_S`` seconds.
            StorageError: If the storage was away when the run's last one was to be written.
        """
        self._wait(_LONGEST_S)
        if self._thread.is_alive():
            raise CheckpointError(
                f"a checkpoint is not written to {self._files} after {_LONGEST_S:g} s; see whether the storage "
                f"answers. The checkpoints before it are kept."
            )

    def _wait(self, wait_s: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(wait_s)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, content: dict[str, Any], done: Callable[[Saved], None], last: bool) -> None:
        try:
            if last:
                insistently(lambda: self._put(content))
            else:
                self._put(content)
            saved = self.describe(content["step"])
            self._drop_old()
            done(saved)
        except StorageError as error:
            if last:
                self._error = error
            else:
                print(f"the checkpoint of step {content['step']} is left out: {error}; training goes on")
        except Exception as error:
            self._error = CheckpointError(
                f"the checkpoint of step {content['step']} can't be written to {self._files}: {error}; make room "
                f"there, or check its permissions. The checkpoints before it are kept."
            )

    def _put(self, content: dict[str, Any]) -> None:
        name = name_of(content["step"])
        with self._files.writing(name, aside=f".{name}.{self._writer}.{uuid4().hex}", durable=True) as file:
            torch.save(content, file)
            self.probe(content["step"])

    def sweep(self, writing: Collection[str]) -> None:
        """Remove what killed workers left half-written: all but the files of those who may still be at it."""
        for name in self._files.names():
            match = _ASIDE.fullmatch(name)
            if match and match["writer"] not in writing:
                self._files.remove(name)

    def describe(self, step: int) -> Saved:
        """Return what there is to say of the checkpoint of ``step``."""
        name = name_of(step)
        return Saved(step, f"checkpoints/{name}", self._files.info(name).size)

    def load_newest(self) -> dict[str, Any] | None:
        """Return the content of the newest checkpoint that can be read, or None if there is none.

        Raises:
            CheckpointError: If it is of another plan or model.
            StorageError: If the storage is away: then nobody knows which one is the newest.
        """
        for step in sorted(self.steps(), reverse=True):
            try:
                with self._files.reading(name_of(step)) as file:
                    content: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
            except StorageError:
                raise
            except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
                print(f"the checkpoint of step {step} can't be read ({error}); taking the one before it")
                continue
            self._check(content)
            return content
        return None

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, in no order."""
        return [int(match[1]) for match in map(_NAME.fullmatch, self._files.names()) if match]

    def _check(self, content: dict[str, Any]) -> None:
        if content["format"] != _FORMAT:
            raise CheckpointError(
                f"the checkpoints in {self._files} are of format {content['format']}, this version reads "
                f"{_FORMAT}; use the version of sampa that wrote them, or another directory"
            )
        theirs, ours = content["identity"], self._identity
        different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
        if different:
            raise CheckpointError(
                f"the checkpoints in {self._files} belong to a run with another {', '.join(different)}; give "
                f"another directory, or remove them to start anew"
            )

    def _drop_old(self) -> None:
        for step in sorted(self.steps())[: -self._keep]:
            self._files.remove(name_of(step))


def name_of(step: int) -> str:
    """Return the name of the file with the checkpoint of a step."""
    return f"step-{step:09d}.ckpt"


def restore(state: State, content: dict[str, Any]) -> Record:
    """Fill ``state``, which has room for it, from a checkpoint's content; return the record."""
    state.step, state.settled = content["step"], content["settled"]
    for tensor, saved in zip(state.tensors(), content["tensors"], strict=True):
        tensor.copy_(saved)
    if state.origin is not None:
        state.origin.heed(content["origin"])
    return Record(**content["record"])


def identity_of(plan: Plan, layout: Any) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be of use.

    Args:
        plan: Of the run.
        layout: Of its model, as ``Flat.names`` says it.
    """
    idle = {"workers", "checkpoint", "report"}  # fields that don't shape the trajectory
    return plan.model_dump(mode="json", by_alias=True, exclude=idle) | {"layout": layout}


def adopt(source: Storage, target: Storage, plan: Plan, step: int) -> None:
    """Let a run go on from the state of another at the same step, by a plan of its own.

    Args:
        source: The other run's, which has a checkpoint of that step.
        target: The run's, whose checkpoint of that step is replaced at once or not at all.
        plan: By which it goes on.
        step: Where both are held.

    Raises:
        CheckpointError: If the other run has no such checkpoint.
        StorageError: If the storage is away.
    """
    name = name_of(step)
    try:
        with (source / "checkpoints").reading(name) as file:
            content = torch.load(file, weights_only=True, map_location="cpu")
    except StorageError:
        raise
    except OSError as error:
        raise CheckpointError(f"the checkpoint of step {step} in {source} can't be read: {error}") from error
    content["identity"] = identity_of(plan, content["identity"]["layout"])
    with (target / "checkpoints").writing(name, aside=f".{name}.adopted.{uuid4().hex}") as file:
        torch.save(content, file)
