"""Workers are killed, hang and dawdle, as real processes; the numbers stay those of a calm run, and little is lost."""

import itertools
import os
import random
import signal
from functools import partial
from pkgutil import resolve_name

import pytest
import torch
from sampa.workers.faults import PHASES, Fault
from sampa.workers.plan import Workers

from .processes import Run, assert_same
from .serial import plan_of

pytestmark = pytest.mark.timeout(180)
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
SAVES = 3  # steps between checkpoints
PATIENCE = {"kill": 20.0, "hang": 0.8, "slow": 20.0}  # deadline_s by kind of fault
SPACING = 3  # steps from one fault to the next
GRID = [("kill", 1, "pair"), ("kill", 2, "global"), ("hang", 1, "global"), ("hang", 2, "pair"), ("slow", 1, "pair"),
        ("slow", 2, "global")]  # fmt: skip
CREWS = pytest.mark.parametrize(("pairs", "perturbation"), [(1, "global"), (2, "pair")])


def plan_for(steps, *, pairs=2, perturbation="pair", **fields):
    return plan_of(
        task={"entrypoint": "tests.workers.tasks:convolution"},
        method={"name": "sampa", "rho": 0.1, "lambda": 0.2, "perturbation": perturbation},
        optimizer=SGD,
        schedule={"name": "cosine", "warmup_steps": 2},
        batch_size=32,
        pairs=pairs,
        steps=steps,
        **{"checkpoint": {"every_steps": SAVES, "keep": 2}, "report": {"every_steps": 1}} | fields,
    )


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Give what a plan comes to when nothing goes wrong; each numbers once."""
    known = {}

    def run_of(plan):
        plan = plan.model_copy(update={"workers": Workers(min=plan.most_workers)})
        key = plan.model_dump_json()
        if key not in known:
            with Run(plan, tmp_path_factory.mktemp("calm")) as known[key]:
                known[key].succeeded()
            assert causes(known[key]) == ["start"]
        return known[key]

    return run_of


def causes(run):
    return [event["cause"] for event in run.told["elastic"]]


def steps_for(faults):
    return faults[-1].step + 2 * SPACING


def spread(chosen):
    """Give (kind, rank, phase) after (kind, rank, phase) its step, such that each phase comes to every kind of step."""
    return [
        Fault(number=number, kind=kind, rank=rank, phase=phase, step=SPACING * number + _within(number, phase),
              seconds=0.1)
        for number, (kind, rank, phase) in enumerate(chosen)
    ]  # fmt: skip


def _within(number, phase):
    return SAVES - 1 if phase == "checkpointing" else (number + number // len(PHASES)) % SPACING


def survives(plan, faults, calm, directory):
    """Train with these faults; check what must hold after any of them."""
    with Run(plan, directory, faults=faults) as run:
        run.succeeded()
    assert run.fired() == {fault.number for fault in faults}, run.story()
    assert_same(run, calm(plan))
    for event in run.told["elastic"]:
        assert event["steps_lost"] <= 1, run.story()
        assert event["samples_replayed"] == plan.batch_size * event["steps_lost"], run.story()
    fatal = [fault for fault in faults if fault.kind != "slow"]
    assert len(run.lost) >= len(fatal), run.story()
    return run


@pytest.mark.parametrize(("kind", "pairs", "perturbation"), GRID)
def test_a_fault_of_any_rank_in_any_phase_changes_no_number(calm, tmp_path, kind, pairs, perturbation):
    faults = spread(itertools.product([kind], range(2 * pairs), PHASES))
    workers = {"min": 1, "deadline_s": PATIENCE[kind]}
    plan = plan_for(steps_for(faults), pairs=pairs, perturbation=perturbation, workers=workers)
    run = survives(plan, faults, calm, tmp_path)
    if kind == "slow":
        assert causes(run) == ["start"], run.story()
        assert not run.lost


@CREWS
def test_twenty_random_faults_change_no_number(calm, tmp_path, pairs, perturbation):
    draw = random.Random(pairs)
    steps = sorted(draw.sample(range(50), 20))
    faults = [
        Fault(
            number=number,
            kind=draw.choice(["kill", "hang", "slow"]),
            rank=draw.randrange(2 * pairs),
            phase=draw.choice(PHASES if (step + 1) % SAVES == 0 else PHASES[:3]),
            step=step,
            seconds=0.1,
        )
        for number, step in enumerate(steps)
    ]
    plan = plan_for(55, pairs=pairs, perturbation=perturbation, workers={"min": 1, "deadline_s": PATIENCE["hang"]})
    survives(plan, faults, calm, tmp_path)


def test_a_run_that_loses_its_first_worker_again_and_again_tells_each_step_once(calm, tmp_path):
    phases = ["checkpointing", "updating"] * 3
    faults = [
        Fault(number=number, kind="kill", rank=0, phase=phase, step=SAVES * number + 2)
        for number, phase in enumerate(phases)
    ]
    run = survives(plan_for(20, pairs=1), faults, calm, tmp_path)
    assert [data["step"] for data in run.told["metrics"]] == [*range(1, 21)]
    assert [data["step"] for data in run.told["evaluation"]] == [4, 8, 12, 16, 20]


@CREWS
@pytest.mark.parametrize(("reached", "newest"), [(2, 0), (11, 8)])
def test_when_all_are_killed_the_run_goes_on_from_its_newest_checkpoint(
    calm, tmp_path, pairs, perturbation, reached, newest
):
    checkpoint, workers = {"every_steps": 4}, {"min": 2 * pairs}
    plan = plan_for(16, pairs=pairs, perturbation=perturbation, checkpoint=checkpoint, workers=workers)
    with Run(plan, tmp_path, hold=reached) as run:
        run.until_held()
        run.until(lambda: run.reached == reached and (run.kept() or [0])[-1] == newest)
        run.kill(run.present)
        run.go_on()
        run.succeeded()
    (loss,) = [event for event in run.told["elastic"] if event["cause"] == "loss"]
    lost = reached - newest
    assert (loss["step"], loss["steps_lost"], loss["samples_replayed"]) == (newest, lost, lost * plan.batch_size)
    assert (loss["workers_before"], loss["recovery_seconds"] > 0) == (2 * pairs, True)
    assert_same(run, calm(plan))


@pytest.mark.parametrize("perturbation", ["global", "pair"])
def test_four_two_one_three_and_four_workers_give_the_bits_of_four(calm, tmp_path, perturbation):
    plan = plan_for(30, perturbation=perturbation, workers={"min": 4})
    with Run(plan, tmp_path, hold=5) as run:
        run.until_held(4)
        run.want(2)
        run.kill(run.present[1:3])
        run.go_on(hold=10)
        run.until_held(2)
        for workers, step in ((1, 15), (3, 20), (4, 25)):
            run.want(workers)
            run.until_asked()
            run.go_on(hold=step)
            run.until_held(workers)
        run.go_on()
        run.succeeded()
    assert [event["workers_after"] for event in run.told["elastic"]][-5:] == [4, 2, 1, 3, 4], run.story()
    assert causes(run)[-4:] == ["loss", "leave", "join", "join"]
    assert [event["steps_lost"] for event in run.told["elastic"]][-4:] == [1, 0, 0, 0]
    assert_same(run, calm(plan))


@CREWS
def test_a_run_that_is_stopped_at_any_step_goes_on_with_the_same_bits(calm, tmp_path, pairs, perturbation):
    """After 6 steps a checkpoint is due, after 8 an evaluation, after 12 both, after 14 neither, 16 are all."""
    plan = plan_for(16, pairs=pairs, perturbation=perturbation, workers={"min": 2 * pairs})
    run = None
    for stop_after in (6, 8, 12, 14, 16):
        with Run(plan, tmp_path, hold=stop_after - 2, before=run) as run:
            run.until_held()
            run.ask("stop", "asked to")
            run.until_asked()
            run.go_on()
            assert run.ended() == {"succeeded": False, "stopped": True, "step": stop_after, "reason": "asked to"}
        assert run.kept()[-1] == stop_after
        saved = torch.load(tmp_path / f"checkpoints/step-{stop_after:09d}.ckpt", weights_only=True)
        assert saved["settled"] is False
        assert not run.lost
    with Run(plan, tmp_path, before=run) as run:
        run.succeeded()
    assert set(causes(run)) == {"start", "resume"}
    assert sum(event["steps_lost"] for event in run.told["elastic"]) == 0
    assert_same(run, calm(plan))


def test_workers_whose_nodes_are_about_to_go_are_replaced_at_no_loss(calm, tmp_path):
    plan = plan_for(20, workers={"min": 4})
    with Run(plan, tmp_path, hold=5) as run:
        run.until_held()
        leaving = run.present[:2]
        run.drain(leaving)
        run.until_asked()
        run.go_on(hold=15)
        run.until_held()
        assert not set(leaving) & set(run.present)
        run.go_on()
        run.succeeded()
    assert "preemption" in causes(run), run.story()
    assert not run.lost, run.story()
    assert sum(event["steps_lost"] for event in run.told["elastic"]) == 0
    assert_same(run, calm(plan))


def test_a_worker_that_leaves_completes_the_checkpoint_that_it_is_writing(calm, tmp_path):
    fault = Fault(number=0, kind="slow", rank=0, phase="checkpointing", step=5, seconds=1.0)
    plan = plan_for(10, pairs=1, workers={"min": 2})
    with Run(plan, tmp_path, faults=[fault], hold=6) as run:
        run.until_held()
        run.until(run.fired)
        run.want(1)
        run.drain(run.present[:1])
        run.until_asked()
        run.go_on(hold=8)
        run.until(lambda: run.kept()[-1] == 6)
        run.go_on()
        run.succeeded()
    assert not run.lost
    assert_same(run, calm(plan))


def test_what_a_killed_writer_left_is_gone_at_the_end(calm, tmp_path):
    fault = Fault(number=0, kind="kill", rank=0, phase="checkpointing", step=8)
    plan = plan_for(20, pairs=1)
    with Run(plan, tmp_path, faults=[fault], hold=9) as run:
        run.until(lambda: run.lost)
        assert [*tmp_path.glob("checkpoints/.step-000000009.ckpt.*")]
        run.go_on()
        run.succeeded()
    assert_same(run, calm(plan))


# Faults at moments for which a schedule has no name


def hands_over(exchange, operation, step, tensors, root, to=()):
    return _transfers(operation, step, tensors) and exchange.rank == root


def receives(exchange, operation, step, tensors, root, to=()):
    return _transfers(operation, step, tensors) and exchange.rank in to


def _transfers(operation, step, tensors):
    return operation == "transfer of the state" and step > 0 and len(tensors) > 1


def a_part(spread, exchange, operation, step, tensors, *ranks):
    spread(exchange, operation, step, tensors[:1], *ranks)


def forms_as(wanted, name, rank, size, how):
    return rank == wanted and not name.endswith("-1")  # the first generation is not meant


def evaluates(exchange, operation, step, values):
    return operation == "exchange of an evaluation" and exchange.rank == 1


def ends_as(wanted, exchange, operation, step):
    return operation == "end of the run" and exchange.rank == wanted


AMBUSHES = {  # where, with which arguments, and what is still done
    "hands over the state": ("exchange:Exchange.spread", hands_over, a_part),
    "receives the state": ("exchange:Exchange.spread", receives, a_part),
    "leads the forming of a group": ("membership:form_group", partial(forms_as, 0), None),
    "comes to the forming of a group": ("membership:form_group", partial(forms_as, 1), None),
    "evaluates": ("exchange:Exchange.add_up", evaluates, None),
    "has written the model": ("exchange:Exchange.meet", partial(ends_as, 0), None),
    "has reached the end": ("exchange:Exchange.meet", partial(ends_as, 1), None),
}
SAVES_LAST = {"writes the last checkpoint": ("loop:Worker._save_last", lambda worker: True, None)}


def kill_who(what, job):
    """In a worker's process: let the first one that comes to this moment be killed there."""
    where, fits, still_done = (AMBUSHES | SAVES_LAST)[what]
    owner, _, name = f"sampa.workers.{where}".rpartition("." if "." in where else ":")
    owner = resolve_name(owner)
    method = getattr(owner, name)

    def ambushed(*arguments):
        if not fits(*arguments) or not _first(job.directory / "struck"):
            return method(*arguments)
        if still_done:
            still_done(method, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    setattr(owner, name, ambushed)


def _first(flag):
    try:
        flag.mkdir()
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("what", AMBUSHES)
def test_half_of_the_workers_go_on_when_a_newcomer_or_one_of_them_dies_as_it(calm, tmp_path, pairs, what):
    """There is no checkpoint: what is lost with the last who had it is trained again."""
    plan = plan_for(9, pairs=pairs, checkpoint={"every_steps": 1000}, workers={"min": pairs, "deadline_s": 2})
    with Run(plan, tmp_path, hold=3, ambush=partial(kill_who, what)) as run:
        run.want(pairs)
        run.until_held(pairs)
        run.want(2 * pairs)
        run.until_asked()
        run.go_on()
        run.succeeded()
    assert (tmp_path / "struck").exists(), run.story()
    assert run.lost, run.story()
    assert_same(run, calm(plan))


def test_when_the_one_that_saves_a_stopped_run_is_killed_another_saves_it(calm, tmp_path):
    plan = plan_for(9)
    with Run(plan, tmp_path, hold=3, ambush=partial(kill_who, *SAVES_LAST)) as run:
        run.until_held()
        run.ask("stop", "asked to")
        run.until_asked()
        run.go_on()
        assert run.ended()["step"] == 5
    assert run.lost, run.story()
    with Run(plan, tmp_path, before=run) as run:
        run.succeeded()
    assert_same(run, calm(plan))
