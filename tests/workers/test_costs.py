"""What a run says that it has cost, whatever the number of its workers was."""

import pytest

from .processes import Run
from .serial import plan_of

CLOSE = 2e-3  # seconds; what is told is rounded to thousandths


def plan(workers, steps=12):
    return plan_of(
        task={"entrypoint": "tests.workers.tasks:paced", "params": {"pace_s": 0.01}},
        method={"name": "sampa", "rho": 0.1},
        batch_size=32,  # four steps an epoch, after each of which there is an evaluation
        steps=steps,
        report={"every_steps": 1},
        workers={"min": workers, "max": workers},
    )


def spent(run, first, last):
    """Return the seconds from one step to a later one, and the workers' from the same to the same."""
    at = {data["step"]: data for data in run.told["metrics"]}
    seconds = [step * at[step]["seconds_per_step"] for step in (first, last)]
    return seconds[1] - seconds[0], at[last]["worker_seconds"] - at[first]["worker_seconds"]


@pytest.mark.parametrize("workers", [1, 2])
def test_all_workers_are_counted_and_so_is_the_time_of_evaluations(tmp_path, workers):
    with Run(plan(workers), tmp_path) as run:
        result = run.succeeded()
    seconds, cost = spent(run, 1, 4)
    assert cost == pytest.approx(workers * seconds, abs=CLOSE)
    seconds, cost = spent(run, 4, 5)  # with the evaluation, in which somebody sleeps as long as in a step
    assert cost > workers * (seconds + 0.01) - CLOSE
    assert result["worker_seconds"] > workers * (result["seconds"] + 3 * 0.01) - CLOSE


def test_the_attempts_of_a_run_add_up_each_with_the_workers_it_had(tmp_path):
    with Run(plan(2), tmp_path, hold=4) as first:
        first.until_held()
        first.ask("stop", "asked to")
        first.until_asked()
        first.go_on()
        assert first.ended()["stopped"]
    with Run(plan(1), tmp_path, before=first) as second:
        result = second.succeeded()
    with_two, cost = spent(second, 1, 4)
    assert cost == pytest.approx(2 * with_two, abs=CLOSE)
    with_one, cost = spent(second, 9, 12)
    assert cost == pytest.approx(with_one, abs=CLOSE)
    whole, cost = spent(second, 1, 12)
    assert cost > whole + with_two - CLOSE, "what the first attempt has cost is among it"
    assert result["worker_seconds"] > cost
