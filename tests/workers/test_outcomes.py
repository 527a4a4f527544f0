"""How a run has ended: from what a worker raises to what whoever started the run is told."""

from types import SimpleNamespace

import pytest
from sampa.workers import part
from sampa.workers.errors import NotFinite, TaskError
from sampa.workers.ledger import Ledger
from sampa.workers.storage import Storage, StorageError
from sampa.workers.trainer import Outcome, conclude

from .serial import plan_of

PLAN = plan_of(method={"name": "sgd"})


class Line:
    """Stands for a coordinator's handle; keeps what the worker says at its end."""

    outcome = None

    @property
    def report(self):
        return SimpleNamespace(remote=lambda reports: None)

    @property
    def finish(self):
        return SimpleNamespace(remote=lambda name, outcome: setattr(self, "outcome", outcome))


@pytest.fixture
def ended_with(monkeypatch, tmp_path):
    """Give what the coordinator is told when a worker raises this error."""
    context = SimpleNamespace(get_node_id=lambda: "a", current_actor=None)
    monkeypatch.setattr(part.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(part.ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(part.ray.util, "get_node_ip_address", lambda: "127.0.0.1")

    def end(error):
        def worker(*_):
            raise error

        monkeypatch.setattr(part, "Worker", worker)
        line = Line()
        part.take_part(PLAN, line, run="run", name="worker 0", storage=Storage(str(tmp_path)))
        return line.outcome

    return end


def concluded(outcome, tmp_path):
    return conclude(outcome, PLAN, Storage(str(tmp_path)), 1, Ledger())


def test_a_run_whose_loss_is_no_number_any_more_has_diverged(ended_with, tmp_path):
    error = NotFinite("loss of the plain half", float("nan"), 7, "sampa")
    assert concluded(ended_with(error), tmp_path) == Outcome(False, str(error), {}, diverged=True)


def test_a_run_that_fails_for_another_reason_has_not(ended_with, tmp_path):
    assert concluded(ended_with(TaskError("no such thing")), tmp_path) == Outcome(False, "no such thing", {})
    assert ended_with(StorageError("away"))["retry"]


def test_a_held_run_says_so_and_a_stopped_one_only_that_it_is_stopped(tmp_path):
    held = concluded({"succeeded": True, "result": {"held_at": 12}}, tmp_path)
    assert held == Outcome(False, "held at step 12", {}, stopped=True, held=True)
    stopped = concluded({"succeeded": False, "stopped": True, "step": 3, "reason": "held up by a cat"}, tmp_path)
    assert (stopped.stopped, stopped.held) == (True, False)
