"""``sampa train``: one job here, without the service: the same run, its files, and a progress bar."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..service.specs import JobSpec
from ..service.told import Told
from ..workers.errors import Interrupted
from ..workers.reports import Once
from .printing import change_line

if TYPE_CHECKING:
    from ..workers.reports import Report

REACH_S = 5.0  # in which a Ray at an address must take the connection
FAILED = 1
"""Exit code of a run that ended without its model."""
STOPPED = 130
"""Exit code of a run that was told to stop."""


def train_here(spec: JobSpec, out: Path, code: Path | None, ray_address: str | None) -> int:
    """Train ``spec`` into ``out`` on a local Ray, or on the one at ``ray_address``; resume if it was begun there.

    ``code`` is the zip of a directory, or the directory: working directory and path of the workers.

    Leaves result.json, model.safetensors, events.jsonl and checkpoints in ``out``. Ctrl-C or SIGTERM stops it with a
    checkpoint; a second one ends the process at once. Returns the exit code.
    """
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    told = Told([signal.SIGINT, signal.SIGTERM], "stopping with a checkpoint; once more stops at once")
    told.listen()
    try:
        with (
            connected(code, ray_address, spec.pip),
            EventsFile(out / "events.jsonl") as events,
            _Display(console) as display,
        ):
            from ..workers.trainer import Orders, train

            told.listen()  # Ray has put its own in place

            def take(reports: Sequence[Report]) -> None:
                for report in filter(events.add, reports):
                    display.show(report)

            outcome = train(
                spec,
                out,
                on_reports=take,
                orders=lambda: Orders(stop=told.stop),
                reached=events.once.reached,
                past=[*events.past],
            )
    except CutOff as error:
        return _failed(spec, str(error), console)
    if outcome.stopped:
        where = f"at step {events.saved}" if events.saved else "before its first step"
        console.print(f"{spec.name}: stopped {where}; the same command goes on from there", markup=False)
        return STOPPED
    if not outcome.succeeded:
        return _failed(spec, outcome.reason, console)
    console.print(f"{spec.name}: {_summary(outcome.result)}; the model is in {out / 'model.safetensors'}", markup=False)
    return 0


def _failed(spec: JobSpec, reason: str, console: Console) -> int:
    console.print(f"{spec.name} failed: {reason}", style="red", markup=False, soft_wrap=True)
    return FAILED


class CutOff(Exception):
    """Ray could not be reached, or failed under the run: no fault of the job, which can be resumed."""


class EventsFile:
    """The file of a run's events: one JSON object per line, each step's once, also when the run is resumed.

    Attributes:
        once: What came already.
        past: Data of the elastic events that were there before.
        saved: Step of the newest checkpoint; 0 before the first.
    """

    def __init__(self, path: Path) -> None:
        self.once = Once()
        self.past: list[dict[str, Any]] = []
        self.saved = 0
        whole = []
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(ValueError):  # a killed run may leave half a line
                event = json.loads(line)
                self._note(event["kind"], event["data"])
                self.past += [event["data"]] if event["kind"] == "elastic" else []
                whole.append(line)
        aside = path.with_name(f".{path.name}")
        aside.write_text("".join(f"{line}\n" for line in whole))
        aside.replace(path)
        self._file = path.open("a")

    def __enter__(self) -> EventsFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, report: Report) -> bool:
        """Write a report down, unless it is there already; say whether it was new."""
        if not self._note(report.kind, report.data):
            return False
        line = {"time": datetime.now(UTC).isoformat(), "kind": report.kind, "data": report.data}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        return True

    def _note(self, kind: str, data: Mapping[str, Any]) -> bool:
        """Take note of an event; say whether it was new."""
        if kind == "checkpoint":
            self.saved = max(self.saved, int(data["step"]))
        return self.once.is_new(kind, data)


class _Display:
    """Shows how a run goes: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._console = console
        self._progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console)
        self._bar = self._progress.add_task("starting workers", total=None, numbers="")

    def __enter__(self) -> _Display:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:  # elsewhere, stopping prints an empty line
            self._progress.stop()

    def show(self, report: Report) -> None:
        data = report.data
        if report.kind == "task":
            steps = data["steps"]
            assert isinstance(steps, int)
            self._progress.update(self._bar, description="training", total=steps)
        elif report.kind == "metrics":
            step = data["step"]
            assert isinstance(step, int)
            self._progress.update(self._bar, completed=step, numbers=f"loss {data['loss']:.4f}")
        elif report.kind == "evaluation":
            words = [
                f"{name} {value:.4f}" for name, value in data.items() if isinstance(value, float) and name != "epoch"
            ]
            self._console.print(f"step {data['step']}, {data['split']}: {', '.join(words)}", markup=False)
        elif report.kind == "elastic" and data["cause"] != "start":
            self._console.print(change_line(data), style="yellow", markup=False)
        elif report.kind == "log":
            self._console.print(f"{data['worker']}: {data['line']}", style="dim", markup=False)


def _summary(result: Mapping[str, object]) -> str:
    metrics = result["metrics"]
    assert isinstance(metrics, dict)
    test = metrics["final"].get("test") or {}
    accuracy = f"test accuracy {test['accuracy']:.4f}, " if "accuracy" in test else ""
    return f"{accuracy}{result['steps']} steps in {result['seconds']} s"


@contextmanager
def connected(code: Path | None, ray_address: str | None, pip: Sequence[str] = ()) -> Iterator[None]:
    """Be connected to a Ray, a local one that ends with us, or the one at the address, with code and packages."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if ray_address is None:  # whoever reaches a Ray can run code as its owner, so ours asks for a token
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        _reach(ray_address)
    import ray

    environment: dict[str, Any] = {"working_dir": str(code.absolute())} if code else {}
    if pip:
        environment["pip"] = {"packages": [*pip], "pip_check": False}
    try:
        _connect(ray_address, environment)
        yield
        from ..workers.train_runs import settle

        settle()
    except Interrupted as error:
        raise CutOff(str(error)) from error
    except (ConnectionError, ray.exceptions.RayError) as error:
        first = str(error).strip().splitlines()[0]
        raise CutOff(f"Ray failed ({type(error).__name__}: {first}); the same command goes on from there") from error
    finally:
        ray.shutdown()


def _connect(ray_address: str | None, environment: dict[str, Any]) -> None:
    """Raise CutOff if Ray doesn't start, or takes no connection: of what hinders it, Ray raises a bare Exception."""
    import ray

    try:
        ray.init(
            address=ray_address or "local",
            runtime_env=environment,
            log_to_driver=False,
            logging_level="warning",
            include_dashboard=False if ray_address is None else None,
        )
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if ray_address is not None:
            raise CutOff(f"Ray at {ray_address} can't be used: {first}; see --ray-address") from error
        why = f"a local Ray could not be started: {first}"
        raise CutOff(f"{why}; look whether this machine is busy or short of memory, and try again") from error


def _reach(address: str) -> None:
    """Raise CutOff if nobody listens at ``host:port``; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise CutOff(f"no Ray answers at {address} ({error}); see --ray-address, or leave it out") from error
