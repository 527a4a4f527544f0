"""What does a sweep cost beyond its trials, what does stopping early save, and what would plain Ray Tune cost?

    python -m tests.benchmarks.bench_sweep [--epochs 30] [--trials 16] [--seeds 3] [--out FILE]

Digits with 40 % label noise, rho from 0.01 to 0.5, SGD and SAM as baselines. By REST, with a service and a Ray of its
own: a grid of rho, then three times as many values with trials stopped early (ASHA, at 0.3 of their epochs a quarter
goes on). Then the grid as a function that Ray Tune runs in one process per trial, on as many processors. The wall time
counts from the submission to the end, start of the workers included; the trials' own compute is the time of their
steps and evaluations, added up over workers, over the number of processors. All are measured one after the other in
this run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray
import torch
from sampa.service import local_ray

from ..api.processes import ServerProcess, until

LIMIT = 1.4  # of wall time to the trials' own compute over the processors
END_S = 3600.0
RAYS_OWN = "_AutoscalingCoordinatorActor"  # Ray Train's, one for the cluster


def sweep(epochs: int, trials: int, seeds: int) -> dict[str, Any]:
    """Return the sweep."""
    base = {
        "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
        "method": {"name": "sampa", "lambda": 0.0},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
        "schedule": {"name": "cosine"},
        "epochs": epochs,
        "batch_size": 64,
    }
    space = {"method.rho": {"loguniform": [0.01, 0.5]}}
    return {"name": "rho", "base": base, "space": space, "search": "grid", "trials": trials, "seeds": seeds}


@dataclass(frozen=True)
class Swept:
    """What a sweep came to; times in seconds."""

    wall: float
    compute: float
    trials: int
    stopped: int
    report: dict[str, Any]
    left: str


def by_service(asked: Sequence[dict[str, Any]]) -> list[Swept]:
    """Return what each sweep came to, one after the other with one service."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder) / "state", None)
        try:
            server.start()
            with server.client() as client:
                until(lambda: _ready(client), "the local Ray", 120, 0.5)
                found = []
                for each in asked:
                    found.append(_swept(client, Path(folder) / "state", each))
                    print(found[-1], flush=True)
                return found
        finally:
            server.processes[-1].terminate()
            server.processes[-1].wait(60)
            server.end()


def _swept(client: Any, state_dir: Path, asked: dict[str, Any]) -> Swept:
    began = time.monotonic()
    sweep_id = client.sweeps.submit(asked)["id"]
    until(lambda: client.sweeps.get(sweep_id)["ended_at"], "the sweep", END_S, 0.5)
    wall = time.monotonic() - began
    trials = list(client.sweeps.trials(sweep_id))
    report = client.sweeps.report(sweep_id)
    stopped = sum(one["state"] == "STOPPED" for one in trials)
    return Swept(wall, report["cost"]["seconds"], len(trials), stopped, report, _left(state_dir))


