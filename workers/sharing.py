"""How many workers have room on a node, and how those of a pool are shared out among its runs: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PARTS = 10_000  # of a processor or GPU, in which Ray counts


@dataclass(frozen=True)
class Need:
    """What a run can do with.

    Attributes:
        least: Workers below which it doesn't start.
        most: Workers beyond which more are of no use.
    """

    least: int
    most: int


def room_for(worker: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return how many workers have room on a node where nobody else is, given what each takes and what it has."""
    return min(
        round(node.get(name, 0.0) * _PARTS) // max(1, round(each * _PARTS)) for name, each in worker.items() if each
    )


def share(needs: Sequence[Need], workers: int, spare: bool) -> list[int]:
    """Return how many workers each run is to have; the first runs come first.

    Each gets its least. One for which that isn't there waits, and so do those behind it: what comes free is for it, so
    a wide run is not kept waiting for ever by narrow ones. With ``spare``, what is left is dealt out in turn.
    """
    shares = [0] * len(needs)
    left = workers
    for number, need in enumerate(needs):
        if need.least > left:
            break
        shares[number] = need.least
        left -= need.least
    while spare and left:
        takers = [number for number, need in enumerate(needs) if 0 < shares[number] < need.most]
        for number in takers[:left]:
            shares[number] += 1
        if not takers:
            break
        left -= min(left, len(takers))
    return shares
