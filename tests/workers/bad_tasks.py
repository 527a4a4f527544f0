"""Tasks with the mistakes that users make."""

import torch
from sampa.workers.task import Task
from torch import nn


def wrong_type():
    return 3


def raises():
    raise RuntimeError("no data here")


def too_small():
    return Task(model=nn.Linear(2, 2), train=(torch.zeros(3, 2), torch.zeros(3).long()))


def uneven():
    return Task(model=nn.Linear(2, 2), train=(torch.zeros(30, 2), torch.zeros(20).long()))


def frozen():
    return Task(
        model=nn.Linear(2, 2).requires_grad_(requires_grad=False), train=(torch.zeros(30, 2), torch.zeros(30).long())
    )
