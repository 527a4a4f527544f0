"""Workers come and go on a real Ray cluster of several nodes, and the numbers don't change."""

import os
import threading
import time

import pytest
import ray
from ray.cluster_utils import Cluster
from sampa.workers.faults import PHASES, Fault
from sampa.workers.train_runs import settle
from sampa.workers.trainer import Orders, train

from .aftermath import alive, assert_calm
from .serial import plan_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
DEADLINE_S = 150.0


@pytest.fixture
def cluster():
    """A cluster whose head has no processors; each node that is added has room for one worker."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    settle()
    ray.shutdown()
    made.shutdown()


def plan(steps, *, pace_s, pairs=2):
    return plan_of(
        task={"entrypoint": "tests.workers.tasks:paced", "params": {"pace_s": pace_s}},
        method={"name": "sampa", "rho": 0.1, "lambda": 0.2, "perturbation": "pair"},
        batch_size=32,
        pairs=pairs,
        steps=steps,
        checkpoint={"every_steps": 25},
        evaluate={"every_epochs": None},
    )


class Play:
    """A training in a thread, seen through its reports."""

    def __init__(self, plan, directory, faults=()):
        self.elastic, self.lines, self.fired, self.orders = [], [], [], Orders()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._train, args=(plan, directory, faults))
        self._thread.start()

    def _train(self, plan, directory, faults):
        try:
            self.outcome = train(plan, directory, on_reports=self._take, orders=lambda: self.orders, faults=faults)
        except BaseException as error:
            self.outcome = error

    def _take(self, reports):
        with self._changed:
            for report in reports:
                if report.kind == "elastic":
                    self.elastic.append(report.data)
                elif report.kind == "log":
                    self.lines.append(report.data["line"])
                elif report.kind == "fault":
                    self.fired.append(report.data["number"])
            self._changed.notify_all()

    def until(self, fits, deadline_s=DEADLINE_S):
        with self._changed:
            assert self._changed.wait_for(fits, deadline_s), (
                getattr(self, "outcome", None),
                self.elastic,
                self.lines[-20:],
            )

    def until_workers(self, number):
        self.until(lambda: self.elastic and self.elastic[-1]["workers_after"] == number)

    def ended(self):
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        assert not isinstance(self.outcome, BaseException), self.outcome
        assert self.outcome.succeeded, self.outcome.reason
        return self.outcome.result


def drain(node_id):
    """Give notice that a node is about to go, as an autoscaler or a cloud does."""
    gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    preemption, in_ms = 2, int((time.time() + 60) * 1000)
    accepted, why = gcs.drain_node(node_id, preemption, "the cloud wants it back", in_ms)
    assert accepted, why


@pytest.mark.long
def test_nodes_are_lost_and_added_while_two_pairs_train(cluster, tmp_path):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(4)]
    asked = plan(900, pace_s=0.03)
    play = Play(asked, tmp_path)
    play.until_workers(4)
    for node in nodes[:2]:
        cluster.remove_node(node, allow_graceful=False)
    play.until_workers(2)
    cluster.remove_node(nodes[2], allow_graceful=False)
    play.until_workers(1)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    play.until_workers(3)
    cluster.add_node(num_cpus=1)
    play.until_workers(4)
    assert play.ended()["steps"] == 900
    losses = [event for event in play.elastic if event["cause"] == "loss"]
    assert losses
    assert all(event["steps_lost"] <= 1 and event["samples_replayed"] <= 32 for event in play.elastic)
    assert_calm(plan(900, pace_s=0.0), tmp_path)


@pytest.mark.long
def test_a_node_that_is_drained_is_left_before_it_goes(cluster, tmp_path):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    play = Play(plan(600, pace_s=0.02, pairs=1), tmp_path)
    play.until_workers(2)
    cluster.add_node(num_cpus=1)
    drain(nodes[0].node_id)
    play.until(lambda: play.elastic[-1]["cause"] in {"preemption", "join"} and play.elastic[-1]["workers_after"] == 2)
    cluster.remove_node(nodes[0], allow_graceful=False)
    play.ended()
    assert sum(event["steps_lost"] for event in play.elastic) == 0
    assert any(event["cause"] == "preemption" for event in play.elastic)
    assert_calm(plan(600, pace_s=0.0, pairs=1), tmp_path)


@pytest.mark.long
@pytest.mark.timeout(300 + 25 * int(os.environ.get("SAMPA_TEST_LOSSES", "3")))
def test_losses_leave_nothing_behind(ray_cluster, tmp_path):
    losses = int(os.environ.get("SAMPA_TEST_LOSSES", "3"))
    steps = 20 * (losses + 2)
    faults = [Fault(number=n, kind="kill", step=20 * (n + 1), rank=n % 2, phase=PHASES[n % 3]) for n in range(losses)]
    shared, before = set(os.listdir("/dev/shm")), alive()
    play = Play(plan(steps, pace_s=0.01, pairs=1), tmp_path, faults=faults)
    play.until(lambda: len(play.fired) == losses and play.elastic[-1]["cause"] == "loss", DEADLINE_S + 20 * losses)
    play.ended()
    assert [event["cause"] for event in play.elastic].count("loss") == losses
    settle()  # a worker that was still starting finds that all is over
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ray-train")]
    gone = time.monotonic() + DEADLINE_S
    while alive() != before and time.monotonic() < gone:  # Ray takes note of it a little later
        time.sleep(0.2)
    assert alive() == before
    assert set(os.listdir("/dev/shm")) <= shared
    assert not [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith(".")]
    assert_calm(plan(steps, pace_s=0.0, pairs=1), tmp_path)
