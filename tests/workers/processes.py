"""A run's workers as real processes of this machine, without Ray: real kills and real groups, started in milliseconds.

The coordinator lives in this process, in a thread of its own; each thread of a worker has its own connection to it.
Whoever looks after a run here does what the trainer does with Ray: it replaces lost workers, and takes the reports.
"""

import asyncio
import itertools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from concurrent.futures import CancelledError
from contextlib import suppress
from ctypes import CDLL
from dataclasses import dataclass, field
from itertools import zip_longest
from multiprocessing.connection import Client, Listener
from pathlib import Path

import torch
from ray.util.collective import collective
from safetensors.torch import load_file
from sampa.workers.coordinator import Coordinator
from sampa.workers.errors import RunError
from sampa.workers.faults import Saboteur
from sampa.workers.loop import Worker
from sampa.workers.membership import Seat
from sampa.workers.pairs import Hosts
from sampa.workers.plan import Plan
from sampa.workers.reports import Once, Reporter
from sampa.workers.storage import Storage

# torch's store looks up the names of both ends of each connection, and glibc waits 5 s for an answer that is lost
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

DEADLINE_S = 60.0  # in which whatever a test waits for has happened
SPARE = 40  # workers that a run may lose beyond its planned faults, before the test gives up
_TIMES = ("seconds", "seconds_per_step", "worker_seconds")  # what differs from run to run
_DIES_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["numpy.random", "ray.util.collective", "sampa.workers.loop", "tests.workers.tasks"])
_numbers = itertools.count()


