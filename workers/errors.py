"""What can end a run: each error has its values, a sentence, and what to do, and is fit to cross processes."""

from __future__ import annotations

from typing import Any


class RunError(Exception):
    """Base of the errors of a run."""

    def __init__(self, message: str, **values: Any) -> None:
        super().__init__(message)
        self.message = message
        self.values = values
        vars(self).update(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.values)


def _rebuild(kind: type[RunError], message: str, values: dict[str, Any]) -> RunError:
    error = kind.__new__(kind)
    RunError.__init__(error, message, **values)
    return error


class TaskError(RunError):
    """The task can't be trained as it is: a mistake of its author's, which a retry won't mend."""


class NotFinite(RunError):
    """A loss or an update became infinite or not a number; nothing of its step was applied."""

    def __init__(self, what: str, value: float, step: int, method: str) -> None:
        super().__init__(
            f"the {what} became {value} at step {step}, with {method}; nothing of step {step} was applied and the "
            f"checkpoints before it are kept. Lower rho or the learning rate, or add warm-up.",
            what=what,
            value=value,
            step=step,
            method=method,
        )


class CheckpointError(RunError):
    """A checkpoint can't be used for this run."""


class NotShared(RunError):
    """A worker doesn't see the storage that the API sees."""


class Interrupted(RunError):
    """What the run stands on failed under it: no fault of the task's, and it can be resumed."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"the run was interrupted: {cause}; start it again to go on from its newest checkpoint", cause=cause
        )


class Dismissed(RunError):
    """This worker is not needed any more; with ``save``, it writes a checkpoint before it goes."""

    save: bool

    def __init__(self, *, save: bool = False) -> None:
        super().__init__("this worker is not needed any more; there is nothing to join", save=save)


class ExchangeError(RunError):
    """An exchange between workers failed; nothing of its step was applied, and the run can go on with others."""

    operation: str
    step: int
    worker: str


class WorkerLate(ExchangeError):
    """A worker did not answer within the deadline."""

    def __init__(self, operation: str, step: int, worker: str, waited_s: float) -> None:
        super().__init__(
            f"{worker} did not answer within {waited_s:.3g} s in the {operation} of step {step}; no step that was in "
            f"flight is applied. If steps are slow rather than stuck, raise workers.deadline_s in the job.",
            operation=operation,
            step=step,
            worker=worker,
            waited_s=waited_s,
        )


class WorkerLost(ExchangeError):
    """The connection to a worker broke."""

    def __init__(self, operation: str, step: int, worker: str, reason: str) -> None:
        super().__init__(
            f"{worker} was lost in the {operation} of step {step} ({reason}); no step that was in flight is applied.",
            operation=operation,
            step=step,
            worker=worker,
            reason=reason,
        )
