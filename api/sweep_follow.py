"""Following a sweep on the command line: its states, a line for each trial that ends, and the answer at the end."""

from __future__ import annotations

from rich.console import Console

from ..service.states import State, is_final
from .client import Client, Document, SampaError
from .follow import Followed
from .printing import event_line
from .sweep_printing import recommendation


def follow_sweep(client: Client, sweep_id: str, seen: Followed, console: Console) -> Followed:
    """Show a sweep as it comes to something, until it has ended; ``seen`` holds what was shown, also on Ctrl-C."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for event in client.sweeps.follow(sweep_id, after=seen.last):
        seen.take(event)
        if _tells(event):
            say(event_line(event))
    ending = f": {seen.reason}" if seen.reason else ""
    say(f"sweep {sweep_id} {seen.state}{ending}")
    report = report_of(client, sweep_id)
    if report is not None:
        say(str(report["verdict"]))
        say(recommendation(report))
    return seen


def _tells(event: Document) -> bool:
    """Say whether an event has a line: all but those of trials that go on, or wait for their turn."""
    return bool(event["kind"] != "trial" or is_final(State(event["data"]["state"])))


def report_of(client: Client, sweep_id: str) -> Document | None:
    """Return the report of a sweep; None where it has none yet."""
    try:
        return client.sweeps.report(sweep_id)
    except SampaError as error:
        if not str(error.problem.get("type", "")).endswith(":no-report-yet"):
            raise
        return None
