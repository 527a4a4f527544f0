"""Arrays of your own: a .npz or .safetensors file with inputs and class indices.

Inputs have shape ``(n, ...)``. Numbers stay as they are, but bytes are divided by 255; inputs of shape
``(n, height, width)`` are images of one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field

from ..errors import TaskError
from ..models.choice import ModelChoice, ModelName
from .augmentation import Augmentation
from .files import folder, loaded, missing

if TYPE_CHECKING:
    from torch import Tensor

    from ..task import Task

Pair: TypeAlias = "tuple[Tensor, Tensor]"
SUFFIXES = (".npz", ".safetensors")


class Params(ModelChoice):
    """Parameters of the arrays task."""

    path: str = Field(
        pattern=r"\.(npz|safetensors)$", description="a .npz or .safetensors file, on every machine that trains"
    )
    model: ModelName = Field("mlp", description="a network of ours, or torchvision:NAME, timm:NAME, hf:NAME")
    inputs: str = Field("x_train", description="name of the training inputs in the file")
    targets: str = Field("y_train", description="name of their class indices")
    test_inputs: str | None = Field("x_test", description="name of the test inputs; null: no test")
    test_targets: str | None = Field("y_test", description="name of their class indices")
    validation_inputs: str | None = Field(None, description="name of the validation inputs")
    validation_targets: str | None = Field(None, description="name of their class indices")
    classes: int | None = Field(None, ge=2, description="how many there are; left out: one more than the largest index")
    augment: Augmentation | None = Field(None, description="random changes of training images; null: none")


def training_rows(_: Params) -> None:
    """Only the file tells how many rows there are."""


def build(**params: object) -> Task:
    """Return the task.

    Raises:
        TaskError: If the file is missing or damaged, or its arrays don't fit together.
    """
    from ..task import Task

    settings = Params.model_validate(params)
    path = folder(settings.path)
    names = (
        (settings.inputs, settings.targets),
        (settings.test_inputs, settings.test_targets),
        (settings.validation_inputs, settings.validation_targets),
    )
    train, test, validation = loaded(_pairs, path, names, files=[path])
    assert train is not None
    largest = max(int(labels.max()) for _, labels in filter(None, (train, test, validation)))
    classes = settings.classes or largest + 1
    if largest >= classes:
        raise TaskError(f"{path} has class indices up to {largest}; set task.params.classes to {largest + 1} or more")
    return Task(
        model=settings.build(tuple(train[0].shape[1:]), classes),
        train=train,
        test=test,
        validation=validation,
        augment=settings.augment.function(0.0) if settings.augment else None,
    )


def _pairs(path: Path, names: Sequence[tuple[str | None, str | None]]) -> list[Pair | None]:
    """Return inputs and class indices by their names in the file; None where one has no name."""
    arrays = _read(path)
    return [
        None if inputs is None or targets is None else _pair(path, arrays, inputs, targets) for inputs, targets in names
    ]


def _read(path: Path) -> dict[str, Tensor]:
    import numpy as np
    import torch

    if not path.is_file():
        raise missing(path.name, path.parent, f"put it there, or set task.params.path: `ls {path.parent}`")
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            found: dict[str, Tensor] = safetensors.torch.load_file(path)
            return found
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except Exception as error:  # whatever a damaged file raises
        raise TaskError(f"{path} can't be read as {path.suffix}: {type(error).__name__}: {error}; mend it") from error


def _pair(path: Path, arrays: dict[str, Tensor], inputs: str, targets: str) -> Pair:
    """Return inputs and class indices as they are trained on."""
    for name in (inputs, targets):
        if name not in arrays:
            raise TaskError(
                f"{path} has no array {name}; it has {', '.join(sorted(arrays)) or 'none'}: name what is meant in "
                f"task.params, null for data that isn't there"
            )
    x, y = arrays[inputs], arrays[targets].squeeze()
    if len(x) != y.numel() or not len(x):
        raise TaskError(f"{path}: {inputs} has {len(x)} rows and {targets} has {y.numel()}; make them equal, above 0")
    if y.is_floating_point() or y.is_complex() or int(y.min()) < 0:
        raise TaskError(f"{path}: {targets} must be class indices, whole numbers from 0 on, but has {_described(y)}")
    if not x.is_floating_point():
        x = x.float() / (255 if str(x.dtype) == "torch.uint8" else 1)
    return x.unsqueeze(1) if x.dim() == 3 else x, y.reshape(-1).long()


def _described(values: Any) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} from {values.min()} to {values.max()}"
