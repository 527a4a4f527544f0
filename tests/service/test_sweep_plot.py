"""The picture of a sweep's report."""

import json

import pytest
from PIL import Image
from sampa.service.sweeps.plot import draw
from sampa.service.sweeps.report import report, without

from .made_up import digits, halved, planted, trial, two_fields
from .sweeps import sweep_of

GRID = sweep_of(search="grid", trials=16, seeds=3)
LOSS = sweep_of(trials=40, baselines=[], metric="loss", mode="min")
TWO = {"method.rho": {"loguniform": [0.01, 0.5]}, "optimizer.name": {"choice": ["sgd", "adamw"]}}


@pytest.mark.parametrize(
    ("spec", "trials"),
    [
        (GRID, digits()),
        (GRID, halved(digits(), grace=9)),
        (LOSS, planted(0, sign=-1)[0]),
        (sweep_of(space=TWO, trials=60, baselines=[]), [*two_fields()]),
        (GRID, digits()[:6]),
        (GRID, []),
        (GRID, [trial(0, 0.5, values={"method.rho": 0.1})]),
    ],
    ids=["digits", "stopped early", "less is better", "two fields", "baselines alone", "nothing", "one trial"],
)
def test_is_drawn_from_the_reports_json(spec, trials, tmp_path):
    draw(json.loads(json.dumps(report(spec, trials))), tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size == (1000, 600)
        assert len(picture.convert("RGB").getcolors(2**20)) > 10


def test_shows_choices_of_whole_objects_and_a_report_without_an_answer(tmp_path):
    methods = ["sampa", {"name": "sam", "rho": 0.2, "rho_schedule": {"name": "cosine", "warmup_steps": 10}}]
    spec = sweep_of(space={"method": {"choice": methods}}, trials=2, seeds=2, baselines=[])
    trials = [trial(i, 0.9 + 0.01 * i, values={"method": methods[i // 2]}, configuration=i // 2) for i in range(4)]
    for found in (report(spec, trials), without(spec, trials, "the report could not be made")):
        draw(json.loads(json.dumps(found)), tmp_path / "report.png")
        assert (tmp_path / "report.png").stat().st_size > 10_000
        (tmp_path / "report.png").unlink()


def test_needs_no_state_of_pyplot(tmp_path):
    import sys

    draw(report(GRID, digits()), tmp_path / "report.png")
    assert "matplotlib.pyplot" not in sys.modules
