"""Following a job on the command line: a bar with loss and accuracy in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .client import Client
from .printing import event_line, number

Event = dict[str, Any]
_SHOWN = {"metrics": ("loss",), "evaluation": ("loss", "accuracy")}


class Followed:
    """What was seen of a job so far.

    Attributes:
        state: Its newest state.
        reason: Why it is in it.
        last: Number of the newest event, from which a later reader goes on.
    """

    def __init__(self, after: int = 0) -> None:
        self.state, self.reason, self.last = "", "", after
        self.step, self.steps = 0, 0
        self.values: dict[str, str] = {}

    @property
    def exit_code(self) -> int:
        """0 when the job has succeeded, else 1."""
        return 0 if self.state == "SUCCEEDED" else 1

    def take(self, event: Event) -> None:
        """Learn from one event."""
        kind, data = event["kind"], event["data"]
        self.last = event["seq"]
        if kind == "state":
            self.state, self.reason = data["state"], data.get("reason") or ""
        self.steps = int(data.get("steps") or self.steps) if kind == "task" else self.steps
        if kind in _SHOWN:
            self.step = int(data.get("step") or self.step)
            split = f"{data.get('split', 'test')} " if kind == "evaluation" else ""
            self.values |= {split + name: number(data[name]) for name in _SHOWN[kind] if data.get(name) is not None}

    def __str__(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.values.items())


def follow(client: Client, job_id: str, seen: Followed, console: Console) -> Followed:
    """Show each event of a job as it comes, until the job has ended; ``seen`` holds what was shown, also on Ctrl-C."""
    if seen.last:  # the event that told the number of steps was before this
        seen.steps = int(client.job(job_id)["progress"].get("steps") or 0)
    with _Bar(console) if console.is_terminal else _Lines(console) as show:
        for event in _taken(client, job_id, seen):
            show(event, seen)
    ending = f": {seen.reason}" if seen.reason else ""
    console.print(f"job {job_id} {seen.state}{ending}", markup=False, highlight=False, soft_wrap=True)
    return seen


def _taken(client: Client, job_id: str, seen: Followed) -> Iterator[Event]:
    for event in client.follow(job_id, after=seen.last):
        seen.take(event)
        yield event


Show = Callable[[Event, Followed], None]


class _Lines(AbstractContextManager[Show]):
    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Show:
        return self._show

    def __exit__(self, *_: object) -> None:
        return

    def _show(self, event: Event, _: Followed) -> None:
        self._console.print(event_line(event), markup=False, highlight=False, soft_wrap=True)


class _Bar(AbstractContextManager[Show]):
    _QUIET = frozenset({"metrics", "evaluation", "task"})  # the bar shows them

    def __init__(self, console: Console) -> None:
        text = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.fields[steps]}"))
        times = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[values]}", markup=False))
        self._progress = Progress(*text, *times, console=console)
        self._task = self._progress.add_task("", total=None, steps="?", values="")

    def __enter__(self) -> Show:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, event: Event, seen: Followed) -> None:
        if event["kind"] not in self._QUIET:
            self._progress.console.print(event_line(event), markup=False, highlight=False)
        self._progress.update(
            self._task,
            description=seen.state,
            completed=seen.step,
            total=seen.steps or None,
            steps=seen.steps or "?",
            values=str(seen),
        )
