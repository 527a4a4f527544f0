"""What both CIFAR tasks share: the published files, the split, the augmentation.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; files and their formats,
https://www.cs.toronto.edu/~kriz/cifar.html. Split, augmentation and scale are those of the SAMPa authors' script: a
tenth of the training images held out, statistics of all of them, crop, flip, Cutout.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..errors import TaskError
from ..models.choice import ModelChoice, ModelName
from .augmentation import Augmentation
from .files import folder, loaded, missing

if TYPE_CHECKING:
    import numpy as np

    from ..images import Images
    from ..task import Task

PUBLISHED_ROWS = 50_000
_PIXELS = 3 * 32 * 32
_VERSIONS = {"batches-py": "", "python": "", "batches-bin": ".bin", "binary": ".bin"}  # ends of folders and of files


class Params(ModelChoice):
    """Parameters of the CIFAR tasks."""

    root: str = Field(
        "~/data", description="directory of the published files or of their folder, on every machine that trains"
    )
    model: ModelName = Field("resnet56", description="a network of ours, or torchvision:NAME, timm:NAME, hf:NAME")
    validation_rows: int = Field(5000, ge=0, lt=PUBLISHED_ROWS, description="training images held out for validation")
    split_seed: int = Field(0, ge=0, lt=2**31, description="of which images are held out; not of the training")
    augment: Augmentation | None = Field(
        Augmentation(), description="random changes of the training images; null: none"
    )


@dataclass(frozen=True)
class Files:
    """The published files of one of the two data sets.

    Attributes:
        name: What it is called.
        stem: What its folders and archives are called.
        train: Names of the files of training images.
        test: Name of the file of test images.
        classes: How many there are.
        label: Name of the labels in the files of the Python version.
        label_bytes: Labels before each image in the files of the binary version, of which the last is meant.
    """

    name: str
    stem: str
    train: tuple[str, ...]
    test: str
    classes: int
    label: str
    label_bytes: int

    def paths(self, root: Path) -> tuple[Path, ...]:
        """Return where the files lie, that of the test images last: the Python version's, or the binary one's.

        Raises:
            TaskError: If they are not there.
        """
        for version, ending in _VERSIONS.items():
            for place in (root, root / f"{self.stem}-{version}"):
                if (place / f"{self.test}{ending}").is_file():
                    return tuple(place / f"{name}{ending}" for name in (*self.train, self.test))
        archive = f"https://www.cs.toronto.edu/~kriz/{self.stem}-python.tar.gz"
        raise missing(
            self.name, root, f"`mkdir -p {root} && curl -L {archive} | tar -xz -C {root}` gets it, or set root"
        )

    def read(self, paths: Sequence[Path]) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Return (pixels, labels) for training and for test; bytes of shape ``(n, 3, 32, 32)``, and ``(n,)``.

        Raises:
            TaskError: If one is missing or damaged.
        """
        import numpy as np

        read = self._read_binary if paths[-1].suffix == ".bin" else self._read_pickled
        *train, test = map(read, paths)
        return (np.concatenate([pixels for pixels, _ in train]), np.concatenate([labels for _, labels in train])), test

    def _read_pickled(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        content = _unpickled(path)
        pixels, labels = content.get("data"), content.get(self.label)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (_PIXELS,):
            raise TaskError(f"{path} holds no images of {self.name}; get it again, or set root")
        if labels is None or len(labels) != len(pixels):
            raise TaskError(f"{path} has no {self.label} for its {len(pixels)} images; get it again, or set root")
        return self._checked(path, pixels, np.asarray(labels))

    def _read_binary(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        rows, length = _read(path), self.label_bytes + _PIXELS
        if not rows or len(rows) % length:
            raise TaskError(f"{path} has {len(rows)} bytes, no multiple of {length}; get it again, or set root")
        table = np.frombuffer(rows, np.uint8).reshape(-1, length)
        return self._checked(path, table[:, self.label_bytes :].copy(), table[:, self.label_bytes - 1])

    def _checked(self, path: Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if labels.size and not 0 <= labels.min() <= labels.max() < self.classes:
            raise TaskError(f"{path} has labels outside 0 ... {self.classes - 1}; get it again, or set root")
        return pixels.reshape(-1, 3, 32, 32), labels.astype("int64")


CIFAR10 = Files("CIFAR-10", "cifar-10", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", 10, "labels", 1)
CIFAR100 = Files("CIFAR-100", "cifar-100", ("train",), "test", 100, "fine_labels", 2)


def build_from(files: Files, settings: Params) -> Task:
    """Return the task of these files."""
    from ..task import Task

    paths = files.paths(folder(settings.root))
    train, held_out, test = loaded(_images, files, paths, settings.validation_rows, settings.split_seed, files=paths)
    return Task(
        model=settings.build((3, 32, 32), files.classes),
        train=train,
        validation=held_out if len(held_out) else None,
        test=test,
        augment=settings.augment.function(train.scale.black) if settings.augment else None,
    )


def _images(files: Files, paths: Sequence[Path], validation_rows: int, split_seed: int) -> tuple[Images, ...]:
    """Return the images for training, those held out for validation, and those for test."""
    import torch

    from ..images import Images, scale_of

    train, test = ([torch.from_numpy(part) for part in parts] for parts in files.read(paths))
    images = Images(train[0], train[1], scale_of(train[0]))
    if validation_rows >= len(images):
        raise TaskError(
            f"{files.name} has {len(images)} training images here, so {validation_rows} can't be held out; "
            f"lower task.params.validation_rows"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(split_seed))
    held_out, kept = (part.sort().values for part in order.tensor_split([validation_rows]))
    return images.at(kept), images.at(held_out), Images(test[0], test[1], images.scale)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} can't be read: {error.strerror}; get it again, or set root") from error


def _unpickled(path: Path) -> dict[str, Any]:
    """Return the dictionary of a pickled file, which may hold plain values and numeric arrays and nothing else."""
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="latin1").load()
    except OSError as error:
        raise TaskError(f"{path} can't be read: {error.strerror}; get it again, or set root") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise TaskError(f"{path} is no file of arrays ({error}); get it again, or set root") from error
    if not isinstance(content, dict):
        raise TaskError(f"{path} holds {type(content).__name__}, not a dictionary; get it again, or set root")
    return content


class _Plain(pickle.Unpickler):
    """Makes arrays and nothing else, so that no code of the file's is run."""

    def find_class(self, module: str, name: str) -> Any:
        from codecs import encode

        import numpy as np

        def array_of(kind: Any, shape: tuple[int, ...], code: Any) -> np.ndarray:
            return np.ndarray.__new__(np.ndarray, shape, code)

        def dtype(name: str, *_: object) -> np.dtype[Any]:
            return np.dtype(name, False, True)  # a copy: its state is set next

        known = {
            ("numpy.core.multiarray", "_reconstruct"): array_of,
            ("numpy._core.multiarray", "_reconstruct"): array_of,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): dtype,
            ("_codecs", "encode"): encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]