def _left(state_dir: Path) -> str:
    """Return what is left on Ray once a sweep has ended: actors but Ray's own, room that is held, workers."""
    ray = local_ray.find(state_dir)
    assert ray is not None
    asking = {"Authorization": f"Bearer {ray.token}"}

    def listed(what: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{ray.dashboard_url}/api/v0/{what}", params={"limit": 10_000}, headers=asking, timeout=30)
        rows: list[dict[str, Any]] = answer.raise_for_status().json()["data"]["result"]["result"]
        return rows

    def calm() -> str | None:
        actors = [one for one in listed("actors") if one["state"] != "DEAD" and one["class_name"] != RAYS_OWN]
        groups = listed("placement_groups")
        held = [one for one in groups if one["state"] != "REMOVED"]
        names = map(_name, psutil.Process(ray.pid).children(recursive=True))
        if actors or held or any("TrainWorker" in name for name in names):
            return None
        return f"0 actors, 0 of {len(groups)} placement groups, 0 worker processes"

    return until(calm, "Ray to be calm after the sweep", 60, 0.5)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _ready(client: Any) -> bool | None:
    try:
        client.ready()
    except Exception:
        return None
    return True


def by_tune(asked: dict[str, Any]) -> tuple[float, float]:
    """Return the same two of a function per trial under Ray Tune."""
    from ray import tune
    from sampa.service.sweeps.spec import SweepSpec

    spec = SweepSpec.model_validate(asked)
    values = spec.grid["method.rho"]
    specs = [
        spec.trial(n, {"method.rho": values[max(n // spec.seeds - len(spec.baselines), 0)]})
        for n in range(spec.trial_count)
    ]
    plans = [one.training_part().model_dump(mode="json", by_alias=True) for one in specs]
    ray.init(address="local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False)
    try:
        began = time.monotonic()
        tuner = tune.Tuner(
            tune.with_resources(_train, {"cpu": 1}),
            param_space={"plan": tune.grid_search(plans)},
            run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
        )
        results = tuner.fit()
        return time.monotonic() - began, sum(one.metrics["seconds"] for one in results)
    finally:
        ray.shutdown()


def _train(config: dict[str, Any]) -> None:
    from ray import tune
    from sampa.workers.data import TrainingData
    from sampa.workers.engine import Engine
    from sampa.workers.evaluate import evaluate
    from sampa.workers.exchange import Alone, Exchange
    from sampa.workers.pairs import Hosts
    from sampa.workers.plan import Plan
    from sampa.workers.task import load_task

    torch.set_num_threads(1)
    plan = Plan.model_validate(config["plan"])
    task = load_task(plan)
    data = TrainingData(task.train, task.augment, plan)
    engine = Engine(plan, task, data, (plan.epochs or 0) * data.batches.per_epoch)
    exchange = Exchange(Alone(), Hosts(1, paired=plan.method.paired, workers=1), 0, ["worker 0"])
    engine.start(exchange)
    seconds = 0.0
    for step in range(1, engine.steps + 1):
        began = time.perf_counter()
        engine.advance(exchange)
        ends = step % data.batches.per_epoch == 0 and task.test is not None
        accuracy = evaluate(engine, exchange, task.test)["accuracy"] if ends else None
        seconds += time.perf_counter() - began
        if ends:
            tune.report({"accuracy": accuracy, "seconds": seconds})


def main() -> None:
    """Measure all and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    grid, cores = sweep(given.epochs, given.trials, given.seeds), os.cpu_count() or 1
    asha = {"name": "asha", "grace_epochs": round(0.3 * given.epochs), "reduction": 4}
    whole, early = by_service([grid, grid | {"name": "early", "trials": 3 * given.trials, "scheduler": asha}])
    tune_wall, tune_compute = by_tune(grid)
    print(tune_wall, tune_compute, flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    spent = early.report["cost"]["gradients"] / early.trials * whole.trials / whole.report["cost"]["gradients"]
    lines = [
        f"# A sweep with and without early stops, and plain Ray Tune, {datetime.date.today()}",
        "",
        f"{cores} cores ({platform.machine()}), torch {torch.__version__}, ray {ray.__version__}, commit "
        f"{commit.stdout.strip()}; `make bench-sweep`: digits with 40 % label noise, {given.epochs} epochs.",
        "",
        "| | trials | stopped early | wall, s | trials' own compute, s | wall / (compute / cores) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        _row("sampa, by REST", whole, cores),
        _row("the same with ASHA", early, cores),
        f"| Ray Tune, a process per trial | {whole.trials} | 0 | {tune_wall:.1f} | {tune_compute:.1f} | "
        f"{tune_wall / (tune_compute / cores):.2f} |",
        "",
        f"Limit of the first row: {LIMIT}. With early stops, a trial takes {spent:.2f} of the gradients. On Ray after "
        f"the first sweep: {whole.left}; after the second: {early.left}.",
        *(line for swept in (whole, early) for line in ("", *_found(swept))),
        "",
        "Not shown: larger models, where starting a process weighs less; several machines; GPUs.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


def _row(name: str, swept: Swept, cores: int) -> str:
    ratio = swept.wall / (swept.compute / cores)
    return f"| {name} | {swept.trials} | {swept.stopped} | {swept.wall:.1f} | {swept.compute:.1f} | {ratio:.2f} |"


def _found(swept: Swept) -> Iterator[str]:
    """Yield what the report says."""
    report = swept.report
    best = report["recommended"]
    yield f"- recommended {best and best['values']}, {best and best['intervals']}; {report['collapse'].get('sentence')}"
    yield from (f"- {one['verdict']}" for one in report["advantage"].values())
    yield from (f"- {note}" for note in report["notes"])


if __name__ == "__main__":
    main()
