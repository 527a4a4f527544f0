"""The process of one sweep: trains its trials on a pool of workers, and writes what happens into the store.

Ray's Jobs API starts it as it starts a job's runner. It may be killed at any time: the study is given the trials'
results again, which the store has, and the trials that had not ended go on from their checkpoints.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress

from .. import brought
from ..records import Changed, MoveRefused, Superseded, Sweep
from ..runner import Journal, Wanted, settings_here, usable, why_not_to_begin
from ..settings import ATTEMPT_VARIABLE, ServiceSettings
from ..store import Store
from ..told import Told


def main() -> int:
    """Run the sweep named on the command line, and return the exit code."""
    sweep_id, attempt, settings = sys.argv[1], int(os.environ[ATTEMPT_VARIABLE]), settings_here()
    told = Told([signal.SIGTERM])
    store = Store(settings.store_url)
    try:
        if (code := why_not_to_begin(store, settings, sweep_id, attempt)) is not None:
            return code
        brought.connect(store)
        told.listen()
        return run(store, settings, sweep_id, attempt, told)
    finally:
        store.close()


def run(store: Store, settings: ServiceSettings, sweep_id: str, attempt: int, told: Told) -> int:
    """Train the trials and write down how the sweep ended, or that it was stopped; return the exit code.

    As in a job's runner, what goes wrong inside a trial is a result, and an exception here is a fault of what the
    sweep runs on, after which it is started again.
    """
    from .trials import SweepFailed, Trials, pool_of

    journal, wanted = Journal(store, sweep_id, attempt), Wanted(store, sweep_id, attempt, told)
    pool = None
    try:
        if wanted.stop:
            return journal.stopped()
        storage = usable(lambda: settings.job_storage(sweep_id), wanted, journal)
        if storage is None:
            return journal.stopped()
        sweep = wanted.record
        assert isinstance(sweep, Sweep)
        pool = pool_of(sweep, storage)
        journal.enter_running()
        while True:
            trials = Trials(store, settings, wanted, attempt, pool)
            try:
                ended = trials.train()
                if ended is None:
                    trials.put_down(wanted.stop or "the sweep goes on with what it was asked for")
            except SweepFailed as failure:
                trials.leave()
                ended = failure.outcome
            if ended is not None:
                trials.drop()
                with suppress(Changed):  # it was extended, retried or stopped in this very moment
                    journal.end(ended, version=trials.version_to_end())
                    return 0
            elif wanted.stop:
                return journal.stopped()
    except (Superseded, MoveRefused) as refusal:
        print(refusal, file=sys.stderr)
    except Exception as error:
        traceback.print_exc()
        journal.last_words(f"the runner failed with {type(error).__name__}: {error}".splitlines()[0])
        return 1
    finally:
        if pool is not None:
            pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
