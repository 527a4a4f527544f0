"""What the commands share: their options, how they find the server, and how they end with a sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..service.specs import JobSpec
    from ..service.sweeps.spec import SweepSpec
    from .client import Client
    from .follow import Followed

    Watching = Callable[[Client, str, Followed, Console], Followed]

BAD_INPUT, UNREACHABLE, INTERRUPTED = 2, 3, 130
LOOK_S = 0.5  # between two looks at what is waited for

Url = Annotated[str | None, typer.Option(envvar="SAMPA_URL", help="where the server is; else found in --state-dir")]
Token = Annotated[str | None, typer.Option(envvar="SAMPA_TOKEN", help="its token; else found in --state-dir")]
StateDir = Annotated[
    Path | None, typer.Option(envvar="SAMPA_STATE_DIR", help="state directory of the server; ~/.sampa when left out")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Code = Annotated[
    Path | None, typer.Option(metavar="DIR", help="directory of your own task's module; .gitignore is heeded")
]
Pip = Annotated[
    Path | None, typer.Option(metavar="requirements.txt", help="packages to install for it, one requirement a line")
]
Key = Annotated[str | None, typer.Option(help="idempotency key: repeating it submits nothing new")]
After = Annotated[int, typer.Option(min=0, help="only events with a higher number")]
Follow = Annotated[bool, typer.Option("--follow", help="show its progress until it ends")]
Wait = Annotated[bool, typer.Option("--wait", help="return when it is PAUSED, or has ended")]
Limit = Annotated[int, typer.Option(min=1, help="how many at most")]

Spec = TypeVar("Spec", "JobSpec", "SweepSpec")


def spec_in(path: Path, read: Callable[[Path], Spec]) -> Spec:
    """Return what is in a job or sweep file; end the program with a sentence if that can't be used."""
    from .jobfile import JobFileError

    try:
        return read(path)
    except JobFileError as error:
        fail(str(error), BAD_INPUT)


@contextmanager
def with_code(spec: Spec, entrypoint: str, code: Path | None, pip: Path | None) -> Iterator[tuple[Spec, Path | None]]:
    """Give a spec with its packages, and the zip of its code; end the program with a sentence if one can't be used."""
    from .packing import CodeRefused, packed, read_requirements

    try:
        if pip is not None:
            spec = spec.with_pip(read_requirements(pip))
        if code is None:
            yield spec, None
            return
        with packed(code, entrypoint) as path:
            yield spec, path
    except CodeRefused as error:
        fail(str(error), BAD_INPUT)


@contextmanager
def server(url: str | None, token: str | None, state_dir: Path | None) -> Iterator[Client]:
    """Give a client of the server that is meant, and end the program with a sentence when it can't be used."""
    from .client import Client, SampaError, ServerUnreachable
    from .found import find_server

    found = find_server(url, token, state_dir)
    try:
        with Client(found.url, found.token) as client:
            yield client
    except ServerUnreachable as error:
        fail(str(error), UNREACHABLE)
    except SampaError as error:
        fail(str(error), UNREACHABLE if error.status >= 500 or error.status == 0 else BAD_INPUT)


def watch(follow: Watching, client: Client, some_id: str, after: int, what: str) -> int:
    """Show a job or a sweep until it ends and return the exit code; Ctrl-C ends the showing, not what is shown."""
    from rich.console import Console

    from .follow import Followed

    seen, prefix = Followed(after), "" if what == "job" else f"{what}-"
    try:
        return follow(client, some_id, seen, Console()).exit_code
    except KeyboardInterrupt:
        again = f"sampa {prefix}events {some_id} --follow --after {seen.last}"
        end = f"sampa {prefix}cancel {some_id}"
        typer.echo(f"\n{what} {some_id} goes on; see it with {again}, end it with {end}", err=True)
        return INTERRUPTED


def to_json(value: Any) -> str:
    """Return a document as people and scripts can read it."""
    return json.dumps(value, indent=2)


def fail(sentence: str, code: int) -> NoReturn:
    """End the program with a sentence."""
    typer.echo(f"error: {sentence}", err=True)
    sys.exit(code)
