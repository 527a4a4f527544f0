"""A data set of Hugging Face's ``datasets``, by name or from a directory, for text or picture classification.

Text is turned into tokens once, when the task is built; a GLUE task is its ``subset`` and the names of its columns.
The measures are loss and accuracy, or the squared error of a regression: those of single samples, so GLUE's own
correlations and F1 are not among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, JsonValue, model_validator

from ..errors import TaskError
from ..models.choice import ModelChoice, ModelName
from ..packages import need
from .augmentation import Augmentation
from .files import folder, loaded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..images import Images
    from ..task import MapStyle, Task

_OF_THE_NETWORK = {"model_params", "pretrained", "upsample", "augment"}  # parameters that change nothing of the data
Columns = Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]


class Params(ModelChoice):
    """Parameters of the Hugging Face task."""

    dataset: str = Field(description="its name on the hub, or a directory made by its save_to_disk")
    subset: str | None = Field(None, description="which of its configurations, such as cola of glue")
    train: str = Field("train", description="split that is trained on")
    validation: str | None = Field(None, description="split that decides which evaluation was the best")
    test: str | None = Field("test", description="split that is tested on; null: no test")
    text: Columns | None = Field(None, description="one or two columns of text; or give image")
    image: str | None = Field(None, description="column of pictures; or give text")
    target: str = Field("label", description="column of class indices, or of numbers for a regression")
    regression: bool = Field(False, description="targets are numbers and the loss is the squared error; text only")
    model: ModelName = Field(description="hf:NAME for text; any network for pictures")
    tokenizer: str | None = Field(None, description="its name or directory, for text; that of the model when left out")
    max_length: int = Field(128, ge=2, description="tokens of a text; longer ones are cut, shorter ones filled up")
    image_size: int = Field(32, ge=1, description="pixels a side that pictures are resized to")
    augment: Augmentation | None = Field(None, description="random changes of training pictures; null: none")

    @model_validator(mode="after")
    def _text_or_image(self) -> Params:
        if (self.text is None) == (self.image is None):
            raise ValueError("give what is read once: either text or image")
        if self.text is not None and not self.model.startswith("hf:"):
            raise ValueError(f"text needs a model hf:NAME, but model is {self.model}")
        if self.regression and self.text is None:
            raise ValueError("regression is for text; set it to false")
        return self


def training_rows(_: Params) -> None:
    """Only the data set tells how many rows there are."""


def build(**params: object) -> Task:
    """Return the task.

    Raises:
        TaskError: If a package isn't installed, or a split or column isn't there.
    """
    settings = Params.model_validate(params)
    place = folder(settings.dataset)
    files = sorted(place.rglob("*")) if place.is_dir() else []
    rows = loaded(_read, settings.model_dump_json(exclude=_OF_THE_NETWORK), files=files)
    return _text_task(settings, rows) if settings.text else _image_task(settings, rows)


@dataclass(frozen=True)
class _Rows:
    """What is trained and measured on.

    Attributes:
        sets: By what they are for.
        outputs: Of the network: how many classes there are, or 1.
        words: How many the tokenizer knows; 0 for pictures.
    """

    sets: Mapping[str, Any]
    outputs: int
    words: int = 0


def _read(asked: str) -> _Rows:
    """Return the rows of parameters, as JSON."""
    settings = Params.model_validate_json(asked)
    splits = _splits(settings)
    if settings.text is None:
        return _Rows(_pictures(settings, splits), _classes(settings, splits))
    transformers = need("transformers", "task hf", "transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.tokenizer or settings.model.removeprefix("hf:"))
    outputs = 1 if settings.regression else _classes(settings, splits)
    return _Rows({use: _tokens(tokenizer, split, settings) for use, split in splits.items()}, outputs, len(tokenizer))


def _splits(settings: Params) -> dict[str, Any]:
    """Return the data set's splits by what they are for."""
    datasets = need("datasets", "task hf", "datasets")
    place = folder(settings.dataset)
    try:
        found = (
            datasets.load_from_disk(str(place))
            if place.is_dir()
            else datasets.load_dataset(settings.dataset, settings.subset)
        )
    except Exception as error:  # whatever the hub, the network or a damaged directory raises
        raise TaskError(
            f"data set {settings.dataset} can't be loaded: {type(error).__name__}: {str(error).splitlines()[0]}; "
            f"where there is no way to the hub, save it elsewhere with save_to_disk and name its directory"
        ) from error
    wanted = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    splits = {use: name for use, name in wanted.items() if name is not None}
    columns = [*(settings.text or (str(settings.image),)), settings.target]
    for use, name in splits.items():
        if name not in found:
            raise TaskError(
                f"data set {settings.dataset} has no split {name}; set task.params.{use} to one of {_of(found)}"
            )
        for column in columns:
            if column not in found[name].column_names:
                known = _of(found[name].column_names)
                raise TaskError(f"split {name} of {settings.dataset} has no column {column}; its columns are {known}")
    return {use: found[name] for use, name in splits.items()}


