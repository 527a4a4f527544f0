"""What goes wrong for one job while the others go on: the job is told once, and is tried again less and less often."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from ..workers.marks import NotMarked
from .launcher import LaunchRefused
from .records import Changed, Job, MoveRefused, Superseded, Sweep
from .states import State
from .store import Store

FIRST_S, LONGEST_S = 1.0, 30.0  # after which a job is tried again: at first, then twice as long each time, at most

Launched = Job | Sweep  # what has a runner of its own

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trouble:
    """What goes wrong for one job.

    Attributes:
        place: The attempt and the state that the job is in; in another one, it is tried at once.
        said: What the job was told.
        before: Its reason before that.
        wait_s: How long it is left alone now.
        due_at: When it is tried again, on the monotonic clock.
    """

    place: tuple[int, State]
    said: str
    before: str
    wait_s: float
    due_at: float


class Troubles:
    """The troubles of all jobs, as one process knows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, Trouble] = {}

    def is_due(self, job: Launched) -> bool:
        """Say whether something may be tried for a job: it has no trouble where it is now, or has waited."""
        trouble = self._of(job)
        return trouble is None or time.monotonic() >= trouble.due_at

    def note(self, job: Launched, doing: str, error: Exception) -> None:
        """Tell a job that its runner could not be started, or whatever else was tried, and leave it alone for a while.

        Raises:
            StoreUnavailable: If it can't be told.
        """
        said, trouble = f"its runner could not be {doing}: {_cause(error)}; it is tried again", self._of(job)
        if trouble is None or trouble.said != said:
            known = isinstance(error, LaunchRefused | NotMarked)
            about = {"job": job.id, "attempt": job.attempt}
            log.warning("%s: %s", job.id, said, extra=about, exc_info=None if known else error)
            tell(self._store, job, said)
        wait_s = FIRST_S if trouble is None else min(2 * trouble.wait_s, LONGEST_S)
        before = job.reason if trouble is None else trouble.before
        self._known[job.id] = Trouble(_place(job), said, before, wait_s, time.monotonic() + wait_s)

    def over(self, job: Launched) -> None:
        """Forget a job's trouble; its reason is again what it was. Raises StoreUnavailable if it can't be told."""
        trouble = self._of(job)
        if trouble is not None and job.state is State.STARTING:
            tell(self._store, job, trouble.before)
        self._known.pop(job.id, None)

    def keep(self, ids: Collection[str]) -> None:
        """Forget the troubles of all other jobs."""
        self._known = {job_id: trouble for job_id, trouble in self._known.items() if job_id in ids}

    def word(self) -> str:
        """Return "ok", or what goes wrong for one of the jobs."""
        return next((f"{job_id}: {trouble.said}" for job_id, trouble in self._known.items()), "ok")

    def _of(self, job: Launched) -> Trouble | None:
        trouble = self._known.get(job.id)
        return trouble if trouble is not None and trouble.place == _place(job) else None


def tell(store: Store, job: Launched, words: str) -> None:
    """Say something to a job as it was read: by its reason while it is to start, else by a line of its log."""
    with suppress(MoveRefused, Superseded, Changed):  # it has gone on meanwhile
        if job.state is not State.STARTING:
            store.append(job.id, [("log", {"worker": "service", "line": words})], attempt=job.attempt)
        elif job.reason != words:
            store.move(job.id, State.STARTING, reason=words, attempt=job.attempt, version=job.version)


def _place(job: Launched) -> tuple[int, State]:
    return job.attempt, job.state


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, LaunchRefused | NotMarked) else f"{type(error).__name__}: {error}"
