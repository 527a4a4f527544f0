"""Who may ask: whoever has the token, which is given, or made for a state directory, readable by its owner alone."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..service.settings import TOKEN_VARIABLE, ServiceSettings
from .found import TOKEN_FILE
from .problems import Problem

OPEN_PATHS = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})


def token_of(settings: ServiceSettings) -> str:
    """Return the token that is given, or else that of the state directory; raises as ``token_in``."""
    return settings.token.get_secret_value() if settings.token is not None else token_in(settings.state_dir)


def token_in(state_dir: Path) -> str:
    """Return the token of a state directory; make it when there is none.

    Of several processes that make one at the same time, all return the same, and nobody ever sees half of it.

    Raises:
        PermissionError: If others can read the file, or this user can't.
    """
    path = state_dir / TOKEN_FILE
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(path, secrets.token_urlsafe(32))
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path} can be read by others; run chmod 600 on it, or remove it to get a new token")
    return path.read_text().strip()


def _create(path: Path, token: str) -> None:
    """Write the file whole or not at all, and never over another one: complete it aside, then link it."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    except FileExistsError:
        pass  # another process was first, and its token counts
    finally:
        aside.unlink()


class BearerGate:
    """Lets a request through if it carries the token, or asks for one of the open paths."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._allowed(Request(scope)):
            await self.app(scope, receive, send)
            return
        await _refusal(Request(scope)).response(scope["path"])(scope, receive, send)

    def _allowed(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = f"{scheme.title()} {token.strip()}".encode()
        return hmac.compare_digest(given, self._expected)


def _refusal(request: Request) -> Problem:
    where = f"the server has it from {TOKEN_VARIABLE}, or made one in its state directory, in the file token"
    if "authorization" not in request.headers:
        detail = f"No token was sent; send the header Authorization: Bearer TOKEN ({where})."
        return Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="sampa"'})
    return Problem(
        "unauthorized",
        f"The token is not the one of this server; {where}.",
        headers={"WWW-Authenticate": 'Bearer realm="sampa", error="invalid_token"'},
    )
