"""What is to go wrong in a drill: a schedule of faults, as a pure function of what was asked.

``parse`` reads what was asked, ``choose_kinds`` what may be chosen, and ``schedule`` fits both to a job's length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, product
from random import Random
from typing import Any, get_args

from ..workers.faults import PHASES, Fault, Kind, Phase

KINDS: tuple[Kind, ...] = get_args(Kind)
_ITEM = re.compile(r"(\w+):(\d+)@(\d+)(?:/(\w+))?(?::([^:]+))?")
_FORM = "kind:rank@step, then /phase and :seconds where wanted, such as kill:1@60/updating or slow:0@9:2.5"


class DrillRefused(ValueError):
    """What was asked can't be drilled, in one sentence that says what to change."""


@dataclass(frozen=True)
class Stage:
    """Where faults may fall.

    Attributes:
        steps: Length of the job.
        workers: How many there are when the crew is complete.
        every_steps: Steps between checkpoints.
    """

    steps: int
    workers: int
    every_steps: int

    def checkpointed(self) -> list[int]:
        """Return the steps whose state is written to a checkpoint, in order."""
        return list(range(self.every_steps - 1, self.steps - 1, self.every_steps))


Listed = list[dict[str, Any]]  # faults as they were written down, each lacking only its number


def parse(text: str) -> int | str | Listed:
    """Return what ``--faults`` asks for: how many at random, ``all``, or a list.

    Raises:
        DrillRefused: If it is none of these.
    """
    text = text.strip()
    if text == "all":
        return text
    if re.fullmatch(r"-?\d+", text):
        if int(text) < 1:
            raise DrillRefused(f"--faults {text} asks for nothing to go wrong; ask for 1 at least")
        return int(text)
    return [_item(one.strip()) for one in text.split(",")]


def _item(text: str) -> dict[str, Any]:
    match = _ITEM.fullmatch(text)
    if match is None:
        raise DrillRefused(f"--faults: {text!r} is no fault; give how many at random, all, or a list of {_FORM}")
    kind, rank, step, phase, seconds = match.groups()
    _check_kind(f"--faults: {text!r}", kind)
    found = {"kind": kind, "rank": int(rank), "step": int(step), "phase": phase or "computing"}
    if found["phase"] not in PHASES:
        raise DrillRefused(f"--faults: {text!r} has no such phase; it must be one of {', '.join(PHASES)}")
    if seconds is None:
        return found
    if kind != "slow":
        raise DrillRefused(f"--faults: {text!r} gives seconds, but only a slow fault takes them; leave them out")
    return found | {"seconds": _seconds(text, seconds)}


