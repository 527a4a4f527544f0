"""What makes the store and Ray agree: starts queued jobs and sweeps, watches their runners, starts vanished ones again.

A sweep has a runner as a job has, which trains all its trials, so what is said of jobs here holds for sweeps too.
``decide`` says what is to be done about one job, from what the store and Ray know; ``Reconciler`` does it. Every move
it makes is conditional on the attempt it looked at, so several reconcilers may work on one store, a cancel or a finish
in between wins, and a pass may be cut off at any point: the next one finds the rest still to do.

Of all API processes over one store the one that holds the lease reconciles, and only its reconciler finds or starts a
local Ray. A leader that is late, since it was cut off in a pass, does no harm: a move by an attempt that isn't the
newest is refused, and a runner of such an attempt ends by itself. What is submitted to another process is found by the
leader's next pass, ``poll_s`` later at most.
"""

from __future__ import annotations

import logging
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from ..workers.marks import MARK_VARIABLE, Marker
from .launcher import HOPELESS, OVER, Launcher, NoRay
from .lease import Lease
from .records import MoveRefused, StoreUnavailable, Superseded, Sweep
from .rows import RESTARTED_FROM
from .settings import ATTEMPT_VARIABLE, STATE_DIR_VARIABLE, STORAGE_VARIABLE, STORE_URL_VARIABLE, ServiceSettings
from .shared import runs_of
from .states import STOPPED_AS, Kind, State
from .store import Store
from .tables import has_password
from .troubles import Launched, Troubles, tell

LOSSES_ALLOWED = 10
"""How often a job is started again since its whole cluster was lost. That is no fault of the job and so doesn't count
against its ``max_restarts``; but a job that itself brings its cluster down must end some time."""

TRAIN_VARIABLES = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
"""What Ray Train gives to all actors of a run. Where the whole job has it, they start in the processes that Ray keeps
ready for the job, instead of new ones."""

PLACE_VARIABLES = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}
"""The workers' working directory is that of the job's code, where a task finds its own files, not Ray Train's own."""

BUNDLE_KEPT = timedelta(days=1)
"""How long a bundle stays that no job refers to, since it was last uploaded or asked for."""

TIDY_S = 600.0  # between two looks for such bundles

STOP_VARIABLES = {"RAY_JOB_STOP_WAIT_TIME_S": "10"}
"""How many seconds a runner has, once Ray was asked to end it, to have a checkpoint written; Ray's own default is 3."""

PATIENCE_S = {State.CANCELLING: 10.0, State.PAUSING: 60.0}
"""After which Ray is asked to end a runner that is to stop: by then it should have seen that by itself, and ended."""

AWAY_S = 10.0
"""After which jobs are told that Ray is away; a busy head may well be silent for some seconds."""

AWAY = "Ray does not answer; the job goes on when it is back, from its newest checkpoint if its cluster was lost"
BACK = "Ray answers again, and the job has gone on meanwhile"

STUCK_S = 300.0
"""After which a pass is given up by leaving the lease to another process. The longest good one starts a local Ray."""

log = logging.getLogger(__name__)


class NotLeading(Exception):
    """The lease of this process has ended in the middle of a pass; the rest is for the next leader."""


class Decision(StrEnum):
    """What is to be done about one job."""

    KEEP = "nothing"
    SUBMIT = "hand its runner to Ray"
    NOTE_LAUNCH = "write down that Ray has its runner"
    RECONNECT = "write down that its runner has outlived an absence of Ray"
    RESTART = "start a new runner, since the last one vanished"
    RESUBMIT = "start a new runner, since the cluster of the last one is gone"
    GIVE_UP = "fail it: its runner vanished too often, or as each further one would"
    STOP = "ask Ray to end its runner"
    END = "write down that its runner has ended, as it was asked to"


