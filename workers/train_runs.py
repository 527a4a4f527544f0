"""A worker as Ray Train runs it: the only module that knows Ray Train.

Each worker is a Ray Train run of its own with one worker: Ray Train places it, sets up its device, watches it and gives
it storage. So each can be started, lost and let go by itself, while the others go on. What it does there is its
caller's business: it takes part in one run, or in one after the other.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from .storage import Storage

os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # Ray Train's would report what is printed twice
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # an actor for each run; the trainer looks itself
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")  # how soon the room of a lost worker is free again
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")  # the room was there a moment ago

_THREAD = "ray-train"  # how the names of the threads begin in which Ray Train's runs are waited for


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Without what would start more actors for each run: Ray Data's manager, for data sets that we don't have, and the
    cleaner of placement groups, which end with the runner's job anyway. Each costs two seconds of a processor."""

    def _create_default_callbacks(self) -> list[Any]:
        without = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, without)]


class TrainRun:
    """Ray Train's run of one worker, in a thread, and the error it ended with.

    Args:
        work: What the worker does; called there with ``config`` and ``name`` in it.
        config: Fit to be sent there.
        resources: That the worker takes; with GPUs, Ray Train gives it them.
        storage: Which Ray Train may use, and all workers share.
        name: Of the worker.
        node: Where it is to run.
    """

    def __init__(
        self,
        work: Callable[[dict[str, Any]], None],
        config: dict[str, Any],
        resources: dict[str, float],
        storage: Storage,
        name: str,
        node: str,
    ) -> None:
        self.name, self.node = name, node
        self.error: BaseException | None = None
        self._trainer = _Trainer(
            work,
            train_loop_config=config | {"name": name},
            scaling_config=ray.train.ScalingConfig(
                num_workers=1,
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
                label_selector={"ray.io/node-id": node},
            ),
            run_config=ray.train.RunConfig(
                name=storage.name,
                storage_path=storage.parent,
                storage_filesystem=storage.filesystem,  # opened here, with what its address says
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        self._thread = threading.Thread(target=self._fit, name=f"{_THREAD} {name}", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has ended, and holds nothing any more."""
        return not self._thread.is_alive()

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error


def given_storage() -> Storage:
    """Return the storage that Ray Train was given, as a worker sees it; to be called there."""
    context = ray.train.get_context().get_storage()
    return Storage.of(context.storage_filesystem, context.experiment_fs_path)


def settle(wait_s: float = 40.0) -> None:
    """Wait until what a run was still starting when it ended is over; to be called before ``ray.shutdown``.

    ``train`` doesn't wait for it. A thread of Ray Train's that waits in a Ray which is shut down aborts the process
    when the next one starts (seen with Ray 2.60.0). A worker that starts finds its run over within seconds.
    """
    deadline = time.monotonic() + wait_s
    for thread in threading.enumerate():
        if thread.name.startswith(_THREAD):
            thread.join(max(0.0, deadline - time.monotonic()))
