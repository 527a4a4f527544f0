"""Many jobs submitted at once: each that can't be trained ends with one sentence, and the good ones don't notice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .jobs import Document, Watched, short

pytestmark = pytest.mark.ray
Submit = Callable[[Document], Watched]

WRONG_TASKS = {
    "broken:build": (
        "the module of task broken:build failed to import: ModuleNotFoundError: No module named 'nowhere_to_be_found'; "
        "is it in the code directory, and does `python -c 'import broken'` work there?"
    ),
    "own:one_loss_for_all": (
        "the loss of task own:one_loss_for_all must return one value per sample, shape (16,), but returned shape (); "
        "use reduction='none'"
    ),
    "own:too_small": "task own:too_small has 3 training rows, fewer than one batch of 16; lower batch_size",
}


@pytest.fixture(scope="module")
def jobs(submit: Submit) -> dict[str, Watched]:
    """All of them, submitted at the same moment, and two good ones."""
    diverging = {"optimizer": {"name": "sgd", "lr": 1e6}, "checkpoint": {"every_steps": 1, "keep": 2}}
    asked: dict[str, dict[str, Any]] = {"one": {}, "diverging": diverging, "other": {}}
    asked |= {task: {"task": {"entrypoint": task}, "batch_size": 16} for task in WRONG_TASKS}
    with ThreadPoolExecutor(len(asked)) as pool:
        submitted = pool.map(lambda name: submit(short(name.replace(":", "-"), **asked[name])), asked)
        return dict(zip(asked, submitted, strict=True))


def test_a_loss_that_becomes_infinite_names_the_step_and_the_method(jobs: dict[str, Watched]) -> None:
    job = jobs["diverging"]
    ended = job.ended()
    assert ended["state"] == "FAILED"
    kept = [found for found in job.client.checkpoints(job.id) if found["available"]]
    assert kept, "its last good checkpoint is kept"
    step = kept[-1]["step"]
    assert f"at step {step}, with sampa with " in ended["reason"]
    for words in ("rho 0.1", "lambda 0.2", "lr 1000000.0", "Lower rho or the learning rate"):
        assert words in ended["reason"]
    assert "\n" not in ended["reason"]


@pytest.mark.parametrize("task", WRONG_TASKS)
def test_a_mistake_that_only_a_worker_can_know_is_one_sentence(jobs: dict[str, Watched], task: str) -> None:
    ended = jobs[task].ended()
    assert (ended["state"], ended["attempt"]) == ("FAILED", 1), "it is not tried again"
    assert ended["reason"] == WRONG_TASKS[task]


def test_their_good_neighbours_succeed_and_a_late_cancel_changes_nothing(jobs: dict[str, Watched]) -> None:
    one, other = jobs["one"], jobs["other"]
    for job in (one, other):
        ended = job.ended()
        assert (ended["state"], ended["attempt"]) == ("SUCCEEDED", 1)
    assert one.data("evaluation") == other.data("evaluation")
    before = (one.now(), one.events())
    assert one.client.cancel(one.id)["state"] == "SUCCEEDED"
    assert (one.now(), one.events()) == before
