"""Do trials of Ray Train under Ray Tune leave something behind when a scheduler stops them?

    python -m tests.benchmarks.bench_leak [--trials 12] [--out FILE]

The way that Ray's documents show: a function that calls ``fit`` of a trainer with ``TuneReportCallback``, and ASHA.
What Ray says is held is written down when all trials have ended, and half a minute later. See Ray's issue 54305.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import train, tune
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.util.state import list_actors

EPOCHS, EPOCH_S = 8, 0.3
LATER_S = 30.0


def work(config: dict[str, Any]) -> None:
    """Train: the better trials have the larger number."""
    for epoch in range(1, EPOCHS + 1):
        time.sleep(EPOCH_S)
        train.report({"score": config["number"] * epoch, "epoch": epoch})


def trial(config: dict[str, Any]) -> None:
    """Be a trial."""
    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1})
    run = RunConfig(storage_path=tempfile.mkdtemp(), callbacks=[TuneReportCallback()])
    DataParallelTrainer(work, train_loop_config=config, scaling_config=scaling, run_config=run).fit()


def held(when: str) -> str:
    """Return a row with what Ray holds."""
    groups = collections.Counter(one["state"] for one in ray.util.placement_group_table().values())
    alive = collections.Counter(one.class_name for one in list_actors(filters=[("state", "=", "ALIVE")], limit=1000))
    actors = ", ".join(f"{count} {name}" for name, count in sorted(alive.items()))
    free, whole = ray.available_resources().get("CPU", 0), ray.cluster_resources()["CPU"]
    return f"| {when} | {groups['CREATED']} of {sum(groups.values())} | {actors} | {free:g} of {whole:g} |"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    ray.init(address="local", num_cpus=given.trials + 4, log_to_driver=False)  # room for all that is left behind
    try:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"number": tune.grid_search([*range(given.trials, 0, -1)])},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                max_concurrent_trials=2,
                scheduler=tune.schedulers.ASHAScheduler(max_t=EPOCHS, grace_period=2, reduction_factor=2),
            ),
            run_config=tune.RunConfig(storage_path=tempfile.mkdtemp(), verbose=0),
        )
        results = tuner.fit()
        rows = [held("at the end")]
        time.sleep(LATER_S)
        rows.append(held(f"{LATER_S:g} s later"))
    finally:
        ray.shutdown()
    early = sum(one.metrics["training_iteration"] < EPOCHS for one in results)
    lines = [
        f"# What Ray Train under Ray Tune leaves behind, {datetime.date.today()}",
        f"Ray {ray.__version__}, {os.cpu_count()} cores; `make bench-leak`: {given.trials} trials of one worker, two "
        f"at a time, of which ASHA stopped {early} early.",
        "\n".join(
            ["| | placement groups held | actors alive | processors free |", "| --- | ---: | --- | ---: |", *rows]
        ),
        "What a sweep of this service leaves behind is in the answer of `make bench-sweep`.",
    ]
    text = "\n\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
