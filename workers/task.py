"""A task is what is trained: a model, its data, a loss of each sample, and what is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .compiling import compile_training
from .errors import TaskError
from .freezing import freeze
from .mixing import Mixed
from .plan import Plan
from .recompute import layers_of, save_activations
from .tasks import BUILT_IN


class MapStyle(Protocol):
    """A map-style dataset, such as ``torch.utils.data.Dataset`` with a length."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


Data: TypeAlias = tuple[Tensor, ...] | MapStyle
Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Metrics: TypeAlias = Callable[[nn.Module, Any], Mapping[str, Tensor]]


def classification_loss(model: nn.Module, batch: Any, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of each sample, shape ``(n,)``, for a batch ``(inputs, class indices)``.

    With K classes, ``e`` the label smoothing and ``p`` the model's probabilities, and for ``Mixed`` targets::

        CE(y)        = -(1 - e) * log p_y - e / K * sum_k log p_k
        CE(y, z, w)  = w * CE(y) + (1 - w) * CE(z)

    Source: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016, https://arxiv.org/abs/1512.00567
    """
    inputs, targets = batch
    logits = model(inputs)
    of = partial(cross_entropy, logits, reduction="none", label_smoothing=label_smoothing)
    if isinstance(targets, Mixed):
        return targets.weight * of(targets.first) + (1 - targets.weight) * of(targets.second)
    return of(targets)


def classification_metrics(model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
    """Return ``loss`` and ``accuracy`` of each sample, each of shape ``(n,)``."""
    inputs, targets = batch
    logits = model(inputs)
    return {"loss": cross_entropy(logits, targets, reduction="none"), "accuracy": logits.argmax(-1) == targets}


@dataclass
class Task:
    """What is trained.

    A worker of a sweep builds one trial's task after the other in the same process, where modules stay imported. So
    what a task reads need not be read again: put ``functools.lru_cache(maxsize=1)`` before the function that reads it,
    and change nothing of what it returns. The model is built anew each time.

    Attributes:
        model: Built with the job's seed set; its parameters' dtype is the dtype of the training.
        train: Tensors of equal length, ``(inputs, targets)`` for the default loss, or a map-style dataset.
        test: The same shape of data, measured during and after training; or None.
        validation: The same, and if given it decides which evaluation was the best.
        loss: ``loss(model, batch)`` gives one loss per sample, shape ``(n,)``; cross entropy if left out.
        metrics: ``metrics(model, batch)`` gives named values per sample, each of shape ``(n,)``; loss and, for
            the default loss, accuracy if left out.
        augment: ``augment(batch, generator)`` gives a training batch changed at random; all randomness must
            come from the generator or torch's global one. ``sampa.workers.augment`` has some for images.
        loss_takes_mixed: Whether ``loss`` can do with batches whose targets are ``sampa.workers.mixing.Mixed``, so that
            a job may ask for mixup or cutmix.
        label_smoothing: Of the default loss in training; set from the job.
        still: Layers that stay in evaluation mode; set from the job's ``freeze``.
    """

    model: nn.Module
    train: Data
    test: Data | None = None
    validation: Data | None = None
    loss: Loss | None = None
    metrics: Metrics | None = None
    augment: Callable[[Any, torch.Generator], Any] | None = None
    loss_takes_mixed: bool = False
    label_smoothing: float = field(default=0.0, init=False)
    still: tuple[nn.Module, ...] = field(default=(), init=False)

    @property
    def loss_of_samples(self) -> Loss:
        """The loss in use for training."""
        return self.loss or partial(classification_loss, label_smoothing=self.label_smoothing)

    def set_training(self) -> None:
        """Put the model into training mode, but for the layers that are still."""
        self.model.train()
        for layer in self.still:
            layer.eval()

    @property
    def metrics_of_samples(self) -> Metrics:
        """The metrics in use."""
        if self.metrics is not None:
            return self.metrics
        if self.loss is not None:
            own = self.loss
            return lambda model, batch: {"loss": own(model, batch)}
        return classification_metrics

    def evaluations(self) -> dict[str, Data]:
        """Return the sets to measure on, by name."""
        return {name: data for name, data in (("validation", self.validation), ("test", self.test)) if data is not None}


def load_task(plan: Plan) -> Task:
    """Build the plan's task, with the job's seed set, and prepare it.

    Raises:
        TaskError: If the module doesn't import, the function fails or returns something that can't be trained so.
    """
    where = plan.task.entrypoint
    build = _find(where)
    torch.manual_seed(plan.seed)
    try:
        task = build(**plan.task.params)
    except TaskError:
        raise
    except Exception as error:
        raise TaskError(f"task {where} failed to build: {_in_a_word(error)}; mend it, or task.params") from error
    _check(task, where, plan)
    if plan.precision:
        task.model.to(torch.float64 if plan.precision == "float64" else torch.float32)
    prepare(task, plan)
    return task


def prepare(task: Task, plan: Plan) -> None:
    """Let the task be trained as the plan says.

    Raises:
        TaskError: If its loss or its model can't be.
    """
    if task.loss is not None and plan.label_smoothing:
        raise TaskError(
            f"label_smoothing is for the default loss, but task {plan.task.entrypoint} has its own; smooth the targets "
            f"in that loss, and leave out label_smoothing"
        )
    if task.loss is not None and plan.mix is not None and not task.loss_takes_mixed:
        raise TaskError(
            f"mix is for the default loss, but task {plan.task.entrypoint} has its own; let that loss take "
            f"sampa.workers.mixing.Mixed targets and set loss_takes_mixed in the task, or leave out mix"
        )
    task.label_smoothing = plan.label_smoothing
    task.still = freeze(task.model, plan.freeze)
    layers = layers_of(task.model, plan.activation_checkpointing)
    if plan.compile:  # inside what is done again, since compiled code can't keep the buffers by itself
        device = "cuda" if plan.workers.gpus and torch.cuda.is_available() else "cpu"
        compile_training(layers or [task.model], device)
    save_activations(layers)


def _find(where: str) -> Callable[..., Task]:
    if where in BUILT_IN:
        return BUILT_IN[where].build  # type: ignore[no-any-return]
    module, _, function = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:
        raise TaskError(
            f"the module of task {where} failed to import: {_in_a_word(error)}; is it in the code directory, and does "
            f"`python -c 'import {module}'` work there?"
        ) from error
    if not callable(found):
        raise TaskError(f"module {module} has no function {function}; name one that returns a Task")
    return found  # type: ignore[no-any-return]


def _check(task: object, where: str, plan: Plan) -> None:
    if not isinstance(task, Task):
        raise TaskError(f"task {where} returned {type(task).__name__}; return a sampa.workers.task.Task")
    if not isinstance(task.model, nn.Module):
        raise TaskError(f"task {where}: model is {type(task.model).__name__}; give a torch.nn.Module")
    for name, data in {"train": task.train, **task.evaluations()}.items():
        _check_data(f"task {where}: {name}", data)
    rows = len(task.train[0] if isinstance(task.train, tuple) else task.train)
    if rows < plan.batch_size:
        raise TaskError(
            f"task {where} has {rows} training rows, fewer than one batch of {plan.batch_size}; lower batch_size"
        )


def _check_data(what: str, data: object) -> None:
    if isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data):
        if len({len(part) for part in data}) != 1:
            raise TaskError(f"{what} has tensors of lengths {[len(part) for part in data]}; make them equal")
    elif not (hasattr(data, "__len__") and hasattr(data, "__getitem__")) or isinstance(data, tuple):
        raise TaskError(f"{what} is {type(data).__name__}; give a tuple of tensors or a map-style dataset")


def _in_a_word(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