def _seconds(item: str, text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(value := float(text)) and value >= 0:
            return value
    raise DrillRefused(f"--faults: {item!r} must give its seconds as a number, 0 or more")


def _check_kind(where: str, kind: str) -> None:
    if kind not in KINDS:
        raise DrillRefused(f"{where}: {kind!r} is no kind of fault; it must be one of {', '.join(KINDS)}")


def choose_kinds(text: str | None, asked: int | str | Listed, *, nodes: bool) -> list[Kind]:
    """Return the kinds of ``--kinds``, or all that can happen.

    Raises:
        DrillRefused: If it names what isn't one or can't happen.
    """
    if isinstance(asked, list):
        if text is not None:
            raise DrillRefused("--kinds limits what is chosen for you; leave it out, since --faults lists each fault")
        named = [str(item["kind"]) for item in asked]
    else:
        named = [one.strip() for one in text.split(",")] if text is not None else []
    for kind in named:
        _check_kind("--kinds", kind)
    if "node" in named and not nodes:
        raise DrillRefused("a fault of kind node needs a node for each worker; add --nodes")
    return [kind for kind in KINDS if (kind in named if named else kind != "node" or nodes)]


def schedule(asked: int | str | Listed, stage: Stage, *, seed: int, kinds: Sequence[Kind]) -> list[Fault]:
    """Return what is to go wrong, in order of steps, at most one fault in each: a pure function.

    Args:
        asked: As ``parse`` returns it.
        stage: The job's length, workers and checkpoints.
        seed: Of what is chosen at random.
        kinds: What may be chosen.

    Raises:
        DrillRefused: If it doesn't fit the job.
    """
    if isinstance(asked, list):
        planned = sorted(asked, key=lambda item: int(item["step"]))
        _check_list(planned, stage)
    else:
        planned = _draw(asked, stage, Random(seed), kinds)
    return [Fault(number=number, **item) for number, item in enumerate(planned)]


def _check_list(items: Listed, stage: Stage) -> None:
    for item in items:
        name, step, rank = show_fault(item), item["step"], item["rank"]
        if rank >= stage.workers:
            raise DrillRefused(
                f"--faults: {name} hits rank {rank}, but the job has {stage.workers} workers, the first of rank 0; "
                f"lower the rank, or raise workers.max"
            )
        if step >= stage.steps:
            raise DrillRefused(
                f"--faults: {name} hits step {step}, but the last of the job's {stage.steps} steps is {stage.steps - 1}"
            )
        if item["phase"] == "checkpointing" and step not in stage.checkpointed():
            raise DrillRefused(
                f"--faults: {name} hits a step after which no checkpoint is written; {_checkpoints_of(stage)}"
            )
    for before, after in pairwise(items):
        if before["step"] == after["step"]:
            raise DrillRefused(f"--faults: two faults hit step {after['step']}; one in each step is the most, move one")


def _checkpoints_of(stage: Stage) -> str:
    steps = stage.checkpointed()
    if not steps:
        return f"the job writes none in its {stage.steps} steps, lower its checkpoint.every_steps"
    shown = ", ".join(map(str, steps[:3])) + (", ..." if len(steps) > 3 else "")
    return f"one is written after each of steps {shown}" if len(steps) > 1 else f"one is written after step {shown}"


def _draw(asked: int | str, stage: Stage, random: Random, kinds: Sequence[Kind]) -> Listed:
    """Return so many faults, or each there is once, spread over the job."""
    places = stage.checkpointed()
    everything = [*product(kinds, range(stage.workers), PHASES)]
    count = len(everything) if isinstance(asked, str) else asked
    if count > stage.steps:
        raise DrillRefused(
            f"--faults {asked} means {count} faults, one in a step at most, but the job has {stage.steps} steps; ask "
            f"for fewer, or make the job longer"
        )
    if asked == "all" and len(places) < (wanted := count // len(PHASES)):
        raise DrillRefused(
            f"--faults all means {wanted} faults while a checkpoint is written, but the job writes {len(places)} "
            f"before its last; lower its checkpoint.every_steps, make it longer, or limit --kinds"
        )
    dealt = _deal(everything, count, len(places), random)
    writing = _spread(places, sum(phase == "checkpointing" for _, _, phase in dealt), random)
    others = _spread([step for step in range(stage.steps) if step not in writing], count - len(writing), random)
    steps = {True: iter(writing), False: iter(others)}
    found = [
        {"kind": kind, "rank": rank, "step": next(steps[phase == "checkpointing"]), "phase": phase}
        for kind, rank, phase in dealt
    ]
    return sorted(found, key=lambda item: int(item["step"]))


def _deal(
    everything: Sequence[tuple[Kind, int, Phase]], count: int, checkpoints: int, random: Random
) -> list[tuple[Kind, int, Phase]]:
    """Return so many of what there is, each once before one comes again; not more in checkpoints than there are."""
    dealt: list[tuple[Kind, int, Phase]] = []
    writing = 0
    while len(dealt) < count:
        for card in random.sample(everything, len(everything)):
            if card[2] != "checkpointing" or writing < checkpoints:
                dealt.append(card)
                writing += card[2] == "checkpointing"
    return dealt[:count]


def _spread(steps: Sequence[int], count: int, random: Random) -> list[int]:
    """Return so many of the steps, one from each of as many stretches of them."""
    bounds = [number * len(steps) // max(count, 1) for number in range(count + 1)]
    return [steps[random.randrange(low, high)] for low, high in pairwise(bounds)]


def show_fault(fault: Fault | Mapping[str, Any]) -> str:
    """Return a fault as ``--faults`` takes it."""
    item = fault.model_dump() if isinstance(fault, Fault) else fault
    seconds = str(float(item.get("seconds", 1.0))).removesuffix(".0")
    pause = f":{seconds}" if item["kind"] == "slow" else ""
    return f"{item['kind']}:{item['rank']}@{item['step']}/{item['phase']}{pause}"
