"""Workers as plain Ray actors, kept from one run to the next: loop and exchange without Ray Train's start-up."""

import contextlib
import time

import ray
from sampa.workers.coordinator import Coordinator
from sampa.workers.plan import Plan


def seat_of(plan, coordinator, number, run, deadline_s=20):
    """Give a worker of this process its place in a run, as Ray Train's workers get theirs."""
    import torch
    from sampa.workers.membership import Seat
    from sampa.workers.pairs import Hosts
    from sampa.workers.part import RemoteMeeting

    return Seat(
        RemoteMeeting(coordinator),
        run=run,
        name=f"worker {number}",
        node="here",
        host="127.0.0.1",
        device=torch.device("cpu"),
        deadline_s=deadline_s,
        hosts=lambda workers: Hosts(plan.width, paired=plan.method.paired, workers=workers),
    )


@ray.remote(num_cpus=0)
class PlainWorker:
    """Hosts one worker of a run at a time."""

    def run(self, plan, coordinator, number, run, directory):
        import torch
        from sampa.workers.loop import Worker
        from sampa.workers.reports import Reporter
        from sampa.workers.storage import Storage

        plan = Plan.model_validate(plan)
        torch.set_num_threads(1)
        seat = seat_of(plan, coordinator, number, run)
        reporter = Reporter(coordinator.report.remote, ray.get)
        worker = Worker(plan, seat, Storage(directory), reporter, torch.device("cpu"))
        return worker.run()


class Crew:
    """Actors to train with; more are started as a test needs them."""

    def __init__(self):
        self._actors = []
        self._runs = 0

    def start(self, plan, directory, workers):
        """Start a run and return its coordinator and the results to come."""
        while len(self._actors) < workers:
            self._actors.append(PlainWorker.remote())
        directory.mkdir(parents=True, exist_ok=True)
        self._runs += 1
        options = {"num_cpus": 0, "max_concurrency": 100}
        coordinator = ray.remote(Coordinator).options(**options).remote(workers, batch_size=plan.batch_size)
        spec = plan.model_dump(mode="json", by_alias=True)
        name = f"run-{self._runs}"
        runs = [
            actor.run.remote(spec, coordinator, seat, name, str(directory))
            for seat, actor in enumerate(self._actors[:workers])
        ]
        return coordinator, runs

    def train(self, plan, directory, workers):
        """Train to the end; return one worker's result."""
        coordinator, runs = self.start(plan, directory, workers)
        results = ray.get(runs, timeout=120)
        ray.kill(coordinator)
        return results[0]

    def kill(self):
        """Kill all actors at once, as a lost cluster would."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def until(coordinator, kind, timeout=120):
    """Wait for the first report of a kind and return it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        news = ray.get(coordinator.news.remote(1.0), timeout=timeout)
        for report in news.reports:
            if report.kind == kind:
                return report
    raise AssertionError(f"no {kind} within {timeout} s")


@contextlib.contextmanager
def crew():
    """Give a crew, and kill it afterwards."""
    made = Crew()
    try:
        yield made
    finally:
        made.kill()
