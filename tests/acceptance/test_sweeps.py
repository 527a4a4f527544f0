"""Sweeps on a real service and a real Ray: killed or paused, they have the trials of an unbroken one, and find rho.

SAMPA_TEST_PLANTED=10 repeats the search for a known optimum ten times.
"""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import psutil
import pytest
from sampa.api.client import Client
from sampa.service import local_ray

from ..api.processes import ServerProcess, until
from .jobs import FINAL, LOOK_S, Document, kill

pytestmark = [
    pytest.mark.ray,
    pytest.mark.long,
    pytest.mark.timeout(900),
]
END_S = 400.0
PLANTED = int(os.environ.get("SAMPA_TEST_PLANTED", "1"))


def sweep(name: str, **fields: Any) -> Document:
    """Return a sweep of small trials on digits."""
    base = {
        "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
        "method": {"name": "sampa", "lambda": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "epochs": 3,
        "batch_size": 64,
        "checkpoint": {"every_steps": 10},
    }
    space = {"method.rho": {"loguniform": [0.01, 0.5]}}
    return {"name": name, "base": base, "space": space, "trials": 6, "baselines": ["sgd"]} | fields


class Swept:
    """One sweep, looked at through the API."""

    def __init__(self, client: Client, asked: Document) -> None:
        self.client = client
        self.id = client.sweeps.submit(asked)["id"]

    def now(self) -> Document:
        return self.client.sweeps.get(self.id)

    def reaches(self, *states: str) -> Document:
        def look() -> Document | None:
            found = self.now()
            assert found["state"] in states or found["state"] not in FINAL, found
            return found if found["state"] in states else None

        return until(look, f"{self.id} to be {' or '.join(states)}", END_S, LOOK_S)

    def trials(self) -> list[Document]:
        return list(self.client.sweeps.trials(self.id))

    def ended(self) -> int:
        return int(self.now()["progress"].get("ended", 0))

    def until_ended(self, number: int) -> None:
        """Wait until so many trials have ended."""
        until(lambda: self.ended() >= number or None, f"{number} trials of {self.id}", END_S, LOOK_S)

    def history(self) -> list[tuple[Any, ...]]:
        """Return what its trials are, and what they have measured, as it must be in every run of the sweep."""
        return [
            (one["number"], one["values"], one["seed"], one["state"], self.curve(one["number"]))
            for one in self.trials()
        ]

    def curve(self, number: int) -> list[tuple[int, float]]:
        events = self.client.sweeps.events(self.id, trial=number, kinds=["evaluation"])
        return [(event["data"]["step"], event["data"]["accuracy"]) for event in events]

    def runners(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if self._is_runner(one)]

    def _is_runner(self, process: psutil.Process) -> bool:
        try:
            line = process.cmdline()
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False
        return "sampa.service.sweeps.runner" in line and self.id in line and alive


@pytest.fixture(scope="module")
def unbroken(client: Client) -> list[tuple[Any, ...]]:
    swept = Swept(client, sweep("unbroken", search="tpe"))
    ended = swept.reaches("SUCCEEDED", "FAILED")
    assert ended["state"] == "SUCCEEDED", ended["reason"]
    return swept.history()


def test_a_sweep_answers(client: Client, unbroken: list[tuple[Any, ...]]) -> None:
    (found,) = [one for one in client.sweeps.list() if one["name"] == "unbroken"]
    report = client.sweeps.report(found["id"])
    assert [row["configuration"] for row in report["configurations"]] == list(range(6))
    assert report["recommended"]["values"].keys() == {"method.rho"}
    assert report["advantage"]["sgd"]["verdict"]
    assert len(unbroken) == 7
    assert all(state == "SUCCEEDED" and curve for _, _, _, state, curve in unbroken)


def test_a_sweep_that_is_paused_goes_on_with_the_same_trials(client: Client, unbroken: list[tuple[Any, ...]]) -> None:
    swept = Swept(client, sweep("paused", search="tpe"))
    swept.until_ended(2)
    client.sweeps.pause(swept.id)
    swept.reaches("PAUSED")
    until(lambda: not swept.runners() or None, "its runner to end", END_S, LOOK_S)
    client.sweeps.resume(swept.id)
    swept.reaches("SUCCEEDED", "FAILED")
    assert swept.history() == unbroken


def test_a_sweep_killed_five_times_makes_the_trials_of_the_unbroken_one(
    server: ServerProcess, client: Client, unbroken: list[tuple[Any, ...]]
) -> None:
    swept = Swept(client, sweep("killed", search="tpe"))
    pause = random.Random(7)
    for number, victim in enumerate(["runner", "server", "ray", "runner", "server"]):
        swept.until_ended(number // 2)
        time.sleep(pause.uniform(0, 1))  # anywhere within a trial
        assert swept.now()["state"] not in FINAL, "all ended before the last kill"
        if victim == "runner":
            until(lambda: swept.runners() or None, "its runner", END_S, LOOK_S)
            kill(swept.runners()[0].pid)
        elif victim == "server":
            server.processes[-1].send_signal(signal.SIGKILL)
            server.processes[-1].wait(30)
            server.start()
        else:
            ray = local_ray.find(server.state_dir)
            assert ray is not None
            for process in [psutil.Process(ray.pid), *psutil.Process(ray.pid).children(recursive=True)]:
                process.kill()
    ended = swept.reaches("SUCCEEDED", "FAILED")
    assert ended["state"] == "SUCCEEDED", ended["reason"]
    assert swept.history() == unbroken


def test_a_population_copies_states_and_changes_rho(client: Client) -> None:
    asked = sweep("population", trials=4, baselines=[], scheduler={"name": "pbt", "every_epochs": 1})
    swept = Swept(client, asked)
    ended = swept.reaches("SUCCEEDED", "FAILED")
    assert ended["state"] == "SUCCEEDED", ended["reason"]
    copies = [
        event["data"]
        for one in swept.trials()
        for event in client.sweeps.events(swept.id, trial=one["number"], kinds=["exploit"])
    ]
    assert {copy["epoch"] for copy in copies} == {1, 2}
    assert all(copy["before"] != copy["values"] for copy in copies)
    last = [client.job(one["id"])["spec"]["method"]["rho"] for one in swept.trials()]
    assert last != [one["values"]["method.rho"] for one in swept.trials()]


def test_a_metric_that_is_not_reported_and_a_trial_that_crashes(client: Client) -> None:
    task = {"entrypoint": "own:digits", "params": {"label_noise": 0.4}}
    base = {**sweep("x")["base"], "task": task}
    swept = Swept(client, sweep("no-such-metric", base=base, metric="f1"))
    failed = swept.reaches("FAILED", "SUCCEEDED")
    assert "metric f1 is not among what the task's evaluations report: accuracy, loss" in failed["reason"]
    space = {"task.params.label_noise": {"grid": [0.4, 7.0]}}
    swept = Swept(client, sweep("crash", base=base, space=space, trials=2, search="grid"))
    ended = swept.reaches("SUCCEEDED", "FAILED")
    assert ended["state"] == "SUCCEEDED", ended["reason"]
    states = {one["values"].get("task.params.label_noise"): one["state"] for one in swept.trials()}
    assert states[7.0] == "FAILED"
    assert states[0.4] == "SUCCEEDED"
    assert client.sweeps.report(swept.id)["trials"]["failed"][0]["reason"]


def test_a_planted_optimum_is_found_and_its_interval_covers_it(client: Client) -> None:
    bests = [0.03 * 1.2**number for number in range(PLANTED)]
    swept = [Swept(client, planted(best, number)) for number, best in enumerate(bests)]
    found = []
    for best, one in zip(bests, swept, strict=True):
        ended = one.reaches("SUCCEEDED", "FAILED")
        assert ended["state"] == "SUCCEEDED", ended["reason"]
        recommended = client.sweeps.report(one.id)["recommended"]
        low, high = recommended["intervals"]["method.rho"]
        found.append((recommended["values"]["method.rho"] / best, low <= best <= high))
        print(f"best {best:.4g}: {recommended['values']['method.rho']:.4g} ({low:.4g} to {high:.4g})")
    assert sum(1 / 1.1 <= ratio <= 1.1 for ratio, _ in found) >= 0.9 * PLANTED, found
    assert sum(covered for _, covered in found) >= 0.9 * PLANTED, found


def planted(best: float, seed: int) -> Document:
    """Return a sweep of 40 trials, of which the best rho is known."""
    base = {
        "task": {"entrypoint": "own:planted", "params": {"best": best, "spread": 0.02}},
        "method": {"name": "sampa", "lambda": 0.0},
        "optimizer": {"name": "sgd", "lr": 1.0},
        "steps": 1,
        "batch_size": 4,
        "workers": {"min": 1, "max": 1},
    }
    fields = {"search": "tpe", "trials": 40, "seed": seed, "metric": "score", "baselines": []}
    return sweep("planted", base=base, **fields)
