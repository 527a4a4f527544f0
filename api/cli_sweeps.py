"""The commands of sweeps."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import (
    BAD_INPUT,
    LOOK_S,
    After,
    AsJson,
    Code,
    Follow,
    Key,
    Limit,
    Pip,
    StateDir,
    Token,
    Url,
    Wait,
    fail,
    server,
    spec_in,
    to_json,
    watch,
    with_code,
)

if TYPE_CHECKING:
    from .client import Client

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="the sweep")]
SweepId = Annotated[str, typer.Argument(metavar="ID", help="the sweep's id, as sampa sweeps lists it")]
Trial = Annotated[int | None, typer.Option(min=0, help="of this trial instead of the sweep's own")]


def sweep(
    file: SweepFile,
    follow: Follow = False,
    key: Key = None,
    code: Code = None,
    pip: Pip = None,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Submit a sweep."""
    from .jobfile import read_sweep

    given = spec_in(file, read_sweep)
    with server(url, token, state_dir) as client:
        with with_code(given, given.example.task.entrypoint, code, pip) as (spec, packed):
            asked = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
            if packed is not None:
                bundle = {"bundle": client.upload(packed)["sha256"]}
                asked["base"]["code"] = {**(asked["base"].get("code") or {}), **bundle}
        submitted = client.sweeps.submit(asked, key)
        typer.echo(f"sweep {submitted['id']} {submitted['state']}")
        if follow:
            raise typer.Exit(_follow(client, submitted["id"], 0))


