"""Small tasks of a user's own, which train in milliseconds: what the tests with real Ray import by name."""

import os
import time
from functools import lru_cache

import torch
from sampa.workers.task import Task, classification_loss
from torch import nn


def _data(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(rows, 1, 6, 6, generator=generator, dtype=dtype)
    return inputs, (inputs.mean((1, 2, 3)) > 0).long()


def convolution(width=8):
    """A network with batch normalization, so that running statistics and counters are part of the state."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(width * 36, 10),
    )
    return Task(model=model, train=_data(128), test=_data(50), augment=flip)


def flip(batch, generator):
    inputs, targets = batch
    flipped = torch.rand(len(inputs), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flipped, inputs.flip(-1), inputs), targets


class Block(nn.Module):
    """A block as users write them: a norm with running statistics, dropout, and a shortcut."""

    def __init__(self, width):
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x, *, scale=1.0):
        return x + self.dropout(torch.relu(self.norm(self.convolution(x)))) * scale


class Residual(nn.Module):
    """A few blocks between a first and a last layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.blocks = nn.Sequential(Block(4), nn.ReLU(), Block(4))
        self.head = nn.Linear(144, 2)

    def forward(self, x):
        return self.head(self.blocks(self.first(x)).flatten(1))


def residual():
    """The same problem for a network whose layers have names."""
    return Task(model=Residual(), train=_data(128), test=_data(50), augment=flip)


def paced(pace_s, width=8):
    """The same, with a loss that takes its time, so that much can happen meanwhile."""
    task = convolution(width)

    def loss(model, batch):
        time.sleep(pace_s)
        return classification_loss(model, batch)

    task.loss = loss
    return task


def steep():
    """A small network, whose loss is a thousand times as steep on one sample in thirty-two."""
    inputs, targets = _data(128)
    inputs = inputs.flatten(1)
    inputs[::32, 0] = 3.0
    model = nn.Sequential(nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 10))

    def loss(model, batch):
        return classification_loss(model, batch) * torch.where(batch[0][:, 0] == 3.0, 1000.0, 1.0)

    return Task(model=model, train=(inputs, targets), loss=loss)


@lru_cache(maxsize=1)
def _read():
    print(f"read in process {os.getpid()}")
    return _data(128)


def telling(pace_s=0.0):
    """The paced one, which tells the number of the process that it is built in, and where its data are read."""
    print(f"built in process {os.getpid()}")
    task = paced(pace_s)
    task.train = _read()
    return task


def fatal():
    """A task that ends its process in the third step."""
    task = convolution()
    steps = iter(range(6))

    def loss(model, batch):
        if next(steps, None) is None:
            os._exit(1)
        return classification_loss(model, batch)

    task.loss = loss
    return task
