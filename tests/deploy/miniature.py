"""KubeRay in miniature: a Kubernetes API, an operator and a kubelet in one process, and real Ray in the containers.

Ray's own autoscaler reads and patches the RayCluster, the operator here makes and deletes pods as KubeRay's does, and
the kubelet here runs each as ``ray start --block`` in a container of its own. Pods are processes on loopback addresses:
127.0.0.2 is the head's, since Ray takes 127.0.0.1 for the address of the machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..fake_kube import FakeKube, Resource, fake_kube

NAME, NAMESPACE, GROUP, HEAD_GROUP = "sampa", "sampa", "spot", "headgroup"
HEAD_ADDRESS = "127.0.0.2"
CONTAINER = Path(__file__).with_name("container.py")
UP = "Ray runtime started."
UP_S = 90.0  # in which a container's Ray must be up; then it is killed, and the operator makes another pod
PASS_S = 0.25  # between two looks of operator and kubelet at the documents
GRACE_S = 30.0  # Kubernetes' default for a pod that says nothing else
AUTOSCALER = (
    "import sys; from ray.autoscaler._private.kuberay.run_autoscaler import run_kuberay_autoscaler as run; "
    "run(*sys.argv[1:])"
)
OURS = ("RAY_", "SAMPA_", "KUBERNETES_")  # how variables begin that a pod has from its template alone
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RES_OPTIONS": "timeout:1 attempts:1"}


def raycluster(*, workers: int = 2, idle_s: float = 20, drain_s: int = 20) -> Resource:
    """Return a RayCluster of a head without processors and one group, of nodes with room for one worker each."""

    def template(cpus: str, variables: Mapping[str, str], grace_s: int) -> Resource:
        env = [{"name": name, "value": value} for name, value in variables.items()]
        limits = {"cpu": cpus, "memory": "1Gi"}
        container = {"name": "ray", "image": "sampa", "env": env, "resources": {"limits": limits}}
        return {"spec": {"terminationGracePeriodSeconds": grace_s, "containers": [container]}}

    object_store = {"object-store-memory": "100000000"}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": idle_s},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0", **object_store}, "template": template("1", {}, 30)},
            "workerGroupSpecs": [
                {
                    "groupName": GROUP,
                    "minReplicas": 0,
                    "maxReplicas": workers,
                    "replicas": 0,  # here and below, what the real API adds
                    "numOfHosts": 1,
                    "scaleStrategy": {"workersToDelete": []},
                    "rayStartParams": object_store,
                    "template": template("1", {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s)}, drain_s + 20),
                }
            ],
        },
    }


class Timeline:
    """What happened when, in seconds since it began; printed as it comes."""

    def __init__(self) -> None:
        self._began = time.time()
        self.entries: list[tuple[float, str, str]] = []

    def note(self, who: str, what: str, at: float | None = None) -> None:
        """Add an entry, of now unless a time in seconds since the epoch is given."""
        seconds = (at or time.time()) - self._began
        self.entries.append((seconds, who, what))
        print(f"{seconds:7.1f}  {who:<10}  {what}", flush=True)

    def table(self) -> str:
        """Return all entries, in order of time, as a table in Markdown."""
        rows = [f"| {seconds:.1f} | {who} | {what} |" for seconds, who, what in sorted(self.entries)]
        return "\n".join(["| seconds | who | what |", "| ---: | --- | --- |", *rows])


@dataclass
class Container:
    """A container's process tree, and what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kill -9 all that runs in it."""
        self.process.send_signal(signal.SIGINT)

    def says(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")


@dataclass
class Pod:
    """A pod that the kubelet runs; the first container is Ray's."""

    name: str
    group: str
    containers: list[Container] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    up: bool = False
    kill_at: float | None = None  # on the monotonic clock, once it was told to end

    @property
    def head(self) -> bool:
        return self.group == HEAD_GROUP

    @property
    def ready(self) -> bool:
        """Whether its Ray is up, and it was not told to end."""
        return self.up and self.kill_at is None and not self.containers[0].ended


class Miniature:
    """The cluster; a context manager that leaves no process behind.

    Args:
        folder: Where logs and the certificate go.
        timeline: Where what happens is noted.
        environment: Variables of all containers, beside those of this process that are not Ray's or ours.
        cluster: The RayCluster to run.
    """

    def __init__(self, folder: Path, timeline: Timeline, environment: Mapping[str, str], cluster: Resource) -> None:
        self.folder, self.timeline = folder, timeline
        self._cluster = cluster
        self._environment = _foreign(os.environ) | QUIET | dict(environment)
        self._gcs, self._dashboard, self._client, self._metrics = free_ports(HEAD_ADDRESS, 4)
        self._pods: dict[str, Pod] = {}
        self._addresses = (f"127.0.0.{number}" for number in range(3, 255))
        self._noted: Any = None
        self._closing = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="miniature")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.kube: FakeKube = stack.enter_context(fake_kube(self.folder))
            self._disk = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="mini-", ignore_cleanup_errors=True))
            )
            self.kube.create("rayclusters", self._cluster)
            stack.callback(self._close)
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # What a test does with it

    @property
    def dashboard_url(self) -> str:
        """Where the Jobs API is, whichever head serves it."""
        return f"http://{HEAD_ADDRESS}:{self._dashboard}"

    @property
    def metrics_url(self) -> str:
        """Where the head's Ray says its metrics."""
        return f"http://{HEAD_ADDRESS}:{self._metrics}/metrics"

    @property
    def calls(self) -> set[tuple[str, str]]:
        """What the autoscaler asked of Kubernetes: pairs of verb and resource."""
        return self.kube.used

    def head(self) -> str | None:
        """Return the pod of the head that is up, or None."""
        return next((pod.name for pod in self._pods.copy().values() if pod.head and pod.ready), None)

    def workers(self) -> list[str]:
        """Return the worker pods whose Ray is up and that are not told to end, in the order in which they came."""
        return [pod.name for pod in self._pods.copy().values() if pod.ready and not pod.head]

    def pods(self) -> list[str]:
        """Return the worker pods that are there, in whatever state."""
        return [pod["metadata"]["name"] for pod in self._labelled("node-type", "worker")]

    def replicas(self) -> int:
        """Return how many workers the autoscaler wants."""
        groups = self.kube.get("rayclusters", NAME)["spec"]["workerGroupSpecs"]
        return sum(group["replicas"] for group in groups)

    def reclaim(self, name: str) -> None:
        """Let the cloud take a pod's machine back: SIGTERM, and SIGKILL after its grace."""
        self.timeline.note("cloud", f"reclaims the machine of {name}: SIGTERM")
        self._delete(name)

    def kill(self, name: str) -> None:
        """Let a pod's machine fail: kill -9 of all that runs there."""
        self.timeline.note("cloud", f"the machine of {name} fails: SIGKILL")
        self._pods[name].containers[0].kill()

    def check(self) -> None:
        """Raise what has gone wrong in the stand-ins, if anything has."""
        if self._trouble is not None:
            raise RuntimeError("the stand-in for operator and kubelet failed") from self._trouble

    def story(self, lines: int = 15) -> str:
        """Return the last lines of every container's log, for a test that fails."""
        logs = sorted(self.folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        tails = ["\n".join([f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-lines:]]) for log in logs]
        return "\n".join(tails)

    # The operator

    def _run(self) -> None:
        try:
            while not self._closing.wait(PASS_S):
                self._operate()
                for pod in [*self._pods.values()]:
                    self._look_after(pod)
                self._start_next()
        except BaseException as error:
            self._trouble = error

    def _operate(self) -> None:
        """Make one pass over the RayCluster, as KubeRay's operator does with autoscaling on."""
        spec = self.kube.get("rayclusters", NAME)["spec"]
        heads = self._labelled("node-type", "head")
        if not heads:
            self._create("head", HEAD_GROUP, spec["headGroupSpec"]["template"])
        for head in heads:
            self._delete_if_ended(head)
        for group in spec["workerGroupSpecs"]:
            pods = self._labelled("group", group["groupName"])
            if [pod for pod in pods if self._delete_if_ended(pod)]:
                continue  # others are made in the next pass
            names = {pod["metadata"]["name"] for pod in pods}
            unwanted = names & set(group["scaleStrategy"]["workersToDelete"] or ())
            self._note_wish(group["replicas"], sorted(unwanted))
            for name in unwanted:
                self._delete(name)
            for _ in range(group["replicas"] - len(names - unwanted)):  # one that is still ending has its place
                self._create("worker", group["groupName"], group["template"])

    def _labelled(self, label: str, value: str) -> list[Resource]:
        return self.kube.list("pods", {f"ray.io/{label}": value})

    def _note_wish(self, replicas: int, unwanted: list[str]) -> None:
        if self._noted != (replicas, unwanted):
            self._noted = replicas, unwanted
            self.timeline.note("autoscaler", f"wants {replicas} workers" + "".join(f", not {one}" for one in unwanted))

    def _create(self, node_type: str, group: str, template: Resource) -> None:
        kind = "head" if node_type == "head" else f"{group}-worker"
        name = f"{NAME}-{kind}-{uuid.uuid4().hex[:5]}"
        labels = {"cluster": NAME, "node-type": node_type, "group": group, "is-ray-node": "yes"}
        metadata = {"name": name, "labels": {f"ray.io/{key}": value for key, value in labels.items()}}
        self.kube.create("pods", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})
        self.timeline.note("operator", f"creates {name}")

    def _delete_if_ended(self, pod: Resource) -> bool:
        ended = pod["status"]["phase"] in {"Failed", "Succeeded"}
        if ended:
            self._delete(pod["metadata"]["name"])
        return ended

    def _delete(self, name: str) -> None:
        spec = self.kube.get("pods", name)["spec"]
        self.kube.delete("pods", name, spec.get("terminationGracePeriodSeconds", GRACE_S))

    # The kubelet

    def _start_next(self) -> None:
        """Start a pod's container once the last one is up: two at once may both be late on a small machine."""
        if any(not pod.up for pod in self._pods.values()):
            return
        pods = self.kube.list("pods")
        waiting = [pod for pod in pods if pod["metadata"]["name"] not in self._pods]
        heads_first = sorted(waiting, key=lambda pod: pod["metadata"]["labels"]["ray.io/node-type"] != "head")
        for document in heads_first[:1]:
            if self.head() is not None or document["metadata"]["labels"]["ray.io/node-type"] == "head":
                self._start(document)

    def _start(self, document: Resource) -> None:
        name, labels = document["metadata"]["name"], document["metadata"]["labels"]
        pod = Pod(name, labels["ray.io/group"])
        address = HEAD_ADDRESS if pod.head else next(self._addresses)
        pod.containers.append(self._container(name, self._ray_start(pod, address), self._variables(document)))
        self._pods[name] = pod
        self._say(name, {"phase": "Running", "podIP": address, "containerStatuses": [_status({"running": {}})]})

    def _ray_start(self, pod: Pod, address: str) -> list[str]:
        """Return the command of a pod's Ray: what its group says, what the operator adds, and where it runs here."""
        spec = self._cluster["spec"]
        group = next((one for one in spec["workerGroupSpecs"] if one["groupName"] == pod.group), spec["headGroupSpec"])
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        options = {"num-cpus": limits["cpu"], **group["rayStartParams"]}
        if pod.head:
            where = {"port": self._gcs, "dashboard-host": HEAD_ADDRESS, "dashboard-port": self._dashboard}
            options |= {**where, "ray-client-server-port": self._client, "include-dashboard": "true"}
            options |= {"metrics-export-port": self._metrics}
        else:
            options |= {"address": f"{HEAD_ADDRESS}:{self._gcs}"}
        (agent,) = free_ports(address, 1)
        disk = self._disk / uuid.uuid4().hex[:4]  # short: a socket's path may have 107 characters
        options |= {"node-ip-address": address, "dashboard-agent-listen-port": agent, "temp-dir": disk}
        flags = ["--head", "--no-monitor"] if pod.head else []
        return ["ray", "start", *flags, "--block", *(f"--{name}={value}" for name, value in options.items())]

    def _variables(self, document: Resource) -> dict[str, str]:
        """Return the environment of a pod's Ray: that of its template, and what the operator adds."""
        given = {one["name"]: one["value"] for one in document["spec"]["containers"][0].get("env", ())}
        name, group = document["metadata"]["name"], document["metadata"]["labels"]["ray.io/group"]
        added = {"RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": group, "RAY_enable_autoscaler_v2": "1"}
        return {**given, **added}

    def _container(self, name: str, command: list[str], variables: Mapping[str, str]) -> Container:
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(CONTAINER), *command],
                env=self._environment | dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        return Container(process, log)

    def _look_after(self, pod: Pod) -> None:
        """Bring what is known of a pod up to date, and end it where it was deleted."""
        ray = pod.containers[0]
        if not pod.up and not ray.ended:
            self._wait_for(pod, ray)
        document = self.kube.get("pods", pod.name)
        if ray.ended and document["status"]["phase"] == "Running":
            pod.up = True  # as far as it ever will be: others may start
            code = ray.process.returncode
            self.timeline.note("kubelet", f"Ray of {pod.name} has ended with code {code}")
            ended = {"phase": "Failed", "containerStatuses": [_status({"terminated": {"exitCode": code}})]}
            self._say(pod.name, ended if code else {**ended, "phase": "Succeeded"})
        if "deletionTimestamp" not in document["metadata"]:
            return
        if pod.kill_at is None:
            pod.kill_at = time.monotonic() + document["metadata"]["deletionGracePeriodSeconds"]
            for container in pod.containers:
                container.process.send_signal(signal.SIGTERM)
        if all(container.ended for container in pod.containers):
            self.kube.delete("pods", pod.name)
            del self._pods[pod.name]
            self.timeline.note("kubelet", f"{pod.name} is gone")
        elif time.monotonic() > pod.kill_at:
            for container in pod.containers:
                container.kill()

    def _wait_for(self, pod: Pod, ray: Container) -> None:
        if ray.says(UP):
            pod.up = True
            self.timeline.note("kubelet", f"Ray of {pod.name} is up")
            if pod.head:
                command = [sys.executable, "-c", AUTOSCALER, NAME, NAMESPACE, f"{HEAD_ADDRESS}:{self._gcs}"]
                variables = {**self.kube.environment(), "RAY_HEAD_POD_NAME": pod.name}
                pod.containers.append(self._container(f"{pod.name}-autoscaler", command, variables))
        elif time.monotonic() - pod.began > UP_S:
            self.timeline.note("kubelet", f"Ray of {pod.name} was not up within {UP_S:g} s")
            ray.kill()

    def _say(self, name: str, status: Resource) -> None:
        self.kube.patch("pods", name, {"status": status})

    def _close(self) -> None:
        """End everything at once."""
        self._closing.set()
        self._thread.join(30)
        containers = [container for pod in self._pods.values() for container in pod.containers]
        for container in containers:
            container.kill()
        for container in containers:
            container.process.wait(30)


def free_ports(address: str, count: int) -> list[int]:
    """Return ports that nobody listens on at this address."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((address, 0))
        return [each.getsockname()[1] for each in sockets]


def _foreign(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are neither Ray's nor ours nor of a proxy, with this Python's programs first."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OURS)}
    kept = {name: value for name, value in kept.items() if "proxy" not in name.lower()}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"}


def _status(state: Resource) -> Resource:
    return {
        "name": "ray",
        "image": "sampa",
        "imageID": "",
        "restartCount": 0,
        "ready": "running" in state,
        "state": state,
    }
