"""The keeping of a sweep's answer: when versions are written, and that nothing in it costs a sweep its end."""

import json
import threading
import time

import pytest
from sampa.service.sweeps import answer, plot, report
from sampa.service.sweeps.answer import Answers
from sampa.workers.storage import StorageError

from .made_up import digits_like
from .sweeps import sweep_of

SPEC = sweep_of(search="grid", trials=16, seeds=1)
TRIALS = digits_like(1)
DEADLINE_S = 60.0


class Shelf:
    """A storage that remembers what was written, and may be away, or slow, for a while."""

    def __init__(self):
        self.files, self.versions, self.away, self.free = {}, [], False, threading.Event()
        self.free.set()

    def write(self, name, data):
        assert self.free.wait(DEADLINE_S)
        if self.away:
            raise StorageError("the storage is away")
        self.files[name] = data
        if name == "report.json":
            self.versions.append(json.loads(data)["trials"]["counts"]["SUCCEEDED"])

    def report(self):
        return json.loads(self.files["report.json"])


def written(answers, shelf, count):
    """Touch the answers as the runner does, until so many versions were written."""
    deadline = time.monotonic() + DEADLINE_S
    while len(shelf.versions) < count:
        assert time.monotonic() < deadline, f"{shelf.versions} were written"
        answers.touch()
        time.sleep(0.01)
    return shelf.versions


@pytest.fixture
def shelf():
    return Shelf()


@pytest.fixture
def answers(shelf):
    made = Answers(shelf)
    yield made
    shelf.free.set()
    made._join(DEADLINE_S)  # what it says meanwhile belongs to the test


def test_the_first_version_is_written_as_soon_as_a_trial_has_ended(answers, shelf):
    answers.write(SPEC, TRIALS[:1])
    assert written(answers, shelf, 1) == [1]


def test_what_came_too_soon_after_a_version_is_in_a_later_one(answers, shelf, monkeypatch):
    answers.write(SPEC, TRIALS[:1])
    written(answers, shelf, 1)
    answers.write(SPEC, TRIALS[:2])
    answers.write(SPEC, TRIALS[:3])
    answers.touch()
    assert shelf.versions == [1]
    monkeypatch.setattr(answer, "EVERY_S", 0.1)
    assert written(answers, shelf, 2) == [1, 3]
    answers.touch()
    answers.finish(SPEC, TRIALS[:3])
    assert shelf.versions == [1, 3, 3], "nothing new, nothing written but the end"


def test_the_last_version_is_there_when_the_call_returns(answers, shelf):
    answers.write(SPEC, TRIALS[:1])
    answers.write(SPEC, TRIALS[:2])
    answers.last(SPEC, TRIALS[:2])
    assert shelf.versions[-1] == 2
    assert shelf.files["report.png"]


def test_of_no_trials_there_is_no_last_version(answers, shelf):
    answers.last(SPEC, [])
    assert shelf.files == {}


def test_a_last_version_is_given_up_while_the_storage_is_away_or_slow(answers, shelf, monkeypatch, capsys):
    shelf.away = True
    answers.last(SPEC, TRIALS[:1])
    assert "the storage is away" in capsys.readouterr().err
    shelf.free.clear()
    monkeypatch.setattr(answer, "LAST_S", 0.2)
    answers.last(SPEC, TRIALS[:1])
    shelf.free.set()
    assert "was not written within 0.2 s" in capsys.readouterr().err


def broken(*_):
    raise ValueError("'x' is none of the choices")


def test_a_fault_in_the_report_costs_no_sweep_its_end(answers, shelf, monkeypatch, capsys):
    monkeypatch.setattr(report, "report", broken)
    found = answers.finish(SPEC, TRIALS)
    assert found == shelf.report()
    assert found["recommended"] is None
    assert found["why_not"] == "the report could not be made: ValueError: 'x' is none of the choices"
    assert found["trials"]["counts"] == {"SUCCEEDED": len(TRIALS)}
    assert "Traceback" in capsys.readouterr().err
    assert shelf.files["report.png"], "which shows the same sentence"


def test_a_fault_in_the_picture_costs_no_report(answers, shelf, monkeypatch, capsys):
    monkeypatch.setattr(plot, "draw", broken)
    assert answers.finish(SPEC, TRIALS)["recommended"]
    assert shelf.report()["recommended"]
    assert "report.png" not in shelf.files
    assert "Traceback" in capsys.readouterr().err
