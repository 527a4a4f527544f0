"""Measuring a model on data it wasn't trained on, shared out among the workers, with the same bits for any number."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .data import fetch, move
from .engine import Engine
from .errors import TaskError
from .exchange import Exchange
from .task import Data

ROWS = 256  # rows of one batch; fixed, since a kernel's result can depend on it


def evaluate(engine: Engine, exchange: Exchange, data: Data) -> dict[str, float]:
    """Return the mean of each of the task's metrics over ``data``, measured at the committed weights.

    Batches are dealt out to the workers in turn; their sums are added in order of batches.

    Raises:
        TaskError: If the metrics can't be used.
        ExchangeError: If a peer is late or lost.
    """
    rows = len(data[0] if isinstance(data, tuple) else data)
    starts = range(0, rows, ROWS)
    engine.stand_on_weights()
    engine.task.model.eval()
    names: list[str] = sorted(_measure(engine, data, range(1))) if exchange.rank >= len(starts) else []
    sums: list[Tensor | None] = [None] * len(starts)
    for number in range(exchange.rank, len(starts), exchange.hosts.workers):
        measured = _measure(engine, data, range(starts[number], min(starts[number] + ROWS, rows)))
        names = sorted(measured)
        sums[number] = torch.stack([measured[name].double().sum() for name in names])
    blank = torch.zeros(len(names), dtype=torch.float64, device=engine.flat.device)
    table = torch.stack([blank if one is None else one for one in sums]) if sums else blank.unsqueeze(0)
    whole = exchange.add_up("exchange of an evaluation", engine.state.step, table.flatten()).view(table.shape)
    return {name: float(value) / rows for name, value in zip(names, whole.sum(0), strict=True)}


def _measure(engine: Engine, data: Data, rows: range) -> Mapping[str, Tensor]:
    where = engine.plan.task.entrypoint
    batch = move(fetch(data, torch.tensor(rows)), engine.flat.dtype, engine.flat.device)
    try:
        with torch.no_grad():
            measured = engine.task.metrics_of_samples(engine.task.model, batch)
    except Exception as error:
        raise TaskError(f"the metrics of task {where} raised {type(error).__name__}: {error}") from error
    for name, values in measured.items():
        if not isinstance(values, Tensor) or values.shape != (len(rows),):
            raise TaskError(
                f"metric {name} of task {where} must have one value per sample, shape ({len(rows)},); average nothing"
            )
    return measured
