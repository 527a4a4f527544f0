"""What does a sweep cost beyond its trials, and what would the same search cost as plain Ray Tune?

    python -m tests.benchmarks.bench_sweep [--epochs 30] [--trials 16] [--seeds 3] [--out FILE]

Digits with 40 % label noise, rho on a grid from 0.01 to 0.5, SGD and SAM as baselines. First by REST, with a service
and a Ray of its own; then as a function that Ray Tune runs in one process per trial, on as many processors. The wall
time counts from the submission to the end, start of the workers included; the trials' own compute is the time of their
steps, added up, over the number of processors. Both are measured one after the other in this run.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch

from ..api.processes import ServerProcess, until

LIMIT = 1.4  # of wall time to the trials' own compute over the processors
END_S = 3600.0


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


def by_service(asked: dict[str, Any]) -> tuple[float, float, int, dict[str, Any]]:
    """Return wall time, the trials' own compute in seconds, their number, and the report."""
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder) / "state", None)
        try:
            server.start()
            with server.client() as client:
                until(lambda: _ready(client), "the local Ray", 120, 0.5)
                began = time.monotonic()
                sweep_id = client.sweeps.submit(asked)["id"]
                until(lambda: client.sweeps.get(sweep_id)["ended_at"], "the sweep", END_S, 0.5)
                wall = time.monotonic() - began
                trials = list(client.sweeps.trials(sweep_id))
                report = client.sweeps.report(sweep_id)
            return wall, sum(one["result"]["seconds"] for one in trials), len(trials), report
        finally:
            server.processes[-1].terminate()
            server.processes[-1].wait(60)
            server.end()


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
        seconds += time.perf_counter() - began
        if step % data.batches.per_epoch == 0 and task.test is not None:
            accuracy = evaluate(engine, exchange, task.test)["accuracy"]
            tune.report({"accuracy": accuracy, "seconds": seconds})


def main() -> None:
    """Measure both and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    asked, cores = sweep(given.epochs, given.trials, given.seeds), os.cpu_count() or 1
    wall, compute, trials, report = by_service(asked)
    tune_wall, tune_compute = by_tune(asked)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    best = report["recommended"]
    lines = [
        f"# A sweep against plain Ray Tune, {datetime.date.today()}",
        "",
        f"{cores} cores ({platform.machine()}), torch {torch.__version__}, ray {ray.__version__}, commit "
        f"{commit.stdout.strip()}; `make bench-sweep`: {trials} trials of {given.epochs} epochs on digits.",
        "",
        "| | wall, s | trials' own compute, s | wall / (compute / cores) |",
        "| --- | ---: | ---: | ---: |",
        f"| sampa, by REST | {wall:.1f} | {compute:.1f} | {wall / (compute / cores):.2f} |",
        f"| Ray Tune, a process per trial | {tune_wall:.1f} | {tune_compute:.1f} | "
        f"{tune_wall / (tune_compute / cores):.2f} |",
        "",
        f"Limit of the first row: {LIMIT}. Recommended: {best and best['values']}, {best and best['intervals']}; "
        f"collapse: {report['collapse'].get('sentence')}.",
        "",
        *[f"{one['verdict']}" for one in report["advantage"].values()],
        "",
        "Not shown: larger models, where starting a process weighs less; early stopping; GPUs.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