def decide(job: Launched, ray_says: str | None, for_s: float) -> Decision:
    """Return what to do about a job that occupies a place, from Ray's word on the runner of its attempt.

    ``for_s`` is how long, in seconds, the job is known to be in its state. A runner that is to stop sees that by
    itself, once it trains; one that has nothing to write yet is ended at once.

    Ray keeps what it knows of a submission as long as the cluster lives. So a runner that Ray doesn't know was never
    handed over, if we have no note of that, or went down with its cluster.
    """
    gone = ray_says is None or ray_says in OVER
    if job.state in STOPPED_AS:
        return Decision.END if gone else _stop_now_or_later(job, for_s)
    launched = job.launched or job.state is State.RUNNING
    if not gone and launched:
        return Decision.KEEP if job.interrupted_at is None else Decision.RECONNECT
    if not gone:
        return Decision.NOTE_LAUNCH
    if ray_says is None and not launched:
        return Decision.SUBMIT
    if ray_says is None:
        return Decision.RESUBMIT if job.losses < LOSSES_ALLOWED else Decision.GIVE_UP
    may_go_on = ray_says != HOPELESS and job.restarts < job.spec.max_restarts
    return Decision.RESTART if may_go_on else Decision.GIVE_UP


def _stop_now_or_later(job: Launched, for_s: float) -> Decision:
    has_begun = job.started_at is not None
    return Decision.KEEP if has_begun and for_s < PATIENCE_S[job.state] else Decision.STOP


def submission_id(job: Launched) -> str:
    """Return the name under which Ray knows the runner of this attempt."""
    return f"sampa-{job.id}-{job.attempt}"


