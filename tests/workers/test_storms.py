"""Simulated runs in which anything goes wrong: nothing is lost, nobody waits for ever, nobody well is cut off.

What must hold all the time is in ``witness``.
"""

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .simulated_worker import POINTS
from .simulation import FAULTS, NODES, Run


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_a_calm_run_is_one_generation(workers):
    run = Run(0, wanted=workers)
    run.assert_ends(20.0)
    assert [entry["cause"] for entry in run.witness.entries] == ["start"]
    assert all(worker.step == run.steps for worker in run.workers.values())


@pytest.mark.parametrize("kind", FAULTS)
def test_any_fault_at_any_point_costs_at_most_the_step_in_flight(kind):
    """Two workers are killed as well, such that replacements are handed the state; half of the runs are stopped."""
    fired = Counter()
    for point in POINTS:
        for before in range(10):
            for workers in (1, 2, 3):
                kills = {("computing", number * workers): "kill" for number in (2, 8)}
                plan = kills | {(point, before): kind}
                run = Run(1000 * before + workers, wanted=workers, steps=24, plan=plan)
                if run.rng.random() < 0.5:
                    run.go_on(run.rng.uniform(1.0, 5.0))
                    run.stop()
                run.assert_ends(40.0)
                fired += run.fired
    assert all(fired[kind, point] >= 3 for point in POINTS), fired


def storm(seed):
    """Let anything happen to a run, then calm down; return it and the seconds until it trained again as it should."""
    rng = random.Random(seed)
    wanted, patience_s = rng.randint(1, 4), rng.choice([2.0, 10.0])
    compute_s = (0.02 * patience_s, 0.16 * patience_s)
    run = Run(
        seed,
        wanted=wanted,
        least=rng.randint(1, wanted),
        steps=1000,
        patience_s=patience_s,
        compute_s=compute_s,
        resumes_at=rng.choice([0, 3]),
    )
    for _ in range(rng.randint(1, 6)):
        run.go_on(rng.choice([0.1, 0.5, 2.0]) * rng.random() * patience_s)
        match rng.randint(0, 9):
            case 0:
                run.start()
            case 1:
                run.want(rng.randint(1, 4))
            case 2:
                run.drain(*rng.sample(NODES, rng.randint(0, 3)))
            case _:
                run.inflict(rng.choice([*run.workers.values()]), rng.choice(FAULTS))
    run.drain()
    calm_since = run.now
    run.assert_trains(5 * patience_s + 10.0)
    return run, run.now - calm_since


@pytest.mark.parametrize("part", range(8))
def test_after_any_storm_everybody_trains_on_and_a_stop_saves_the_newest_step(part):
    fired, causes = Counter(), Counter()
    for seed in range(150 * part, 150 * part + 150):
        run, took_s = storm(seed)
        assert took_s < 2.2 * run.patience_s + 8.0, seed
        present = [w for w in run.members() if w.alive and not w.frozen and w.name not in run.witness.out]
        newest = max((worker.step for worker in present), default=0)
        if seed % 2:
            run.stop()
        else:
            run.steps = max(*(worker.step for worker in run.workers.values()), *run.durable) + 3
        run.assert_ends(4 * run.patience_s + 10.0)
        if seed % 2 and present:
            assert run.stopped[0] >= newest, seed
        fired += run.fired
        causes += Counter(entry["cause"] for entry in run.witness.entries)
    assert all(sum(n for (kind, _), n in fired.items() if kind == fault) > 20 for fault in (*FAULTS, "cut off")), fired
    assert {"start", "resume", "loss", "join", "leave", "preemption", "checkpoint"} <= causes.keys()


class Storm(RuleBasedStateMachine):
    """A storm that hypothesis makes, and shortens when something breaks."""

    @initialize(seed=st.integers(0, 1000), wanted=st.integers(1, 4))
    def begin(self, seed, wanted):
        self.run = Run(seed, wanted=wanted, steps=1000)

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 3.0]))
    def time_passes(self, seconds):
        self.run.go_on(seconds)

    @rule(number=st.integers(0, 5), kind=st.sampled_from(FAULTS))
    def goes_wrong(self, number, kind):
        alive = [worker for worker in self.run.workers.values() if worker.alive]
        if alive:
            self.run.inflict(alive[number % len(alive)], kind)

    @rule(workers=st.integers(1, 4))
    def is_resized(self, workers):
        self.run.want(workers)

    @rule(nodes=st.sets(st.sampled_from(NODES)))
    def nodes_are_about_to_go(self, nodes):
        self.run.drain(*sorted(nodes))

    @precondition(lambda self: len(self.run.workers) < 12)
    @rule()
    def somebody_comes(self):
        self.run.start()

    def teardown(self):
        if hasattr(self, "run"):
            self.run.drain()
            self.run.assert_trains(25.0)
            self.run.stop()
            self.run.assert_ends(20.0)


TestStorm = Storm.TestCase
TestStorm.settings = settings(
    max_examples=150,
    stateful_step_count=15,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
