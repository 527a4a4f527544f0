"""A job as it is asked for: frozen, checked before it is stored, refused with the field that is wrong."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..workers.plan import Plan

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class JobSpec(Plan):
    """A plan with a name, and how often its runner may be started again."""

    name: Name = Field(description="letters, digits, dots, dashes and underscores; need not be unique")
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="how often a runner that vanished is started again, from the newest checkpoint"
    )
