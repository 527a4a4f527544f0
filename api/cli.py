"""The command line.

It starts fast: what a command needs is imported when the command runs. Exit codes: 0 all went well, 1 the
followed job failed or was cancelled, 2 the input is wrong, 3 the server can't be reached or can't answer, 130 Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import cli_sweeps
from .command import (
    BAD_INPUT,
    LOOK_S,
    UNREACHABLE,
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
    from ..service.specs import JobSpec
    from .client import Client

app = typer.Typer(
    help="Train with SAMPa: sharpness-aware minimization at the price of SGD.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="the job, or the name of a preset")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="the job's id, as sampa jobs lists it")]
RayAddress = Annotated[str | None, typer.Option(help="http URL of the Ray dashboard; a local Ray when left out")]


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sampa {version('sampa')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of the whole program."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on; 127.0.0.1 when left out")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="port to listen on; 8700 when left out, 0 takes a free one")
    ] = None,
    state_dir: StateDir = None,
    ray_address: RayAddress = None,
    store: Annotated[
        str | None, typer.Option(help="URL of the store; SQLite in the state directory when left out")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="where jobs' files lie, a path or s3://bucket/prefix; the state directory when left out"),
    ] = None,
    max_running: Annotated[int | None, typer.Option(min=1, help="jobs that run at once; 2 when left out")] = None,
) -> None:
    """Run the API, with a local Ray unless --ray-address is given; settings may also be in the environment."""
    # the first process of a container is ended by no signal that it doesn't take, and what follows takes seconds
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    from .serve import CannotServe, serve_until_stopped

    given = {"host": host, "port": port, "state_dir": state_dir, "ray_address": ray_address}
    given |= {"store_url": store, "storage": storage, "max_running": max_running}
    try:
        serve_until_stopped({name: value for name, value in given.items() if value is not None})
    except CannotServe as error:
        fail(str(error), BAD_INPUT)


@app.command()
def train(
    job: JobFile,
    out: Annotated[Path, typer.Option(help="where result.json, model.safetensors and events.jsonl go")],
    code: Code = None,
    pip: Pip = None,
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to train on, host:port or auto; a local Ray when left out")
    ] = None,
) -> None:
    """Train one job here, without the service."""
    job_spec = _job_alone(job, code)
    with with_code(job_spec, job_spec.task.entrypoint, code, pip) as (spec, packed):
        from .train import train_here

        raise typer.Exit(train_here(spec, out, packed, ray_address))


@app.command()
def drill(
    job: JobFile,
    faults: Annotated[
        str, typer.Option(help="how many at random; all: each once; or a list such as kill:1@60/updating,slow:0@90:2.5")
    ] = "5",
    seed: Annotated[int, typer.Option(min=0, help="of what is chosen at random")] = 0,
    kinds: Annotated[
        str | None, typer.Option(help="what is chosen from: kill, hang, slow and, with --nodes, node")
    ] = None,
    nodes: Annotated[
        bool, typer.Option("--nodes", help="give each worker a node of its own, which can be lost")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="where drill.json and both runs stay; if left out, only when something is wrong")
    ] = None,
    code: Code = None,
    pip: Pip = None,
    as_json: AsJson = False,
) -> None:
    """Train a job calmly and under faults on purpose, and compare the weights bit for bit."""
    from .drill_schedule import DrillRefused
    from .train import CutOff

    job_spec = _job_alone(job, code)
    try:
        with with_code(job_spec, job_spec.task.entrypoint, code, pip) as (spec, packed):
            from .drill import drill_here

            failed = drill_here(
                spec, faults, seed=seed, kinds=kinds, nodes=nodes, out=out, code=packed, as_json=as_json
            )
    except DrillRefused as error:
        fail(str(error), BAD_INPUT)
    except CutOff as error:
        fail(str(error), UNREACHABLE)
    raise typer.Exit(failed)


@app.command()
def submit(
    job: JobFile,
    follow: Follow = False,
    key: Key = None,
    code: Code = None,
    pip: Pip = None,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Submit a job."""
    with server(url, token, state_dir) as client:
        job_spec = _job_in(job)
        with with_code(job_spec, job_spec.task.entrypoint, code, pip) as (spec, packed):
            asked = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
            if packed is not None:
                asked["code"] = {**(asked.get("code") or {}), "bundle": client.upload(packed)["sha256"]}
        submitted = client.submit(asked, key)
        typer.echo(f"job {submitted['id']} {submitted['state']}")
        if follow:
            raise typer.Exit(_follow(client, submitted["id"], 0))


@app.command("presets")
def show_presets(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="print this one's file; all are listed without")
    ] = None,
) -> None:
    """List the jobs that ship with sampa, or print one."""
    from .presets import preset_of, presets
    from .printing import preset_rows, table

    if name is None:
        typer.echo(table(preset_rows(presets())))
    elif path := preset_of(name):
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        fail(f"there is no preset {name}; sampa presets lists them", BAD_INPUT)


