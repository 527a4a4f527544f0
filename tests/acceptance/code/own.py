"""Tasks of a user's own, as workers import them: one that says who trains it, and some with users' mistakes."""

import os
import time

import torch
from sampa.workers.task import Task
from sampa.workers.tasks.digits import build
from torch import nn
from torch.nn.functional import cross_entropy


def digits(pace_s=0.0, brake=None, **params):
    """Digits at a pace that leaves time to act in the middle of it; each worker logs its process."""
    print(f"pid {os.getpid()}")
    task = build(**params)
    task.augment = Pace(pace_s, brake)
    return task


class Pace:
    """Leaves batches as they are, after a while; if there is to be a brake, only as long as its file is there."""

    def __init__(self, seconds, brake):
        self.seconds, self.brake = seconds, brake

    def __call__(self, batch, _generator):
        if self.brake is None or os.path.exists(self.brake):
            time.sleep(self.seconds)
        return batch


def one_loss_for_all():
    return Task(model=nn.Linear(2, 2), train=_rows(32), loss=_mean_loss)


def too_small():
    return Task(model=nn.Linear(2, 2), train=_rows(3))


def _rows(count):
    return torch.zeros(count, 2), torch.zeros(count).long()


def _mean_loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


class OneWeight(nn.Module):
    """A weight of 1, of which half the square is the loss: with a learning rate of 1, SAM's first step ends at -rho."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, rows):
        return self.weight.expand(len(rows))


def planted(best, spread):
    """Return a task whose score after one step tells its rho from the best one, with a little noise."""

    def metrics(model, batch):
        rho = model(batch[0]).abs().double()
        return {"score": -((rho / best).log() ** 2) + spread * (1e5 * rho).sin()}

    rows = torch.zeros(4, 1)
    return Task(OneWeight(), (rows,), test=(rows,), loss=lambda model, batch: model(batch[0]) ** 2 / 2, metrics=metrics)
