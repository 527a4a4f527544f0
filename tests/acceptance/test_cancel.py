"""Cancel in any state that a job can be in before its end; test_many has the one after it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sampa.api.client import Client

from ..api.processes import until
from .jobs import LOOK_S, Document, Watched, gone, short, spec

pytestmark = pytest.mark.ray
Submit = Callable[[Document], Watched]


def test_a_job_is_cancelled_in_any_state(client: Client, submit: Submit) -> None:
    running, starting = submit(spec("running", pace_s=0.1)), submit(spec("starting"))
    queued = submit(short("queued"))  # two run at once, so this one waits
    assert client.cancel(queued.id)["state"] == "CANCELLED"
    until(lambda: starting.runners() or None, "the second runner", every_s=LOOK_S)
    assert client.cancel(starting.id)["state"] == "CANCELLING"
    running.reaches("RUNNING")
    running.first("metrics")
    ((worker,),) = running.worker_pids().values()
    assert not gone(worker)
    running.assert_in_the_middle()
    assert client.cancel(running.id)["state"] == "CANCELLING"
    for job in (queued, starting, running):
        assert job.ended()["state"] == "CANCELLED"
        assert client.cancel(job.id)["state"] == "CANCELLED", "once more changes nothing"
        until(lambda job=job: not job.runners() or None, f"the end of the runner of {job.id}")
    assert queued.path() == ["QUEUED", "CANCELLED"]
    assert starting.path() == ["QUEUED", "STARTING", "CANCELLING", "CANCELLED"]
    assert running.path() == ["QUEUED", "STARTING", "RUNNING", "CANCELLING", "CANCELLED"]
    until(lambda: gone(worker) or None, "the end of the worker")