@app.command("jobs")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="only jobs in this state; may be repeated")] = None,
    name: Annotated[str | None, typer.Option(help="only jobs of this name")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """List jobs, newest first."""
    from .printing import job_rows, table

    with server(url, token, state_dir) as client:
        found = list(client.jobs([one.upper() for one in state or ()], name, limit))
    typer.echo(to_json(found) if as_json else table(job_rows(found)))


@app.command()
def show(
    job_id: JobId, as_json: AsJson = False, url: Url = None, token: Token = None, state_dir: StateDir = None
) -> None:
    """Show a job and its past."""
    from .printing import describe

    with server(url, token, state_dir) as client:
        found = client.job(job_id)
    typer.echo(to_json(found) if as_json else describe(found))


@app.command()
def events(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="go on until the job ends")] = False,
    after: After = 0,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Print what happened to a job."""
    from .printing import event_line

    with server(url, token, state_dir) as client:
        if follow and not as_json:
            raise typer.Exit(_follow(client, job_id, after))
        for event in client.follow(job_id, after) if follow else client.events(job_id, after):
            typer.echo(json.dumps(event) if as_json else event_line(event))


@app.command()
def metrics(
    job_id: JobId, as_json: AsJson = False, url: Url = None, token: Token = None, state_dir: StateDir = None
) -> None:
    """Print the losses and evaluations of a job."""
    from .printing import measurement_line

    with server(url, token, state_dir) as client:
        for item in client.metrics(job_id):
            typer.echo(json.dumps(item) if as_json else measurement_line(item))


@app.command()
def checkpoints(
    job_id: JobId, as_json: AsJson = False, url: Url = None, token: Token = None, state_dir: StateDir = None
) -> None:
    """List the checkpoints of a job."""
    from .printing import checkpoint_rows, table

    with server(url, token, state_dir) as client:
        found = client.checkpoints(job_id)
    typer.echo(to_json(found) if as_json else table(checkpoint_rows(found)))


@app.command()
def model(
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="directory that model.safetensors is written to")],
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Download the model of a job that has succeeded."""
    with server(url, token, state_dir) as client:
        try:
            out.mkdir(parents=True, exist_ok=True)
            path = client.model(job_id, out / "model.safetensors")
        except OSError as error:
            fail(f"{error.filename}: the model can't be written: {error.strerror}", BAD_INPUT)
    typer.echo(str(path))


@app.command()
def cancel(job_id: JobId, url: Url = None, token: Token = None, state_dir: StateDir = None) -> None:
    """Cancel a job; one that has ended stays as it is."""
    with server(url, token, state_dir) as client:
        cancelled = client.cancel(job_id)
    typer.echo(f"job {job_id} {cancelled['state']}")


@app.command()
def pause(
    job_id: JobId,
    wait: Wait = False,
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Have a job stop at its next step, with a checkpoint; resume goes on from there."""
    with server(url, token, state_dir) as client:
        paused = client.pause(job_id)
        while wait and paused["state"] == "PAUSING":
            time.sleep(LOOK_S)
            paused = client.job(job_id)
    typer.echo(f"job {job_id} {paused['state']}")


@app.command()
def resume(job_id: JobId, url: Url = None, token: Token = None, state_dir: StateDir = None) -> None:
    """Queue a paused job again."""
    with server(url, token, state_dir) as client:
        resumed = client.resume(job_id)
    typer.echo(f"job {job_id} {resumed['state']}")


@app.command()
def resize(
    job_id: JobId,
    workers: Annotated[int, typer.Option(min=1, help="at most so many; up to 2 x pairs, or shards")],
    url: Url = None,
    token: Token = None,
    state_dir: StateDir = None,
) -> None:
    """Change how many workers a job has at most, while it trains or before; its numbers stay the same."""
    with server(url, token, state_dir) as client:
        resized = client.resize(job_id, workers)
    typer.echo(f"job {job_id} {resized['state']} with at most {resized['workers']['wanted']} workers")


def _job_in(job: Path) -> JobSpec:
    from .jobfile import read_job

    return spec_in(job, read_job)


def _job_alone(job: Path, code: Path | None) -> JobSpec:
    """Return the job of a file, where there is no server that a bundle could be on already."""
    spec = _job_in(job)
    if code is None and spec.bundle:
        fail(f"{job}: code.bundle is on a server, which has no part in this; give the directory with --code", BAD_INPUT)
    return spec


def _follow(client: Client, job_id: str, after: int) -> int:
    from .follow import follow

    return watch(follow, client, job_id, after, "job")


cli_sweeps.add_to(app)

if __name__ == "__main__":
    main()
