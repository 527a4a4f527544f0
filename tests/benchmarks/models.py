"""The networks that the benchmarks train, on synthetic data."""

import os
import time
from pathlib import Path

import torch
from sampa.workers.task import Loss, Task, classification_loss
from sampa.workers.tasks.digits import build
from torch import nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (option A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, after - before
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)

    def forward(self, x):
        y = self.second_norm(self.second(relu(self.first_norm(self.first(x)))))
        x = x[:, :, :: self.stride, :: self.stride]
        return relu(y + pad(x, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2)))


def resnet56() -> nn.Module:
    """ResNet-56 for 32x32 images, 0.86 million parameters.

    Source: He et al., "Deep Residual Learning for Image Recognition", section 4.2, https://arxiv.org/abs/1512.03385
    """
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for after, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(9):
            layers.append(Block(width, after, stride if number == 0 else 1))
            width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def resnet_task(rows: int = 1024) -> Task:
    """ResNet-56 on random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(rows, 3, 32, 32, generator=generator)
    return Task(model=resnet56(), train=(images, torch.randint(10, (rows,), generator=generator)))


def wide_task(layers: int, width: int = 1000) -> Task:
    """A million parameters per layer with next to no activations, to see what a worker's own memory is."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    return Task(model=model, train=(torch.randn(64, width, generator=generator), torch.zeros(64, dtype=torch.long)))


def wide_1() -> Task:
    """One layer of the wide task."""
    return wide_task(1)


def wide_37() -> Task:
    """36 million parameters more than ``wide_1``."""
    return wide_task(37)


def marking(marks: str) -> Loss:
    """Return the default loss, which leaves its time in a file of its process's each time it is called."""
    file = None

    def loss(model, batch):
        nonlocal file
        file = file or (Path(marks) / str(os.getpid())).open("a", buffering=1)
        file.write(f"{time.time():.6f}\n")
        return classification_loss(model, batch)

    return loss


def marked_digits(marks: str) -> Task:
    """Digits, each loss of which leaves a mark."""
    task = build(label_noise=0.4)
    task.loss = marking(marks)
    return task


def marked_wide(marks: str, layers: int) -> Task:
    """The wide task, each loss of which leaves a mark."""
    task = wide_task(layers)
    task.loss = marking(marks)
    return task
