"""Opaque cursors: where a page ends, bound to the filters it was asked with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime

from .problems import Problem

Position = tuple[datetime, str]


def cursor_after(position: Position, filters: Mapping[str, object]) -> str:
    """Return the cursor of the page that starts after the job created at this time with this id."""
    time, job_id = position
    words = json.dumps([time.isoformat(), job_id, _digest(filters)])
    return base64.urlsafe_b64encode(words.encode()).decode().rstrip("=")


def position_of(cursor: str, filters: Mapping[str, object]) -> Position:
    """Return where the page of ``cursor`` starts.

    Raises:
        Problem: If it is no cursor, or came with other filters.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        time, job_id, digest = json.loads(base64.urlsafe_b64decode(padded.encode()))
        position = datetime.fromisoformat(time), str(job_id)
        if position[0].tzinfo is None:
            raise ValueError("no time zone")  # noqa: TRY301 - one way out for every malformed cursor
    except (ValueError, TypeError, binascii.Error) as error:
        raise Problem(
            "wrong-cursor", "The cursor is not one that this server gave out; take it from next of the page before."
        ) from error
    if digest != _digest(filters):
        raise Problem(
            "wrong-cursor",
            "The cursor came with other filters; repeat the filters of the first page, or start without it.",
        )
    return position


def _digest(filters: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(filters, sort_keys=True).encode()).hexdigest()[:16]
