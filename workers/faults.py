"""Faults on purpose: a schedule of them, and what makes them happen inside a worker. See ``sampa drill``."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from .settings import Settings

Kind = Literal["kill", "hang", "slow", "node"]
Phase = Literal["computing", "exchanging", "updating", "checkpointing"]
PHASES: tuple[Phase, ...] = ("computing", "exchanging", "updating", "checkpointing")


class Fault(Settings):
    """One fault: what happens to which rank, and when."""

    number: int = Field(description="its place in the schedule; each number happens once")
    kind: Kind = Field(description="kill: SIGKILL; hang: SIGSTOP; slow: sleep; node: its node's Ray is killed with it")
    step: int = Field(ge=0, description="index of the step in which it happens")
    rank: int = Field(ge=0, description="of the worker, in the generation of the moment")
    phase: Phase = Field(
        description="computing: before the gradients; exchanging: between the trades of an exchange; updating: after "
        "the exchange, before the commit; checkpointing: while the file of the step's state is written"
    )
    seconds: float = Field(1.0, ge=0, description="how long a slow one sleeps")


class Saboteur:
    """Makes the faults of one worker happen.

    Args:
        faults: The whole schedule.
        claim: Says whether the fault of this number has not happened yet, and takes it.
        due: Says whether one of these faults has not happened yet, and waits for a complete crew.
    """

    def __init__(
        self, faults: Sequence[Fault], claim: Callable[[int], bool], due: Callable[[Sequence[int]], bool]
    ) -> None:
        self._faults, self._claim, self._due = faults, claim, due

    def waits(self, step: int) -> bool:
        """Say whether the step must wait until the crew is complete: a fault is to happen in it, to one of all."""
        numbers = [fault.number for fault in self._faults if fault.step == step]
        return bool(numbers) and self._due(numbers)

    def strike(self, phase: str, step: int, rank: int) -> None:
        """Let happen what is planned for this moment."""
        for fault in self._faults:
            if (fault.phase, fault.step, fault.rank) == (phase, step, rank) and self._claim(fault.number):
                _make(fault)


def _make(fault: Fault) -> None:
    match fault.kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "slow":
            time.sleep(fault.seconds)
        case "node":
            os.kill(os.getppid(), signal.SIGKILL)  # Ray's raylet, which started this process
            os.kill(os.getpid(), signal.SIGKILL)
