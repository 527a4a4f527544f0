"""``make demo``: digits with SGD, SAM and SAMPa through the service, beside what is to be expected.

Starts ``sampa serve`` with a state directory of its own, submits the jobs over REST, waits for them, and prints the
table. What it leaves in ``demo/`` can be looked at with the command line, and is replaced by the next demo.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .client import Client, SampaError
from .found import find_server

BASE: dict[str, Any] = {
    "task": {"entrypoint": "digits", "params": {"label_noise": 0.4}},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "cosine"},
    "epochs": 30,
    "batch_size": 64,
    "evaluate": {"every_epochs": 10},
}
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "sgd": ({"method": {"name": "sgd"}}, "93.1 ± 0.6"),
    "sam": ({"method": {"name": "sam", "rho": 0.1}}, "96.6 ± 0.4"),
    "sampa": ({"method": {"name": "sampa", "rho": 0.1, "lambda": 0.0}, "pairs": 1}, "96.5 ± 0.1"),
}
"""Each method, and the test accuracy in percent that three seeds of a separate script gave, one thread."""

READY_S = 120.0
JOB_S = 600.0


def main() -> int:
    """Run the demo and return the exit code."""
    parser = argparse.ArgumentParser(description="digits with SGD, SAM and SAMPa through the service")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each method (default: 1)")
    parser.add_argument("--state-dir", type=Path, default=Path("demo"), help="made anew (default: demo)")
    options = parser.parse_args()
    console = Console()
    with _serving(options.state_dir.absolute(), console) as client:
        runs = {name: [_run(client, name, seed, console) for seed in range(options.seeds)] for name in METHODS}
    console.print(_table(runs))
    first = [run["first_step_s"] for jobs in runs.values() for run in jobs]
    console.print(f"From submit to the first committed step: {', '.join(f'{s:.1f}' for s in first)} s.")
    console.print(f"The jobs' models and checkpoints are in {options.state_dir / 'jobs'}.")
    return 0


@contextmanager
def _serving(state_dir: Path, console: Console) -> Iterator[Client]:
    """Serve from ``state_dir``, made anew, and give a client; stop serving afterwards."""
    shutil.rmtree(state_dir, ignore_errors=True)
    state_dir.mkdir(parents=True)
    command = [sys.executable, "-m", "sampa.api.cli", "serve", "--port", "0", "--max-running", "1"]
    with (state_dir / "serve.log").open("wb") as log:
        others = {name: value for name, value in os.environ.items() if not name.startswith("SAMPA_")}
        server = subprocess.Popen([*command, "--state-dir", str(state_dir)], stderr=log, stdout=log, env=others)
    try:
        began = time.monotonic()
        client = _wait_until_ready(server, state_dir)
        console.print(f"Serving at {client.url}; Ray was up after {time.monotonic() - began:.1f} s.")
        with client:
            yield client
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_until_ready(server: subprocess.Popen[bytes], state_dir: Path) -> Client:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and server.poll() is None:
        if (state_dir / "server.json").exists():
            found = find_server(None, None, state_dir)
            client = Client(found.url, found.token)
            try:
                client.ready()
            except SampaError:
                client.close()
            else:
                return client
        time.sleep(0.2)
    raise SystemExit(f"the service was not ready within {READY_S:g} s; its log is {state_dir / 'serve.log'}")


def _run(client: Client, name: str, seed: int, console: Console) -> dict[str, Any]:
    """Train one job; return its result, and the seconds from submit to its first committed step."""
    spec = {**BASE, **METHODS[name][0], "name": f"demo-{name}-{seed}", "seed": seed}
    spec["task"] = {**BASE["task"], "params": {**BASE["task"]["params"], "split_seed": seed}}
    job = client.submit(spec)
    first = None
    for event in client.follow(job["id"]):
        if event["kind"] == "metrics" and first is None:
            first = (_time(event["time"]) - _time(job["created_at"])).total_seconds()
    job = client.job(job["id"])
    if job["state"] != "SUCCEEDED":
        raise SystemExit(f"{spec['name']} ended {job['state']}: {job['reason']}")
    result: dict[str, Any] = job["result"]
    accuracy = result["metrics"]["final"]["test"]["accuracy"]
    console.print(f"{spec['name']}: test accuracy {accuracy:.1%}, {result['seconds']:.1f} s of training")
    return {**result, "accuracy": accuracy, "first_step_s": first}


def _table(runs: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table(title="digits, 40 % of the training labels random")
    for heading in ("method", "test accuracy %", "expected", "seconds", "ms per step", "workers"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, jobs in runs.items():
        accuracies = [100 * job["accuracy"] for job in jobs]
        spread = f" ± {statistics.stdev(accuracies):.1f}" if len(jobs) > 1 else ""
        seconds = statistics.median(job["seconds"] for job in jobs)
        workers = 2 if name == "sampa" else 1
        table.add_row(
            name,
            f"{statistics.mean(accuracies):.1f}{spread}",
            METHODS[name][1],
            f"{seconds:.1f}",
            f"{1000 * seconds / jobs[0]['steps']:.1f}",
            str(workers),
        )
    return table


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


if __name__ == "__main__":
    sys.exit(main())
