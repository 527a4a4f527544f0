"""A run without Ray, threads or real time: its clock, its network, its crew, and who serves the protocol.

Whatever happens is an event at a time, and equal seeds make equal runs. See ``simulated_worker`` for the workers and
``witness`` for what must hold.
"""

import heapq
import random
from collections import Counter

from sampa.workers.generations import GRACE, Generations
from sampa.workers.words import Admit, Change, CutOff, Farewell, Happened, Lost, Stopped

from .simulated_worker import Dismissal, SimulatedWorker
from .witness import Witness

BATCH_SIZE, NODES = 8, ("a", "b", "c")
TICK_S, BEAT_S, START_S, DELAY_S = 0.1, 0.5, (0.2, 1.0), (0.001, 0.03)
REACHABLE = 0.8  # of those who are cut off: the others can't be ended, and may awake
FAULTS = (
    "kill",  # the process ends, and everybody connected to it sees it
    "vanish",  # it ends and nobody sees it, as when a machine loses its power
    "hang",  # for ever
    "doze",  # for a time
    "rumour",  # nothing but the coordinator's connection to it ends
)


class Run:
    """A run.

    Args:
        seed: Of all that is random.
        wanted: The most workers.
        least: How many make the first generation.
        steps: Its length.
        patience_s: Of all workers.
        compute_s: Between which a gradient takes how long.
        plan: ``(point, how often it was reached before)`` to the kind of fault that happens there.
        resumes_at: Step of the checkpoint that an earlier attempt has left.
    """

    def __init__(
        self, seed, *, wanted=2, least=1, steps=9, patience_s=2.0, compute_s=(0.05, 0.2), plan=None, resumes_at=0
    ):
        self.rng, self.now, self._queue, self._count = random.Random(seed), 0.0, [], 0
        self.steps, self.patience_s, self.compute_s = steps, patience_s, compute_s
        self.exchange_s = patience_s * (1 - GRACE)
        self.plan, self.passed, self.fired = plan or {}, Counter(), Counter()
        self.protocol = Generations(wanted, least, batch_size=BATCH_SIZE, reached=resumes_at)
        self.witness = Witness(self, resumes_at, BATCH_SIZE)
        self.durable, self.stopped = {resumes_at: (0, resumes_at > 0)}, []
        self.workers, self._draining, self._starting = {}, set(), 0
        self._last_arrival, self._torn = {}, set()
        for _ in range(wanted):
            self.start()
        self.after(TICK_S, self._tick)

    # The clock

    def after(self, seconds, act):
        """Let something happen in a while."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + seconds, self._count, act))

    def go_on(self, seconds, until=lambda: False):
        """Let time pass; say whether ``until`` came true."""
        end = self.now + seconds
        while not until():
            if self._queue[0][0] > end:
                self.now = end
                return False
            self.now, _, act = heapq.heappop(self._queue)
            act()
        return True

    # The network

    def _delay(self, sender, way):
        """Draw a delay, such that what is sent one way arrives in order."""
        at = max(self.now + self.rng.uniform(*DELAY_S), self._last_arrival.get((sender, way), 0.0))
        self._last_arrival[sender, way] = at
        return at - self.now

    def _tears(self, worker, way):
        """Say whether what a dying worker has sent is lost with it, as is all that follows on that way."""
        if worker.died and ((worker.name, way) in self._torn or self.rng.random() < 0.5):
            self._torn.add((worker.name, way))
            return True
        return False

    def send(self, sender, name, key, payload):
        """Send to another worker."""

        def arrive():
            if not self._tears(sender, name):
                self.workers[name].inbox[key] = payload
                self.workers[name].poke()

        self.after(self._delay(sender.name, name), arrive)

    def close(self, worker):
        """Leave a group: its other members see it."""
        for member in worker.view.members if worker.view else ():
            other, mark = self.workers[member.name], (worker.view.generation, worker.name)

            def arrive(other=other, mark=mark):
                other.closed.add(mark)
                other.poke()

            self.after(self._delay(worker.name, member.name), arrive)

    def tell(self, worker, act, *values, way="loop"):
        """Say something to the coordinator."""

        def arrive():
            if not self._tears(worker, way):
                act(*values, self.now)
                self._serve()

        self.after(self._delay(worker.name, way), arrive)

    # The crew

    def start(self):
        """Start a worker, on a node that stays if there is one."""
        nodes = [node for node in NODES if node not in self._draining] or NODES
        worker = SimulatedWorker(self, f"worker {len(self.workers)}", self.rng.choice(nodes))
        self.workers[worker.name] = worker
        worker.poke()
        self.after(self.rng.uniform(0, BEAT_S), lambda: self._beat(worker))

    def end(self, worker, *, seen=True):
        """A worker's process ends."""
        if not worker.alive:
            return
        worker.alive = False
        if seen:
            self.close(worker)
            self.after(self._delay(worker.name, "lifeline"), lambda: self._do(self.protocol.gone, worker.name))

    def _beat(self, worker):
        if not worker.alive:
            return
        if not worker.frozen:
            self.tell(worker, self.protocol.beat, worker.name, worker.step, self.patience_s, way="beats")
        self.after(BEAT_S, lambda: self._beat(worker))

    def _tick(self):
        self._do(self.protocol.tick)
        missing = self.protocol.wanted - self._starting - sum(self._counts(w) for w in self.workers.values())
        if not self.protocol.over and missing > 0:
            self._starting += 1
            self.after(self.rng.uniform(*START_S), self._started)
        self.after(TICK_S, self._tick)

    def _started(self):
        self._starting -= 1
        self.start()

    def _counts(self, worker):
        """Say whether the crew needs nobody else in this worker's place."""
        stays = worker.member.node not in self._draining or len(self._draining) == len(NODES)
        hopeless = worker.frozen and worker not in self.members()  # who hangs before it is in, nobody notices
        return worker.alive and worker.name not in self.witness.out and stays and not hopeless

    # What is wanted, and what goes wrong

    def want(self, workers):
        self._do(self.protocol.want, workers)

    def drain(self, *nodes):
        self._draining = set(nodes)
        self._do(self.protocol.drain, nodes)

    def stop(self):
        self._do(self.protocol.stop, "enough")

    def passes(self, worker, point):
        """Let happen what is planned for this moment; say whether something has."""
        kind = self.plan.get((point, self.passed[point]))
        self.passed[point] += 1
        if kind is not None:
            self.inflict(worker, kind)
        return kind is not None

    def inflict(self, worker, kind):
        """Let something go wrong with a worker."""
        if not worker.alive or worker.frozen:
            return
        self.fired[kind, worker.point] += 1
        worker.faulty = True
        if kind in {"kill", "vanish"}:
            worker.died = True
            self.end(worker, seen=kind == "kill")
        elif kind == "rumour":
            self._do(self.protocol.gone, worker.name)
        else:
            worker.frozen = True
            if kind == "doze":
                self.after(self.rng.uniform(0.1, 3) * self.patience_s, worker.awake)

    # The coordinator

    def join(self, worker, word, now):
        worker.waits, worker.came_in_flight = True, word.in_flight
        self.protocol.join(worker.member, word, now)

    def resumed(self, generation, step, pause_s, now):
        self.witness.resumed(generation)
        self.protocol.resumed(generation, step, pause_s, now)

    def finish(self, worker, now):
        if worker in self.members() and worker.name not in self.witness.out:
            self.protocol.finish(now)

    def _do(self, act, *values):
        act(*values, self.now)
        self._serve()

    def _serve(self):
        effects, self.protocol.effects = self.protocol.effects, []
        for effect in effects:
            match effect:
                case Admit(view):
                    self.witness.admitted(view, effects)
                    for member in view.members:
                        self._answer(member.name, view)
                case Farewell(name, save):
                    self._answer(name, Dismissal(save))
                case Change(generation):
                    self.witness.changes_wanted(generation)
                    for worker in self.members():
                        self.after(self.rng.uniform(*DELAY_S), lambda w=worker: setattr(w, "asked_for", generation))
                case CutOff(name, why):
                    assert self.workers[name].faulty, f"{name} is well, and was cut off: {why}"
                    self.fired["cut off", ""] += 1
                    if self.rng.random() < REACHABLE:
                        self.after(0.05, lambda name=name: self.end(self.workers[name]))
                case Lost(name):
                    self.witness.lost(name)
                    if self.workers[name].waits:
                        self._answer(name, Dismissal(False))
                case Happened(data):
                    self.witness.happened(data)
                case Stopped(step, _):
                    assert step is None or step in self.durable
                    self.stopped.append(step)

    def _answer(self, name, answer):
        worker = self.workers[name]
        assert worker.waits, f"{name} is answered, and has not come"
        worker.waits = False
        self.after(self.rng.uniform(*DELAY_S), lambda: worker.take(answer))

    # Questions

    def members(self):
        """Return the workers of the newest view."""
        return [self.workers[member.name] for member in self.protocol.view.members] if self.protocol.view else []

    def trains(self):
        """Say whether all who are wanted have made a step together."""
        view, members = self.protocol.view, self.members()
        began = self.witness.began.get(view.generation, self.steps) if view else 0
        return len(members) == self.protocol.wanted and all(w.view is view and w.step > began for w in members)

    def assert_trains(self, within_s):
        """All who are wanted train on within a time, or the run is over."""
        assert self.go_on(within_s, lambda: self.protocol.over or self.trains()), self._describe()

    def assert_ends(self, within_s):
        """The run ends within a time, its ledger is complete, and nobody is left behind."""

        def ended():
            return self.protocol.over and not any(w.alive and not w.faulty for w in self.workers.values())

        assert self.go_on(within_s, ended), self._describe()
        assert len(self.witness.entries) == len(self.witness.views)

    def _describe(self):
        workers = [(w.name, w.point, "frozen" * w.frozen) for w in self.workers.values() if w.alive]
        return f"{self.protocol.phase} at {self.now:.1f} s: {workers}"
