"""A worker's part in one run, inside its Ray actor: it takes its seat, trains, and says how it ended."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import ray
import torch

from .coordinator import ANSWER_S
from .errors import NotFinite, NotShared, RunError
from .faults import Fault, Saboteur
from .loop import Worker
from .marks import why_no_mark
from .membership import Seat
from .pairs import Hosts, Member, View
from .plan import Plan
from .reports import Reporter
from .storage import Storage, StorageError
from .words import Word


def take_part(
    plan: Plan,
    coordinator: Any,
    *,
    run: str,
    name: str,
    storage: Storage,
    faults: Sequence[Fault] = (),
    hold_at: float | None = None,
) -> None:
    """Train until the run has ended, or this worker is dismissed.

    Args:
        plan: Of the run.
        coordinator: Its handle, or what stands for it.
        run: A name that no other run uses.
        name: Of this worker, which no other of the run has.
        storage: Where the run's files lie.
        faults: What is to go wrong on purpose.
        hold_at: Epochs after which the run stops with a checkpoint, to be gone on with.
    """
    torch.set_num_threads(plan.workers.threads)
    device = torch.device("cuda", 0) if plan.workers.gpus else torch.device("cpu")
    meeting = RemoteMeeting(coordinator)
    reporter = Reporter(coordinator.report.remote, partial(ray.get, timeout=ANSWER_S))
    outcome: dict[str, Any] | None = None
    with reporter.capturing_output(name):
        try:
            check_mark(storage)
            seat = Seat(
                meeting,
                run=run,
                name=name,
                node=ray.get_runtime_context().get_node_id(),
                host=ray.util.get_node_ip_address(),
                device=device,
                deadline_s=plan.workers.deadline_s,
                hosts=lambda workers: Hosts(plan.width, paired=plan.method.paired, workers=workers),
            )
            saboteur = Saboteur(faults, meeting.claim, meeting.due) if faults else None
            result = Worker(plan, seat, storage, reporter, device, saboteur, hold_at).run()
            outcome = None if result is None else {"succeeded": True, "result": result}
        except RunError as error:
            outcome = {"succeeded": False, "reason": str(error), "diverged": isinstance(error, NotFinite)}
        except ray.exceptions.RayError:
            return  # the coordinator is gone, and the run with it
        except StorageError as error:
            outcome = {"succeeded": False, "retry": True, "reason": f"{name} ended: {error}"}
        except Exception as error:
            traceback.print_exc()
            reason = f"{name} failed with {type(error).__name__}: {error}; see the log"
            outcome = {"succeeded": False, "retry": True, "reason": reason}
    if outcome is not None:
        reporter.settle()
        ray.get(coordinator.finish.remote(name, outcome), timeout=ANSWER_S)


def check_mark(storage: Storage) -> None:
    """See that a run's directory on this machine is the API's; raises NotShared."""
    why = why_no_mark(storage.path.parent) if storage.path is not None else ""
    if why:
        raise NotShared(why)


class RemoteMeeting:
    """The coordinator actor, called blockingly. See ``Coordinator`` for what each call says."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._handle = ray.get_runtime_context().current_actor

    def join(self, member: Member, word: Word) -> View:
        """Wait for the next generation; raises as ``Coordinator.join``, or a RayError if the actor is gone."""
        try:
            return ray.get(self._coordinator.join.remote(member, word, self._handle))  # type: ignore[no-any-return]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def watch(self, name: str, generation: int, step: int, patience_s: float, wait_s: float) -> bool:
        asked = self._coordinator.watch.remote(name, generation, step, patience_s, wait_s)
        return bool(ray.get(asked, timeout=ANSWER_S))

    def resumed(self, generation: int, step: int, pause_s: float | None) -> None:
        self._coordinator.resumed.remote(generation, step, pause_s)

    def saved(self, name: str, step: int) -> None:
        ray.get(self._coordinator.saved.remote(name, step), timeout=ANSWER_S)

    def claim(self, number: int) -> bool:
        return bool(ray.get(self._coordinator.claim.remote(number), timeout=ANSWER_S))

    def due(self, numbers: Sequence[int]) -> bool:
        return bool(ray.get(self._coordinator.due.remote([*numbers]), timeout=ANSWER_S))