class Reconciler:
    """Works through the jobs, one pass after the other: one thread calls run or step, others the rest."""

    def __init__(self, store: Store, launcher: Launcher, settings: ServiceSettings) -> None:
        self._store, self._launcher, self._settings = store, launcher, settings
        self._lease = Lease(store.leases, settings.lease_s)
        self._troubles = Troubles(store)
        runs = runs_of(settings)
        self._marker = None if runs is None else Marker(runs)
        self._awake = threading.Event()
        self._stopping: dict[str, tuple[State, float]] = {}  # jobs that are to stop: since when, on the monotonic clock
        self._tidied_at = -math.inf  # on the monotonic clock, as these:
        self._pass_began_at = math.inf
        self._away_since = math.inf
        self._health = {"reconciler": "not started"}

    def run(self, stop: threading.Event) -> None:
        """Make passes while this process holds the lease, until told to stop; then give the lease up.

        What goes wrong in a pass is logged, shown by ``health``, and tried again.
        """
        with self._lease.kept(self.wake, lambda: not self._stuck()):
            while not stop.is_set():
                self._awake.clear()
                self._note("reconciler", self._try_step() if self._lease.held else self._stand_by())
                self._awake.wait(self._settings.poll_s)
        self._health = {**self._health, "reconciler": "stopped"}

    def wake(self) -> None:
        """Let the next pass begin at once: something has changed, or ``run`` is to stop."""
        self._awake.set()

    @property
    def leads(self) -> bool:
        """Whether this process is the one that reconciles."""
        return self._lease.held

    @property
    def leader(self) -> str:
        """Which process reconciles, as far as this one knows; empty before it has looked."""
        return self._lease.leader

    def health(self) -> dict[str, str]:
        """Return "ok" or one sentence for the reconciler itself and, where it leads, for Ray."""
        return dict(self._health)

    def step(self) -> None:
        """Make one pass: end what was cancelled, look after what runs, start what waits; without Ray, nothing of that.
        Now and then, drop the bundles that nobody needs.

        Raises:
            NotLeading: If the lease was held, and ends before the pass does.
        """
        self._note("ray", self._pass())
        if time.monotonic() - self._tidied_at > TIDY_S:
            dropped = self._store.bundles.drop_unused(datetime.now(UTC) - BUNDLE_KEPT)
            self._tidied_at = time.monotonic()
            if dropped:
                log.info("dropped %d bundles that no job refers to", dropped)

    def _pass(self) -> str:
        """Return how it went: "ok" or one sentence. What goes wrong for one job keeps nobody from the others."""
        try:
            self._work_through()
        except NoRay as error:
            self._tell_that_ray_is_away()
            return str(error)
        self._away_since = math.inf
        return self._troubles.word()

    def _work_through(self) -> None:
        self._launcher.check()
        occupying = self._store.occupying()
        self._launcher.look([submission_id(job) for job in occupying])
        cancelled_first = sorted(occupying, key=lambda job: job.state is not State.CANCELLING)
        self._stopping = {job.id: self._since(job) for job in occupying if job.state in STOPPED_AS}
        self._troubles.keep({job.id for job in occupying})
        for job in cancelled_first:
            to_start = self._try("looked after", self._look_after, job)
            if to_start is not None:
                self._try("started", self._launch, to_start)
        while (claimed := self._claim()) is not None:
            self._try("started", self._launch, claimed)

    def _try(self, doing: str, work: Callable[[Launched], Launched | None], job: Launched) -> Launched | None:
        """Work on one job, and return it if there is more to do; what goes wrong, it is told, unless it is wrong for
        all."""
        if not self._troubles.is_due(job):
            return None
        try:
            left = work(job)
        except (NoRay, StoreUnavailable, NotLeading):
            raise
        except Exception as error:
            self._troubles.note(job, doing, error)
            return None
        if left is None:
            self._troubles.over(job)
        return left

    def _claim(self) -> Launched | None:
        self._check_lease()
        return self._store.claim(self._settings.max_running)

    def _tell_that_ray_is_away(self) -> None:
        """Have those whose runners are out of sight say so, once for each absence and attempt."""
        self._away_since = min(self._away_since, time.monotonic())
        if time.monotonic() - self._away_since < AWAY_S:
            return
        for job in self._store.occupying():
            launched = job.launched or job.state is State.RUNNING
            if launched and job.state in RESTARTED_FROM and job.interrupted_at is None:
                self._check_lease()
                self._store.interrupt(job.id, job.attempt, AWAY)

    def _check_lease(self) -> None:
        """Raise NotLeading where another process may act by now. A reconciler that never ran has no lease to lose."""
        if self._lease.lost:
            raise NotLeading

    def _stuck(self) -> bool:
        return time.monotonic() - self._pass_began_at > STUCK_S

    def _stand_by(self) -> str:
        """Return how this process is, where another one leads: what Ray does is that one's business."""
        self._health = {"reconciler": self._health["reconciler"]}
        self._away_since = math.inf
        return "ok" if self._lease.leader else "has not reached the store yet"

    def _try_step(self) -> str:
        self._pass_began_at = time.monotonic()
        try:
            self.step()
        except NotLeading:
            return self._stand_by()
        except StoreUnavailable as error:
            return str(error)
        except Exception as error:
            log.exception("a pass of the reconciler failed; the next one tries again")
            return f"its last pass failed with {type(error).__name__}: {error}"
        finally:
            self._pass_began_at = math.inf
        return "ok"

    def _look_after(self, job: Launched) -> Launched | None:
        """Do what is to be done about a job now, and return it where its runner is to be started."""
        ray_says = self._launcher.status(submission_id(job))
        self._check_lease()
        # refused if the job has moved since we read it: a runner that ended well, a cancel, another reconciler
        with suppress(MoveRefused, Superseded):
            _, since = self._since(job)
            return self._do(decide(job, ray_says, time.monotonic() - since), job, ray_says)
        return None

    def _since(self, job: Launched) -> tuple[State, float]:
        """Return the job's state and since when it is known to be in it."""
        known = self._stopping.get(job.id)
        return known if known is not None and known[0] is job.state else (job.state, time.monotonic())

    def _do(self, decision: Decision, job: Launched, ray_says: str | None) -> Launched | None:
        move = self._store.move
        if decision is not Decision.KEEP:
            log.info("%s %s: %s", _kind(job), job.id, decision, extra=_about(job))
        match decision:
            case Decision.STOP:
                self._launcher.stop(submission_id(job))
            case Decision.END:
                move(job.id, STOPPED_AS[job.state], reason=job.reason, attempt=job.attempt)
            case Decision.SUBMIT:
                return job
            case Decision.NOTE_LAUNCH:
                self._store.mark_launched(job.id, job.attempt)
            case Decision.RECONNECT:
                self._store.reconnect(job.id, job.attempt, BACK)
            case Decision.RESTART:
                obstacle = self._launcher.obstacle(submission_id(job))
                why = obstacle or f"its runner vanished (Ray says {ray_says})"
                reason = f"{why}; it is started again from its newest checkpoint"
                return move(job.id, State.STARTING, reason=reason, attempt=job.attempt, next_attempt=True)
            case Decision.RESUBMIT:
                reason = "its Ray cluster was lost; it is started again from its newest checkpoint"
                at = job.attempt
                return move(job.id, State.STARTING, reason=reason, attempt=at, next_attempt=True, cluster_lost=True)
            case Decision.GIVE_UP:
                why = self._launcher.obstacle(submission_id(job)) or _why_given_up(job, ray_says)
                move(job.id, State.FAILED, reason=why, attempt=job.attempt)
            case Decision.KEEP:
                self._tell_what_it_waits_for(job, ray_says)
        return None

    def _tell_what_it_waits_for(self, job: Launched, ray_says: str | None) -> None:
        delay = self._launcher.delay(submission_id(job)) if ray_says == "PENDING" else ""
        if delay and job.state is State.STARTING:
            tell(self._store, job, delay)

    def _launch(self, job: Launched) -> None:
        """Hand the runner of this attempt to Ray. Cut off anywhere, the next pass does it again under the same id."""
        env = {
            STATE_DIR_VARIABLE: str(self._settings.state_dir),
            **_store_told(self._settings),
            STORAGE_VARIABLE: self._settings.storage,
            ATTEMPT_VARIABLE: str(job.attempt),
            **self._marked(job),
            **TRAIN_VARIABLES,
            **STOP_VARIABLES,
            **PLACE_VARIABLES,
        }
        # exec: the runner itself is the process that Ray watches and ends, with no shell in between
        module = "sampa.service.sweeps.runner" if isinstance(job, Sweep) else "sampa.service.runner"
        python = sys.executable if self._settings.backend == "jobs" else "python"  # a RayJob may have its own image
        entrypoint = f"exec {shlex.quote(python)} -m {module} {job.id}"
        self._launcher.submit(submission_id(job), entrypoint, env, self._carried(job), job.spec.pip)
        self._store.mark_launched(job.id, job.attempt)
        log.info("%s %s: attempt %d is with Ray", _kind(job), job.id, job.attempt, extra=_about(job))

    def _marked(self, job: Launched) -> dict[str, str]:
        """Leave a mark of this attempt in the storage, and return the variable by which its processes look for it."""
        mark = f"{job.id}/{job.attempt}"
        if self._marker is None:
            return {}
        self._marker.leave(mark)
        return {MARK_VARIABLE: mark}

    def _carried(self, job: Launched) -> str:
        """Give the job's bundle to Ray, which may have lost it with its cluster, and return its address there."""
        sha256 = job.spec.bundle
        return self._launcher.carry(sha256, lambda: self._store.bundles.content(sha256)) if sha256 else ""

    def _note(self, part: str, word: str) -> None:
        if self._health.get(part) != word:
            log.log(logging.INFO if word == "ok" else logging.WARNING, "%s: %s", part, word)
        self._health = {**self._health, part: word}


