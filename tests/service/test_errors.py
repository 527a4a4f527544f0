"""What the service raises is fit to cross a process: the same words and values come out as went in."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from sampa.service.kube import KubeRefused, KubeUnusable
from sampa.service.kube_launcher import TemplateUnusable
from sampa.service.launcher import LaunchRefused, RayUnreachable, TokenRefused
from sampa.service.local_ray import RayNotStarted
from sampa.service.rayjob import TemplateRefused
from sampa.service.records import Changed, MoveRefused, NoSuchJob, StoreUnavailable
from sampa.service.states import State
from sampa.workers import errors
from sampa.workers.marks import NotMarked

TEMPLATE = TemplateRefused(Path("/etc/sampa/rayjob.yaml"), "is no RayJob of ray.io/v1; give one")
RAISED: list[Exception] = [
    RayUnreachable("http://head:8265", "no route"),
    TokenRefused("http://head:8265", given=True),
    LaunchRefused("http://head:8265", 500, "no agent"),
    RayNotStarted("no room", Path("/tmp/ray.log")),
    KubeUnusable("https://10.0.0.1", "is away"),
    KubeRefused("https://10.0.0.1", 403, "refused to create rayjobs"),
    TEMPLATE,
    TemplateUnusable(TEMPLATE),
    NoSuchJob("a1"),  # all errors of the store cross alike
    MoveRefused("a1", State.FAILED, State.RUNNING),
    Changed("a1", 3, 4),
    StoreUnavailable("sqlite:///sampa.db", "locked"),
    NotMarked(Path("/var/lib/sampa/jobs"), "Read-only file system"),
    errors.TaskError("the task has no data"),
    errors.NotFinite("loss", float("inf"), 7, "SAMPa"),
    errors.CheckpointError("it is of another job"),
    errors.NotShared("it is another directory"),
    errors.Interrupted("its Ray was lost"),
    errors.Dismissed(save=True),
    errors.WorkerLate("exchange", 7, "worker 1", 12.5),
    errors.WorkerLost("exchange", 7, "worker 1", "reset"),
]


def values(error: Exception) -> dict[str, Any]:
    return {name: str(value) for name, value in vars(error).items()}


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_an_error_crosses_a_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), values(again)) == (type(error), str(error), values(error))


def test_all_errors_of_the_runs_are_among_them() -> None:
    ours = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.RunError)}
    assert ours - {errors.RunError, errors.ExchangeError} <= {type(error) for error in RAISED}