def _of(names: Any) -> str:
    return ", ".join(map(str, names))


def _classes(settings: Params, splits: Mapping[str, Any]) -> int:
    """Return how many classes there are, as the data set says or as its targets show.

    Raises:
        TaskError: If a target is no class index; GLUE's test splits hide theirs as -1.
    """
    feature = splits["train"].features[settings.target]
    targets = {use: split[settings.target][:] for use, split in splits.items()}
    for use, values in targets.items():
        if not all(isinstance(value, int) and value >= 0 for value in values):
            raise TaskError(
                f"column {settings.target} of the split for {use} has values that are no class indices; choose "
                f"another split with task.params.{use}, or set task.params.regression"
            )
    most = max(max(values, default=0) for values in targets.values()) + 1
    return max(getattr(feature, "num_classes", None) or 2, most)


def _text_task(settings: Params, rows: _Rows) -> Task:
    from ..models.libraries import Logits, transformer
    from ..task import Task

    name = settings.model.removeprefix("hf:")
    options: dict[str, JsonValue] = {**settings.model_params}
    if not settings.pretrained and "vocab_size" not in options:
        options["vocab_size"] = rows.words
    model = transformer("AutoModelForSequenceClassification", name, rows.outputs, settings.pretrained, options)
    return Task(
        model=Logits(model),
        loss=squared_error if settings.regression else None,
        metrics=(lambda model, batch: {"loss": squared_error(model, batch)}) if settings.regression else None,
        **rows.sets,
    )


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    """Return the squared error of each sample, shape ``(n,)``, of a model with one output."""
    inputs, targets = batch
    return (model(inputs).squeeze(-1) - targets) ** 2  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Tokens:
    """A map-style dataset of ({name: tokens}, target)."""

    inputs: Mapping[str, Tensor]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        return {name: tensor[index] for name, tensor in self.inputs.items()}, self.targets[index]


def _tokens(tokenizer: Any, split: Any, settings: Params) -> MapStyle:
    import torch

    texts: Sequence[list[str]] = [list(split[column][:]) for column in settings.text or ()]
    found = tokenizer(
        *texts, padding="max_length", truncation=True, max_length=settings.max_length, return_tensors="pt"
    )
    targets = torch.tensor(split[settings.target][:], dtype=torch.float32 if settings.regression else torch.long)
    return Tokens({name: found[name] for name in tokenizer.model_input_names if name in found}, targets)


def _image_task(settings: Params, rows: _Rows) -> Task:
    from ..task import Task

    side, scale = settings.image_size, rows.sets["train"].scale
    return Task(
        model=settings.build((3, side, side), rows.outputs),
        augment=settings.augment.function(scale.black) if settings.augment else None,
        **rows.sets,
    )


def _pictures(settings: Params, splits: Mapping[str, Any]) -> dict[str, Images]:
    import torch

    from ..images import Images, scale_of

    pixels = {use: _pixels(split, settings) for use, split in splits.items()}
    scale = scale_of(pixels["train"])
    return {use: Images(pixels[use], torch.tensor(split[settings.target][:]), scale) for use, split in splits.items()}


def _pixels(split: Any, settings: Params) -> Tensor:
    """Return the pictures of a split as bytes, shape ``(n, 3, image_size, image_size)``."""
    import numpy as np
    import torch

    need("PIL.Image", "task hf with pictures", "pillow")
    side = settings.image_size
    return torch.stack(
        [
            torch.from_numpy(np.array(row[settings.image].convert("RGB").resize((side, side)))).permute(2, 0, 1)
            for row in split
        ]
    )