class Run:
    """One run with its workers; a context manager that leaves no process behind.

    Args:
        plan: What to do.
        directory: Where its files go.
        faults: What is to go wrong on purpose.
        hold: Step in whose midst the workers wait, until ``go_on``; None: they never do.
        before: The attempt before, of a run that was stopped.
        ambush: Called with its job in each worker's process before it begins.

    Attributes:
        told: Reports by kind, each once.
        present: Names of the workers that are in.
        reached: The last step known to be committed.
        outcome: How the run ended, or None.
    """

    def __init__(self, plan, directory, *, faults=(), hold=None, before=None, ambush=None):
        directory.mkdir(parents=True, exist_ok=True)
        self.plan, self.directory, self.faults, self._ambush = plan, directory, [*faults], ambush
        self.wanted = plan.max_workers
        self.told, self._once = (before.told, before._once) if before else ({}, Once())
        self.present, self.reached, self.outcome = [], before.reached if before else 0, None
        self.lost, self.lines, self._draining = [], [], []
        self._hold, self._held = hold, {}
        self._serving, self._closed = [], False
        self._came, self._been_in = set(), set()
        self._name = f"run-{os.getpid()}-{next(_numbers)}"
        self.workers = {}

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coordinator", daemon=True)
        self._thread.start()
        self._coordinator = Coordinator(
            self.wanted, self.plan.workers.min, batch_size=self.plan.batch_size, reached=self.reached, end=_kill
        )
        self._listener = Listener(family="AF_UNIX", backlog=64)
        self._accepting = threading.Thread(target=self._accept, name="listener", daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *_):
        for worker in self.workers.values():
            worker.kill()
            worker.join()
        self._closed = True
        Client(self._listener.address).close()  # wakes the listener's thread
        self._accepting.join()
        self._listener.close()
        while any(thread.is_alive() for thread in self._serving):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(DEADLINE_S)
            time.sleep(0.001)
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What a test does with it

    def until(self, fits, deadline_s=DEADLINE_S):
        """Look after the run until ``fits()``."""
        end = time.monotonic() + deadline_s
        while not fits():
            assert time.monotonic() < end, self.story()
            self.look()

    def until_held(self, workers=None):
        """Look after the run until all of its ``workers`` wait where they are to hold."""
        workers = workers or self.wanted

        def fits():
            held = [name for name in self.present if self._held.get(name, (None,))[0] == self._hold]
            return len(held) == len(self.present) == workers

        self.until(fits)

    def until_asked(self):
        """Look after the run until newcomers are there, and all who are held know that a change is wanted."""

        def fits():
            there = {name for name in self._came - self._been_in | {*self.present} if name not in self._draining}
            return len(there) >= self.wanted and all(self._held[name][1] for name in self.present)

        self.until(fits)

    def go_on(self, hold=None):
        """Let the workers go on, to the midst of step ``hold``."""
        self._hold = hold

    def want(self, workers):
        """From now on, want this many workers."""
        self.wanted = workers
        self.ask("want", workers)

    def drain(self, names):
        """Let the nodes of these workers be about to go; each worker is on one of its own, which has its name."""
        self._draining += names
        self.ask("drain", self._draining)

    def kill(self, names):
        """Kill these workers."""
        for name in names:
            _kill(self.workers[name].pid)
        for name in names:
            self.workers[name].join()

    def ended(self):
        """Look after the run to its end; return its outcome, when all processes have ended by themselves."""
        self.until(lambda: self.outcome is not None)
        for name, worker in self.workers.items():
            worker.join(DEADLINE_S)
            assert worker.exitcode in (0, -signal.SIGKILL), (name, worker.exitcode, self.story())
        self.look()
        return self.outcome

    def succeeded(self):
        """Look after the run to its end and return its result; nothing but checkpoints and the model is left."""
        outcome = self.ended()
        assert outcome["succeeded"], self.story()
        left = {path.name for path in self.directory.rglob("*") if path.is_file()}
        assert left == {"model.safetensors", *(f"step-{step:09d}.ckpt" for step in self.kept())}
        return outcome["result"]

    def fired(self):
        """Return the numbers of the faults that have happened."""
        return {data["number"] for data in self.told.get("fault", [])}

    def kept(self):
        """Return the steps of the checkpoints that are there."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("checkpoints/step-*.ckpt"))

    def story(self):
        """Return what is known, for the message of a failed test."""
        return "\n".join([f"{self.outcome=}", f"{self.present=}", *map(str, self.told.get("elastic", [])), *self.lines])

    # How it looks after the workers

    def look(self):
        """Take the news, and replace who is gone."""
        news = self.ask("news", 0.05)
        for report in news.reports:
            if report.kind == "log":
                self.lines.append(f"{report.data['worker']}: {report.data['line']}")
            elif self._once.is_new(report.kind, report.data):
                self.told.setdefault(report.kind, []).append(report.data)
        self.lost += news.lost
        self._been_in |= {*news.present}
        self.present, self.reached, self.outcome = news.present, news.reached, news.outcome
        if self.outcome is None:
            gone = {*self.lost, *self._draining}
            alive = [name for name, worker in self.workers.items() if worker.is_alive() and name not in gone]
            for _ in range(self.wanted - len(alive)):
                self._hire()

    def _hire(self):
        number = len(self.workers)
        assert number <= len(self.faults) + SPARE + self.plan.max_workers, self.story()
        name = f"worker {number}"
        job = _Job(self.plan, name, self._name, self.directory, self.faults, self._listener.address, self._ambush)
        self.workers[name] = processes.Process(target=_work, args=(job,), name=name, daemon=True)
        self.workers[name].start()

    def ask(self, what, *arguments):
        """Call the coordinator."""
        call = getattr(self._coordinator, what)(*arguments)
        answer = asyncio.run_coroutine_threadsafe(call, self._loop)
        if what == "join":
            self._came.add(arguments[0].name)
        return answer.result()

    def _holds(self, name, step, asked):
        self._held[name] = (step, asked)
        return self._hold is not None and step >= self._hold

    def _accept(self):
        while not self._closed:
            with suppress(EOFError, OSError):  # killed while it said hello
                line = self._listener.accept()
                self._serving.append(threading.Thread(target=self._serve, args=(line,), daemon=True))
                self._serving[-1].start()

    def _serve(self, line):
        """Answer one thread of a worker."""
        with line, suppress(EOFError, OSError, CancelledError):  # either side has ended
            while True:
                what, arguments = line.recv()
                try:
                    answer = self._holds(*arguments) if what == "holds" else self.ask(what, *arguments)
                except RunError as error:
                    answer = error
                line.send(answer)


class Gone(Exception):
    """The coordinator is gone, and the run with it."""


class Line:
    """The coordinator, as the threads of a worker reach it. See ``Coordinator`` for what each call says."""

    def __init__(self, address):
        self._address = address
        self._own = threading.local()
        self._letters, self._lock, self._unconfirmed = Client(address), threading.Lock(), 0

    def ask(self, what, *arguments):
        try:
            if not hasattr(self._own, "line"):
                self._own.line = Client(self._address)
            self._own.line.send((what, arguments))
            answer = self._own.line.recv()
        except (EOFError, OSError) as error:
            raise Gone from error
        if isinstance(answer, RunError):
            raise answer
        return answer

    def post(self, what, *arguments):
        """Call without waiting for the answer."""
        with self._lock, suppress(OSError):
            self._letters.send((what, arguments))
            self._unconfirmed += 1
        return True

    def confirm(self, _=None):
        """Wait until all that was posted has arrived."""
        try:
            with self._lock:
                while self._unconfirmed:
                    self._letters.recv()
                    self._unconfirmed -= 1
        except (EOFError, OSError) as error:
            raise Gone from error

    def join(self, member, word):
        return self.ask("join", member, word, os.getpid())

    def watch(self, *arguments):
        return self.ask("watch", *arguments)

    def resumed(self, *arguments):
        self.post("resumed", *arguments)

    def saved(self, *arguments):
        self.ask("saved", *arguments)


class Holding(Saboteur):
    """Also lets a worker wait in the midst of a step, as long as its run wants."""

    def __init__(self, faults, line, seat):
        super().__init__(faults, lambda number: line.ask("claim", number), lambda numbers: line.ask("due", numbers))
        self._line, self._seat = line, seat

    def strike(self, phase, step, rank):
        while phase == "computing" and self._line.ask("holds", self._seat.member.name, step, self._seat.asked):
            time.sleep(0.01)
        super().strike(phase, step, rank)


@dataclass(frozen=True)
class _Job:
    plan: Plan
    name: str
    run: str
    directory: Path
    faults: list = field(default_factory=list)
    address: str = ""
    ambush: object = None


def _work(job):
    """What each process does; as the trainer's workers."""
    CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    torch.set_num_threads(1)
    _pretend_to_be_an_actor()
    if job.ambush is not None:
        job.ambush(job)
    line, plan, outcome = Line(job.address), job.plan, None
    reporter = Reporter(lambda bundle: line.post("report", bundle), line.confirm)
    with suppress(Gone):
        with reporter.capturing_output(job.name):
            try:
                seat = Seat(
                    line,
                    run=job.run,
                    name=job.name,
                    node=job.name,
                    host="127.0.0.1",
                    device=torch.device("cpu"),
                    deadline_s=plan.workers.deadline_s,
                    hosts=lambda workers: Hosts(plan.width, paired=plan.method.paired, workers=workers),
                )
                storage = Storage(str(job.directory))
                faults = Holding(job.faults, line, seat)
                result = Worker(plan, seat, storage, reporter, torch.device("cpu"), faults).run()
                outcome = None if result is None else {"succeeded": True, "result": result}
            except RunError as error:
                outcome = {"succeeded": False, "reason": str(error)}
            except Gone:
                raise
            except Exception as error:
                traceback.print_exc()
                outcome = {"succeeded": False, "retry": True, "reason": f"{job.name} failed: {error!r}"}
        if outcome is not None:
            reporter.settle()
            line.ask("finish", job.name, outcome)


def _pretend_to_be_an_actor():
    """Let Ray's collective API work in a process without Ray; it needs none of it but looks for one."""

    class NoRay:
        def get_actor(self, name):
            raise ValueError(name)

    collective._check_inside_actor = lambda: None
    collective.ray = NoRay()


async def _cancel_all():
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def assert_same(run, calm):
    """Assert that two runs ended with the same bits and told the same numbers, each once and in order."""
    ours, theirs = (load_file(one.directory / "model.safetensors") for one in (run, calm))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), (name, run.story())
    for kind in ("task", "metrics", "evaluation"):
        different = [pair for pair in zip_longest(numbers(run, kind), numbers(calm, kind)) if pair[0] != pair[1]]
        assert not different, (kind, different[:3], run.story())
    assert run.outcome["result"]["metrics"] == calm.outcome["result"]["metrics"]


def numbers(run, kind):
    """Return what a run has told, but for the times."""
    return [{key: value for key, value in data.items() if key not in _TIMES} for data in run.told.get(kind, [])]