def list_sweeps(
    state: Annotated[list[str] | None, typer.Option(help="only sweeps in this state; may be repeated")] = None,
    name: Annotated[str | None, typer.Option(help="only sweeps of this name")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """List sweeps, newest first."""
    from .printing import table
    from .sweep_printing import sweep_rows

    with server(url, token, state_dir) as client:
        found = list(client.sweeps.list([one.upper() for one in state or ()], name, limit))
    typer.echo(to_json(found) if as_json else table(sweep_rows(found)))


def show(
    sweep_id: SweepId, as_json: AsJson = False, url: Url = None, token: Token = None, state_dir: StateDir = None
) -> None:
    """Show a sweep, its past, and what it has found so far."""
    from .sweep_follow import report_of
    from .sweep_printing import describe_sweep

    with server(url, token, state_dir) as client:
        found, report = client.sweeps.get(sweep_id), report_of(client, sweep_id)
    typer.echo(to_json({**found, "report": report}) if as_json else describe_sweep(found, report))


def trials(
    sweep_id: SweepId,
    state: Annotated[list[str] | None, typer.Option(help="only trials in this state; may be repeated")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """List the trials of a sweep; by its ID, each can be looked at like a job."""
    from .printing import table
    from .sweep_printing import trial_rows

    with server(url, token, state_dir) as client:
        metric = client.sweeps.get(sweep_id)["spec"]["metric"]
        found = list(client.sweeps.trials(sweep_id, [one.upper() for one in state or ()]))
    typer.echo(to_json(found) if as_json else table(trial_rows(found, metric)))


def events(
    sweep_id: SweepId,
    trial: Trial = None,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the end")] = False,
    after: After = 0,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Print what happened to a sweep, or to one of its trials."""
    from .printing import event_line

    with server(url, token, state_dir) as client:
        if follow and trial is None and not as_json:
            raise typer.Exit(_follow(client, sweep_id, after))
        read = client.sweeps.follow if follow else client.sweeps.events
        for event in read(sweep_id, after, trial=trial):
            typer.echo(json.dumps(event) if as_json else event_line(event))


def cancel(sweep_id: SweepId, url: Url = None, token: Token = None, state_dir: StateDir = None) -> None:
    """Cancel a sweep with its trials; one that has ended stays as it is."""
    with server(url, token, state_dir) as client:
        _say(client.sweeps.cancel(sweep_id))


def pause(
    sweep_id: SweepId, wait: Wait = False, url: Url = None, token: Token = None, state_dir: StateDir = None
) -> None:
    """Have the trials stop, each with a checkpoint; sweep-resume goes on from there."""
    with server(url, token, state_dir) as client:
        paused = client.sweeps.pause(sweep_id)
        while wait and paused["state"] == "PAUSING":
            time.sleep(LOOK_S)
            paused = client.sweeps.get(sweep_id)
    _say(paused)


def resume(sweep_id: SweepId, url: Url = None, token: Token = None, state_dir: StateDir = None) -> None:
    """Queue a paused sweep again."""
    with server(url, token, state_dir) as client:
        _say(client.sweeps.resume(sweep_id))


def extend(
    sweep_id: SweepId,
    trials: Annotated[int | None, typer.Option(min=1, help="configurations in all")] = None,
    wall_s: Annotated[float | None, typer.Option(help="its budget of seconds in all")] = None,
    gradients: Annotated[int | None, typer.Option(min=1, help="its budget of gradients in all")] = None,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Give a sweep more trials or a longer budget; one that has ended goes on."""
    if wall_s is not None and not math.isfinite(wall_s):
        fail(f"--wall-s must be a finite number of seconds, but is {wall_s:g}", BAD_INPUT)
    with server(url, token, state_dir) as client:
        _say(client.sweeps.extend(sweep_id, trials, wall_s, gradients))


def retry(sweep_id: SweepId, url: Url = None, token: Token = None, state_dir: StateDir = None) -> None:
    """Train the failed trials again, from their checkpoints."""
    with server(url, token, state_dir) as client:
        _say(client.sweeps.retry(sweep_id))


def report(
    sweep_id: SweepId,
    out: Annotated[Path | None, typer.Option(help="directory that report.json and report.png are written to")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Print what a sweep has found so far, or write it to a directory with its plot."""
    from .sweep_printing import describe_report

    with server(url, token, state_dir) as client:
        found = client.sweeps.report(sweep_id)
        if out is None:
            typer.echo(to_json(found) if as_json else describe_report(found))
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "report.json").write_text(to_json(found) + "\n")
            typer.echo(out / "report.json")
            typer.echo(client.sweeps.picture(sweep_id, out / "report.png"))
        except OSError as error:
            fail(f"{error.filename}: the report can't be written: {error.strerror}", BAD_INPUT)


def promote(
    sweep_id: SweepId,
    seeds: Annotated[int, typer.Option(min=1, help="how many jobs, each with a seed of its own")] = 3,
    epochs: Annotated[int | None, typer.Option(min=1, help="their length; the sweep's when left out")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="their length, instead of --epochs")] = None,
    name: Annotated[str | None, typer.Option(help="of the jobs; the sweep's when left out")] = None,
    key: Key = None,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Submit jobs of the recommended configuration, with seeds that the sweep has not used."""
    asked = {"seeds": seeds, "epochs": epochs, "steps": steps, "name": name}
    with server(url, token, state_dir) as client:
        made = client.sweeps.promote(sweep_id, key, **{field: value for field, value in asked.items() if value})
    for job in made:
        typer.echo(f"job {job['id']} {job['state']}  seed {job['spec']['seed']}")


COMMANDS: dict[str, Callable[..., None]] = {
    "sweep": sweep,
    "sweeps": list_sweeps,
    "sweep-show": show,
    "sweep-trials": trials,
    "sweep-events": events,
    "sweep-report": report,
    "sweep-cancel": cancel,
    "sweep-pause": pause,
    "sweep-resume": resume,
    "sweep-extend": extend,
    "sweep-retry": retry,
    "sweep-promote": promote,
}


def add_to(app: typer.Typer) -> None:
    """Add the commands of sweeps to the program."""
    for name, command in COMMANDS.items():
        app.command(name)(command)


def _say(found: dict[str, Any]) -> None:
    typer.echo(f"sweep {found['id']} {found['state']}")


def _follow(client: Client, sweep_id: str, after: int) -> int:
    from .sweep_follow import follow_sweep

    return watch(follow_sweep, client, sweep_id, after, "sweep")