def _kind(job: Launched) -> Kind:
    return Kind.SWEEP if isinstance(job, Sweep) else Kind.JOB


def _about(job: Launched) -> dict[str, object]:
    """Return what a line in the log is about."""
    return {"job": job.id, "attempt": job.attempt}


def _store_told(settings: ServiceSettings) -> dict[str, str]:
    """Return what tells a runner where the store is, but for a URL with a password on a cluster of others.

    What is submitted to Ray is shown to whoever may ask its Jobs API (Ray 2.60 hides it from browsers alone), stands in
    its logs, and is in the environment of all workers, where the users' own code runs. So there, the runner has the URL
    from the node that it starts on.
    """
    secret = has_password(settings.store_url) and not settings.own_ray
    return {} if secret else {STORE_URL_VARIABLE: settings.store_url}


def _why_given_up(job: Launched, ray_says: str | None) -> str:
    if ray_says is None:
        return (
            f"its Ray cluster was lost {job.losses + 1} times while it ran, and it is not started again; "
            "look whether the job itself brings the cluster down, for example by its use of memory"
        )
    times = "once" if job.restarts == 0 else f"{job.restarts + 1} times"
    return (
        f"its runner vanished {times} (Ray says {ray_says}), and max_restarts is {job.spec.max_restarts}; its last log "
        f"events say why, or Ray's log of the submission {submission_id(job)}. Its newest checkpoint is kept"
    )
