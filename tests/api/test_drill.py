"""A drill's schedule is a pure function of what was asked, and its verdict of what was reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sampa.api.drill import drill_here
from sampa.api.drill_schedule import KINDS, DrillRefused, Listed, Stage, choose_kinds, parse, schedule, show_fault
from sampa.api.drill_verdict import Account, Verdict, differing_weights, fault_rows, judge
from sampa.service.specs import JobSpec
from sampa.workers.faults import PHASES, Fault
from sampa.workers.reports import Report

from .conftest import SPEC

STAGE = Stage(steps=200, workers=2, every_steps=20)
LISTED = "kill:1@60/updating,hang:0@130/computing,slow:1@150/computing:2.5"
stages = st.builds(Stage, st.integers(1, 300), st.integers(1, 4), st.integers(1, 50))
seeds = st.integers(0, 2**31)
kinds_of = st.lists(st.sampled_from(KINDS), min_size=1, unique=True)


def planned(text: str, stage: Stage = STAGE, seed: int = 0, kinds: Any = KINDS) -> list[Fault]:
    return schedule(parse(text), stage, seed=seed, kinds=kinds)


def written(faults: list[Fault]) -> str:
    return ",".join(map(show_fault, faults))


def refusal(text: str, stage: Stage = STAGE, kinds: str | None = None, *, nodes: bool = True) -> str:
    with pytest.raises(DrillRefused) as caught:
        asked = parse(text)
        schedule(asked, stage, seed=0, kinds=choose_kinds(kinds, asked, nodes=nodes))
    return str(caught.value)


# What is to go wrong


@given(stages, seeds, kinds_of, st.data())
def test_what_is_drawn_fits_the_job(stage: Stage, seed: int, kinds: Any, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, stage.steps))
    faults = planned(str(count), stage, seed, kinds)
    steps = [fault.step for fault in faults]
    assert [fault.number for fault in faults] == list(range(count))
    assert steps == sorted(set(steps))
    assert set(steps) <= set(range(stage.steps))
    for fault in faults:
        assert fault.kind in kinds
        assert fault.rank < stage.workers
        assert fault.phase != "checkpointing" or fault.step in stage.checkpointed()


@given(stages, seeds, kinds_of)
def test_all_is_each_kind_of_each_rank_in_each_phase_once(stage: Stage, seed: int, kinds: Any) -> None:
    each = len(kinds) * stage.workers
    assume(each * len(PHASES) <= stage.steps and each <= len(stage.checkpointed()))
    faults = planned("all", stage, seed, kinds)
    assert len({(fault.kind, fault.rank, fault.phase) for fault in faults}) == len(faults) == each * len(PHASES)


@given(seeds)
def test_no_kind_comes_much_more_often_than_another(seed: int) -> None:
    faults = planned("48", STAGE, seed, ["kill", "hang"])
    assert sum(fault.kind == "kill" for fault in faults) in range(20, 29)


@given(seeds, st.integers(1, 60))
def test_what_is_printed_can_be_asked_for_again(seed: int, count: int) -> None:
    faults = planned(str(count), seed=seed)
    assert planned(written(faults)) == faults
    assert planned(str(count), seed=seed) == faults


def test_faults_are_spread_over_the_job() -> None:
    steps = [fault.step for fault in planned("10", Stage(200, 2, 500))]
    assert [step // 20 for step in steps] == list(range(10))


def test_another_seed_is_another_schedule() -> None:
    assert len({written(planned("5", seed=seed)) for seed in range(20)}) == 20


def test_a_list_is_put_in_order_with_what_it_leaves_out() -> None:
    faults = planned(" hang:0@130, slow:1@150:2.5,kill:1@60/updating")
    assert written(faults) == LISTED
    assert [fault.number for fault in faults] == [0, 1, 2]
    assert planned("slow:0@1")[0].seconds == 1.0


def test_the_last_state_is_no_checkpoint() -> None:
    assert Stage(60, 1, 20).checkpointed() == [19, 39]
    assert Stage(61, 1, 20).checkpointed() == [19, 39, 59]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("0", "--faults 0 asks for nothing to go wrong; ask for 1 at least"),
        ("-3", "--faults -3 asks for nothing"),
        ("201", "--faults 201 means 201 faults, one in a step at most, but the job has 200 steps; ask for fewer"),
        ("", "--faults: '' is no fault; give how many at random, all, or a list of kind:rank@step"),
        ("kill", "'kill' is no fault"),
        ("kill:1@60,", "'' is no fault"),
        ("kill:-1@60", "'kill:-1@60' is no fault"),
        ("burn:1@60", "'burn:1@60': 'burn' is no kind of fault; it must be one of kill, hang, slow, node"),
        ("kill:1@60/eating", "no such phase; it must be one of computing, exchanging, updating, checkpointing"),
        ("kill:1@60:3", "gives seconds, but only a slow fault takes them"),
        ("slow:1@60:soon", "must give its seconds as a number, 0 or more"),
        ("slow:1@60:-1", "must give its seconds as a number"),
        ("slow:1@60:inf", "must give its seconds as a number"),
        ("kill:2@60", "hits rank 2, but the job has 2 workers, the first of rank 0"),
        ("kill:0@200", "hits step 200, but the last of the job's 200 steps is 199"),
        ("kill:0@60/checkpointing", "no checkpoint is written; one is written after each of steps 19, 39, 59, ..."),
        ("kill:0@199/checkpointing", "no checkpoint is written"),
        ("kill:0@60,hang:1@60", "two faults hit step 60; one in each step is the most"),
    ],
)
def test_bad_faults_are_one_sentence(text: str, sentence: str) -> None:
    told = refusal(text)
    assert sentence in told
    assert "\n" not in told


def test_all_needs_enough_steps_and_checkpoints() -> None:
    assert "all means 24 faults, one in a step" in refusal("all", Stage(23, 2, 2), nodes=False)
    told = refusal("all", Stage(100, 2, 20), nodes=False)
    assert "6 faults while a checkpoint is written, but the job writes 4 before its last" in told
    assert len(planned("all", Stage(141, 2, 20), kinds=choose_kinds(None, "all", nodes=False))) == 24


def test_kinds_are_those_that_can_happen() -> None:
    assert choose_kinds(None, 5, nodes=False) == ["kill", "hang", "slow"]
    assert choose_kinds(None, 5, nodes=True) == [*KINDS]
    assert choose_kinds(" hang,kill", 5, nodes=False) == ["kill", "hang"]
    assert "'' is no kind" in refusal("5", kinds="")
    assert "--kinds: 'burn' is no kind of fault" in refusal("5", kinds="kill,burn")
    assert "add --nodes" in refusal("5", kinds="node", nodes=False)
    assert "add --nodes" in refusal("node:0@3", nodes=False)
    assert "leave it out, since --faults lists each fault" in refusal("kill:0@3", kinds="kill")


def test_a_refused_drill_touches_nothing(tmp_path: Path) -> None:
    spec = JobSpec.model_validate(SPEC | {"epochs": None, "steps": 20})
    with pytest.raises(DrillRefused, match="hits step 20"):
        drill_here(spec, "kill:0@20", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "calm").mkdir()
    with pytest.raises(DrillRefused, match="holds an earlier drill"):
        drill_here(spec, "kill:0@3", out=tmp_path)


# What came of it


def elastic(cause: str, step: int, before: int, after: int, **fields: Any) -> Report:
    data = {"cause": cause, "step": step, "workers_before": before, "workers_after": after, "detail": ""}
    costs = {"steps_lost": 0, "samples_replayed": 0, "recovery_seconds": 0.25, "generation": 1}
    return Report("elastic", data | costs | fields)


def fault(number: int) -> Report:
    return Report("fault", {"number": number})


def measured(step: int, loss: float, seconds: float = 1.0) -> Report:
    return Report("metrics", {"step": step, "loss": loss, "seconds_per_step": seconds})


START = elastic("start", 0, 0, 2)
LOSS = elastic("loss", 60, 2, 1, steps_lost=1, samples_replayed=64, detail="worker 1 ended")
JOIN = elastic("join", 80, 1, 2)


def account(reports: list[Report], faults: str = LISTED) -> Account:
    """Return the account of reports that come a second apart."""
    taken = Account(planned(faults), workers=2)
    for at, report in enumerate(reports):
        taken.take(report, float(at))
    return taken


def verdict(reports: list[Report], calm: list[Report] | None = None, **changed: Any) -> Verdict:
    asked: dict[str, Any] = {"batch_size": 64, "reason": "", "differing": []} | changed
    return judge(account(reports), account(calm or [], "1"), **asked)


WELL = [START, fault(0), LOSS, JOIN, fault(1), LOSS, JOIN, fault(2)]


def test_all_is_well() -> None:
    assert verdict(WELL) == Verdict(
        "3 of 3 faults fired; weights are bit-identical to the calm run; at most 1 step was lost per event"
    )


def test_each_fault_has_its_loss_and_the_time_until_the_crew_was_complete() -> None:
    kill, hang, slow = [one.document() for one in account(WELL).struck]
    assert (kill["cause"], kill["steps_lost"], kill["samples_replayed"], kill["pause_s"]) == ("loss", 1, 64, 0.25)
    assert (kill["complete_after_s"], kill["rejoin_pause_s"], kill["detail"]) == (2.0, 0.25, "worker 1 ended")
    assert (hang["fired"], hang["complete_after_s"]) == (True, 2.0)
    assert (slow["fired"], slow["cause"], slow["complete_after_s"], slow["seconds"]) == (True, None, None, 2.5)
    assert "seconds" not in kill


def test_a_join_that_is_told_after_the_next_fault_belongs_to_the_one_before() -> None:
    """As when a fault hits the first step that a newcomer makes: the crew was complete by then."""
    late = elastic("join", 60, 1, 2, recovery_seconds=0.5)
    first, second, _ = account([START, fault(0), LOSS, fault(1), late, LOSS]).struck
    assert (first.document()["complete_after_s"], first.document()["rejoin_pause_s"]) == (2.0, 0.5)
    assert (second.document()["cause"], second.complete_at, second.rejoin) == ("loss", None, None)


def test_a_loss_that_no_fault_explains_is_in_the_ledger_only() -> None:
    taken = account([START, LOSS, JOIN, fault(0), LOSS, LOSS])
    assert [one.loss is not None for one in taken.struck] == [True, False, False]
    assert len(taken.ledger.events) == 5


def test_the_table_has_a_line_for_each_fault() -> None:
    rows = fault_rows([one.document() for one in account(WELL[:-1]).struck])
    assert [row[:3] for row in rows[1:]] == [
        ["kill:1@60/updating", "yes", "loss"],
        ["hang:0@130/computing", "yes", "loss"],
        ["slow:1@150/computing:2.5", "no", "-"],
    ]
    assert rows[1][3:] == ["1", "64", "0.25 s", "0.25 s", "2.00 s"]


@pytest.mark.parametrize(
    ("reports", "changed", "problem"),
    [
        (WELL[:4], {}, "2 of 3 faults did not fire: hang:0@130/computing, slow:1@150/computing:2.5"),
        (WELL, {"differing": ["a", "b"]}, "the weights differ from those of the calm run: a, b"),
        (WELL, {"differing": list("abcdefg")}, "a, b, c, d, e and 2 more"),
        (WELL, {"reason": "it was cut off"}, "the run under faults failed: it was cut off"),
        ([*WELL, elastic("loss", 9, 2, 1, steps_lost=3)], {}, "the loss at step 9 lost 3 steps and replayed 0 samples"),
        ([*WELL, elastic("loss", 9, 2, 1, samples_replayed=65)], {}, "lost 0 steps and replayed 65 samples"),
    ],
)
def test_what_is_wrong_is_said(reports: list[Report], changed: dict[str, Any], problem: str) -> None:
    found = verdict(reports, **changed)
    assert len(found.problems) == 1
    assert problem in found.text == found.problems[0]


def test_a_lone_worker_may_lose_what_was_not_saved() -> None:
    alone = elastic("loss", 9, 1, 1, steps_lost=17, samples_replayed=17 * 64)
    assert verdict([*WELL, alone]).text.endswith("at most 17 steps were lost per event")
    assert not verdict([*WELL, alone]).problems


def test_measurements_are_compared_but_not_their_times() -> None:
    calm = [measured(1, 2.5), measured(10, 1.5)]
    assert not verdict([*WELL, measured(1, 2.5, 9.0), measured(10, 1.5)], calm).problems
    (problem,) = verdict([*WELL, measured(1, 2.6)], calm).problems
    assert problem == "measurements differ from those of the calm run: metrics of step 1, metrics of step 10"


def test_weights_are_compared_bit_by_bit(tmp_path: Path) -> None:
    one = {
        "zero": torch.zeros(2),
        "nan": torch.full((2,), torch.nan),
        "scalar": torch.tensor(1.0),
        "gone": torch.ones(1),
    }
    save_file(one, tmp_path / "one")
    save_file(one | {"zero": -torch.zeros(2)}, tmp_path / "signed")
    save_file({name: one[name] for name in ("zero", "nan", "scalar")}, tmp_path / "less")
    assert differing_weights(tmp_path / "one", tmp_path / "one") == []
    assert differing_weights(tmp_path / "one", tmp_path / "signed") == ["zero"]
    assert differing_weights(tmp_path / "one", tmp_path / "less") == ["gone"]


def test_listed_faults_lack_only_their_number() -> None:
    listed = parse(LISTED)
    assert isinstance(listed, list)
    checked: Listed = listed
    assert {key for item in checked for key in item} | {"number"} == set(Fault.model_fields)
