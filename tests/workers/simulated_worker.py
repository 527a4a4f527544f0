"""A worker of the simulated run: behaves as ``loop.py`` and ``membership.py`` do, with numbers for tensors.

Its life is a generator. It yields what it waits for, a condition, and goes on when that holds.
"""

from sampa.workers.pairs import Member
from sampa.workers.words import Place, Word

FORM_S, EVALUATE_EVERY, CHECKPOINT_EVERY = 5.0, 3, 4
POINTS = (  # in a worker's life at which a fault can be planned
    "starting",
    "joining",
    "forming",
    "beginning",
    "handing over",
    "taking over",
    "settling",
    "computing",
    "trading",
    "between trades",
    "committing",
    "committed",
    "ending",
    "saving",
)


class Broken(Exception):
    """An exchange failed; ``late`` names who did not answer."""

    def __init__(self, message, late=None):
        super().__init__(message)
        self.late = late


class Dismissal(Exception):
    """The coordinator's farewell."""

    def __init__(self, save):
        super().__init__("farewell")
        self.save = save


class SimulatedWorker:
    """One worker's process."""

    def __init__(self, run, name, node):
        self.run, self.name, self.member = run, name, Member(name, node, "")
        self.alive, self.died, self.frozen, self.faulty = True, False, False, False
        self.point = "starting"
        self.step, self.digest, self.settled, self.has_state = 0, 0, False, False
        self.view, self.asked_for, self._answer = None, 0, None  # asked_for: the generation that is to change
        self.waits, self.came_in_flight = False, False  # as the coordinator sees it
        self.inbox, self.closed = {}, set()
        self._in_flight, self._failure, self._first_step = False, None, None
        self._went_on_at = self._entered_at = None
        self._life, self._may_go_on = self._live(), lambda: True

    @property
    def place(self):
        return Place(self.step, self.settled) if self.has_state else None

    def poke(self):
        """Go on for as long as nothing has to be waited for."""
        while self.alive and not self.frozen and self._may_go_on():
            try:
                self._may_go_on = next(self._life)
            except StopIteration:
                self.run.end(self)

    def take(self, answer):
        """The coordinator answers."""
        self._answer = answer
        self.poke()

    def awake(self):
        """A frozen process goes on."""
        self.frozen = False
        self.poke()

    def _live(self):
        yield from self._sleep(self.run.rng.uniform(0, 0.3))
        yield from self._pass("starting")
        try:
            while True:
                try:
                    if self.view is None:
                        yield from self._enter()
                    if (yield from self._go_on()):
                        yield from self._call(self.run.finish, self)
                        return
                except Broken as error:
                    self._failure = error
                    self._went_on_at = self._went_on_at or self._entered_at
                    self._leave()
        except Dismissal as farewell:
            if farewell.save:
                yield from self._pass("saving")
                yield from self._sleep(self.run.rng.uniform(0.05, 2 * self.run.patience_s))
                self.run.durable[self.step] = (self.digest, self.settled)
                yield from self._call(self.run.protocol.saved, self.name, self.step)

    def _enter(self):
        failure, self._failure = self._failure, None
        late = failure.late if failure else None
        word = Word(self.place, self._in_flight, str(failure or ""), late, self.run.patience_s)
        self._in_flight, self._answer = False, None
        yield from self._pass("joining")
        self.run.tell(self, self.run.join, self, word)
        yield lambda: self._answer is not None
        if isinstance(self._answer, Dismissal):
            raise self._answer
        self.view = view = self._answer
        others = self._others()
        yield from self._pass("forming")
        form_s = min(FORM_S, self.run.exchange_s)
        yield from self._trade("forming", others, others, None, form_s, blame="a worker")
        names = [member.name for member in view.members]
        if view.source is None:
            yield from self._begin(names)
        elif view.behind:
            yield from self._hand_over(names[view.source], [names[rank] for rank in view.behind])
        self.run.witness.begins(view.generation, self.step)
        if view.save and names[0] == self.name:
            self._save()
        self._first_step, self._entered_at = self.step, self.run.now

    def _begin(self, names):
        yield from self._pass("beginning")
        if self.name == names[0]:
            step = max(self.run.durable)
            state = (step, *self.run.durable[step])
            yield from self._trade("beginning", names[1:], [], state)
        else:
            (state,) = yield from self._trade("beginning", [], names[:1])
        self._stand_at(state)

    def _hand_over(self, source, behind):
        if self.name == source:
            assert self.has_state
            yield from self._pass("handing over")
            yield from self._trade("transfer", behind, [], (self.step, self.digest, self.settled))
        elif self.name in behind:
            yield from self._pass("taking over")
            (state,) = yield from self._trade("transfer", [], [source])
            self._stand_at(state)

    def _stand_at(self, state):
        self.step, self.digest, self.settled = state
        self.has_state = True

    def _go_on(self):
        others = self._others()
        if not self.settled:
            yield from self._pass("settling")
            if self.step % EVALUATE_EVERY == 0:
                yield from self._trade(f"settling of {self.step}", others, others, self.digest)
            self.settled = True
            if self.step and self.step % CHECKPOINT_EVERY == 0 and self.view.members[0].name == self.name:
                self._save()
            self._went_on_at = None if self._went_on_at is None else self.run.now
        if self.step == self.run.steps:
            yield from self._pass("ending")
            yield from self._trade("end", others, others)
            self._leave()
            return True
        asked, self._in_flight = self.asked_for == self.view.generation, True
        yield from self._pass("computing")
        yield from self._sleep(self.run.rng.uniform(*self.run.compute_s))
        yield from self._pass("trading")
        names = [member.name for member in self.view.members]
        partners = [name for name in names[names.index(self.name) % 2 :: 2] if name != self.name]  # owners of a kind
        yield from self._trade(f"sum of {self.step}", partners, partners)
        yield from self._pass("between trades")
        brought = yield from self._trade(f"mean of {self.step}", others, others, (self.digest, asked))
        assert {digest for digest, _ in brought} <= {self.digest}, "members step from different states"
        yield from self._pass("committing")
        self._commit()
        yield from self._pass("committed")
        if asked or any(asked for _, asked in brought):
            self._leave()
        return False

    def _commit(self):
        run, self.digest = self.run, hash((self.digest, self.step))
        self.settled, self._in_flight = False, False
        self.step += 1
        run.witness.committed(self)
        if self._first_step is not None:
            pause = None if self._went_on_at is None else max(0.0, run.now - self._went_on_at)
            run.tell(self, run.resumed, self.view.generation, self._first_step, pause)
            self._first_step = None
        self._went_on_at = run.now

    def _save(self):
        state, at = (self.digest, self.settled), self.step

        def write():
            if self.alive and not self.frozen:
                self.run.durable[at] = state

        self.run.after(self.run.rng.uniform(0.01, 0.5), write)

    def _leave(self):
        self.run.close(self)
        self.view = None

    # What a process waits for

    def _pass(self, point):
        self.point = point
        if self.run.passes(self, point):
            yield lambda: True  # a dead one is not asked again, a frozen one when it awakes

    def _sleep(self, seconds):
        end = self.run.now + seconds
        self.run.after(seconds, self.poke)
        yield lambda: self.run.now >= end - 1e-9

    def _call(self, act, *values):
        """Say something to the coordinator, and wait until it is heard."""
        heard = []

        def hear(*values):
            act(*values)
            heard.append(True)
            self.run.after(0.01, self.poke)

        self.run.tell(self, hear, *values)
        yield lambda: heard

    def _others(self):
        return [member.name for member in self.view.members if member.name != self.name]

    def _trade(self, operation, to, of, payload=None, deadline_s=None, blame=None):
        """Send to some, receive from some, until a deadline; return what has come."""
        generation, run = self.view.generation, self.run
        deadline_s = deadline_s or run.exchange_s
        for name in to:
            run.send(self, name, (generation, operation, self.name), payload)
        if not of:
            return []
        end = run.now + deadline_s
        run.after(deadline_s, self.poke)

        def missing():
            return [name for name in of if (generation, operation, name) not in self.inbox]

        def broken():
            return [name for name in missing() if (generation, name) in self.closed]

        yield lambda: not missing() or broken() or run.now >= end - 1e-9
        if broken():
            raise Broken(f"{broken()[0]} was lost in the {operation}")
        if missing():
            raise Broken(f"{blame or missing()[0]} was late in the {operation}", late=blame or missing()[0])
        return [self.inbox.pop((generation, operation, name)) for name in of]
