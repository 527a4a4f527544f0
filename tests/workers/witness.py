"""What must hold in any run, whatever happens to it: checked by somebody who sees all workers at once."""

from sampa.workers.words import Change


class Witness:
    """Watches a simulated run.

    Args:
        run: The run.
        reached: The last step that an earlier attempt has committed.
        batch_size: Rows of a step.
    """

    def __init__(self, run, reached, batch_size):
        self._run, self._batch_size = run, batch_size
        self._digests = {}  # of the state after each step
        self._reached = reached  # since the last loss
        self._lost = {}  # generation to steps that were committed and are to be made again
        self._in_flight, self._survived, self._told = {}, {}, set()
        self.views, self.began, self.entries, self.changes, self.out = [], {}, [], [], set()

    def committed(self, worker):
        """No two generations commit the same step differently."""
        assert self._digests.setdefault(worker.step, worker.digest) == worker.digest
        if worker.view is self.views[-1]:
            self._reached = max(self._reached, worker.step)

    def resumed(self, generation):
        """The coordinator hears of a first commit."""
        self._told.add(generation)

    def begins(self, generation, step):
        """The members of a generation stand at a step."""
        if generation not in self.began and generation == len(self.views):
            self.began[generation] = step
            self._lost[generation] = max(0, self._reached - step)
            self._reached = step
        assert self.began.get(generation, step) == step, "members begin at different steps"

    def changes_wanted(self, generation):
        """Members are asked to a boundary once, and only those who are in."""
        assert generation == self.views[-1].generation
        assert generation not in self.changes
        self.changes.append(generation)

    def lost(self, name):
        """A worker is given up, once."""
        assert name not in self.out
        self.out.add(name)

    def admitted(self, view, effects):
        """A generation forms: of those who are there, not too many, and from the newest state that any of them has."""
        generation, names = view.generation, [member.name for member in view.members]
        workers = [self._run.workers[name] for name in names]
        assert generation == len(self.views) + 1, "numbers follow one another"
        assert len(set(names)) == len(names)
        assert not self.out & set(names), "one who was given up is in again"
        if len(names) > self._run.protocol.wanted:
            assert len(names) == self._run.protocol.wanted + 1
            assert Change(generation) in effects, "one is in to hand over, and to leave at the next boundary"
        places = [worker.place for worker in self._survivors()]
        self._survived[generation] = bool(places)
        self._in_flight[generation] = any(worker.came_in_flight for worker in workers)
        self.views.append(view)
        if view.source is None:
            assert not places, "a state is lost while somebody has it"
            return
        source = workers[view.source].place
        assert all(place <= source for place in places), "a committed step is lost while somebody has it"
        assert view.behind == tuple(rank for rank, worker in enumerate(workers) if worker.place != source)
        self.begins(generation, source.step)

    def _survivors(self):
        """Return the members of the last view that are alive, not given up, and have a state."""
        last = [self._run.workers[member.name] for member in self.views[-1].members] if self.views else []
        return [worker for worker in last if worker.alive and worker.name not in self.out and worker.place is not None]

    def happened(self, data):
        """The ledger has one entry for each generation, and tells what it has cost."""
        generation, lost = data["generation"], data["steps_lost"]
        assert generation == len(self.entries) + 1
        view = self.views[generation - 1]
        assert data["workers_after"] == len(view.members)
        assert data["workers_before"] == (self.entries[-1]["workers_after"] if self.entries else 0)
        assert data["samples_replayed"] == lost * self._batch_size
        assert 0 <= data["recovery_seconds"] <= self._run.now
        if view.source is not None or generation in self._told:
            assert data["step"] == self.began[generation]
        if self._survived[generation]:
            assert self._lost[generation] <= lost <= 1
        self.entries.append(data)
        true = sum(max(self._lost.get(g, 0), self._in_flight[g]) for g in range(1, generation + 1))
        assert sum(entry["steps_lost"] for entry in self.entries) <= true, "a lost step is counted twice"
