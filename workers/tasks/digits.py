"""Scikit-learn's handwritten digits with label noise: real data that ships with a package and trains in seconds.

1,797 images of 8x8 pixels; 1,024 of them for training, the others for test. Each training label is replaced
by a uniformly random one with probability ``label_noise``. Source: scikit-learn's ``load_digits``, a copy of
the test set of the UCI "Optical Recognition of Handwritten Digits", https://doi.org/10.24432/C50P49
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ..settings import Settings
from .files import loaded

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..task import Task

TRAINING_ROWS = 1024


class Params(Settings):
    """Parameters of the digits task."""

    label_noise: float = Field(0.0, ge=0, le=1, description="probability that a training label is replaced")
    split_seed: int = Field(0, ge=0, lt=2**31, description="of the split and of the noise; not of the training")


def training_rows(_: Params) -> int:
    """Return how many rows are trained on."""
    return TRAINING_ROWS


def build(**params: object) -> Task:
    """Return the task, with the small convolutional network."""
    from ..models.small import cnn
    from ..task import Task

    settings = Params.model_validate(params)
    train, test = loaded(_rows, settings.label_noise, settings.split_seed)
    return Task(model=cnn((1, 8, 8), 10), train=train, test=test)


def _rows(label_noise: float, split_seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) for training and for test."""
    import torch

    table = torch.from_numpy(_table())
    images = table[:, :-1].float().reshape(-1, 1, 8, 8) / 16
    labels = table[:, -1].long()
    noise = torch.Generator().manual_seed(split_seed)
    order = torch.randperm(len(images), generator=noise)
    train, test = order[:TRAINING_ROWS], order[TRAINING_ROWS:]
    replaced = torch.rand(TRAINING_ROWS, generator=noise) < label_noise
    random_labels = torch.randint(10, (TRAINING_ROWS,), generator=noise)
    noisy = torch.where(replaced, random_labels, labels[train])
    return (images[train], noisy), (images[test], labels[test])


def _table() -> np.ndarray:
    """Return scikit-learn's digits, shape (1797, 65), the label last.

    Read from its file rather than through ``load_digits``: importing scikit-learn costs each worker two seconds.
    """
    import numpy as np

    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("scikit-learn, which holds the digits, is not installed; pip install scikit-learn")
    return np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
