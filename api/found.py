"""Where a running server is: it writes that down in its state directory, and the command line reads it there."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ..service.settings import STATE_DIR_VARIABLE, ServiceSettings

SERVER_FILE = "server.json"
TOKEN_FILE = "token"
DEFAULT_URL = "http://127.0.0.1:8700"


@dataclass(frozen=True)
class Found:
    """A server, as far as it is known."""

    url: str
    token: str


def find_server(url: str | None, token: str | None, state_dir: Path | None) -> Found:
    """Return what is given, and for the rest what the state directory says.

    The token of a directory that nobody named goes to no other server than the directory's own.
    """
    named = state_dir or os.environ.get(STATE_DIR_VARIABLE)
    folder = ServiceSettings(**({"state_dir": named} if named else {})).state_dir
    own = _written_url(folder) or DEFAULT_URL
    theirs = state_dir is None and url not in (None, own)
    return Found(url or own, token or ("" if theirs else _written_token(folder)))


def write_down(state_dir: Path, url: str) -> str:
    """Say in the state directory that this process is the server, and where; return what tells it from others: in
    containers, all have the same number."""
    server = secrets.token_hex(8)
    aside = state_dir / f"{SERVER_FILE}.{server}"
    aside.write_text(json.dumps({"url": url, "pid": os.getpid(), "server": server}) + "\n")
    aside.replace(state_dir / SERVER_FILE)
    return server


def erase(state_dir: Path, server: str) -> None:
    """Take back what a server wrote down; what a later one wrote stays."""
    path = state_dir / SERVER_FILE
    if _read(path).get("server") == server:
        path.unlink(missing_ok=True)


def _written_url(state_dir: Path) -> str | None:
    url = _read(state_dir / SERVER_FILE).get("url")
    return url if isinstance(url, str) else None


def _written_token(state_dir: Path) -> str:
    try:
        return (state_dir / TOKEN_FILE).read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
