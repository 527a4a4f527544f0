"""KubeRay in miniature: a Kubernetes API, an operator and a kubelet in one process, and real Ray in the containers.

Ray's own autoscaler reads and patches the RayCluster of deploy/base, the operator here makes and deletes pods as
KubeRay's does, and the kubelet here runs each as ``ray start --block`` in a container of its own. Pods are processes on
loopback addresses: 127.0.0.2 is the head's, since Ray takes 127.0.0.1 for the address of the machine.
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

from ..documents import patched
from ..fake_kube import FakeKube, Refused, Resource, fake_kube
from .manifests import Cluster, manifests, the, variables
from .ray_options import believed

NAME, NAMESPACE, HEAD_GROUP, ON_DEMAND, SPOT = "sampa", "sampa", "headgroup", "ondemand", "spot"
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


GROUPS = "/spec/workerGroupSpecs"
ADDED = [  # what a Kubernetes adds, by the defaults of KubeRay's schema
    {"op": "add", "path": f"{GROUPS}/{index}/{name}", "value": value}
    for index in (0, 1)
    for name, value in {"replicas": 0, "numOfHosts": 1, "scaleStrategy": {"workersToDelete": []}}.items()
]
SMALL = [  # what one machine, and a test's time, can't do
    {"op": "replace", "path": "/spec/autoscalerOptions/idleTimeoutSeconds", "value": 20},
    {"op": "replace", "path": f"{GROUPS}/0/maxReplicas", "value": 1},
    {"op": "replace", "path": f"{GROUPS}/1/maxReplicas", "value": 1},
    *(
        {"op": "add", "path": f"{group}/rayStartParams/object-store-memory", "value": "100000000"}
        for group in ("/spec/headGroupSpec", f"{GROUPS}/0", f"{GROUPS}/1")
    ),
]

Secrets = Mapping[tuple[str, str], str]  # what is in which Secret, under which key


def raycluster() -> Resource:
    """Return the RayCluster of deploy/base, as a Kubernetes keeps it."""
    return patched(the(manifests("base"), "RayCluster"), ADDED)  # type: ignore[no-any-return]


def small(cluster: Resource) -> Resource:
    """Return a RayCluster of the same groups, of one node each at most, that this machine has room for."""
    return patched(cluster, SMALL)  # type: ignore[no-any-return]


def resolved(given: Mapping[str, Any], secrets: Secrets) -> dict[str, str]:
    """Return the variables of a container as its process has them: what is in Secrets comes from there, if it may be
    missing only where it is there."""
    plain = {name: value for name, value in given.items() if isinstance(value, str)}
    references = {name: value["secretKeyRef"] for name, value in given.items() if name not in plain}
    keys = {name: (one["name"], one["key"]) for name, one in references.items()}
    return plain | {
        name: secrets[key] for name, key in keys.items() if key in secrets or not references[name].get("optional")
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
        secrets: What is in the Secrets that it refers to.

    Attributes:
        room_for_a_head: Whether a machine is free for the head's pod; where there is none, it waits.
    """

    def __init__(
        self, folder: Path, timeline: Timeline, environment: Mapping[str, str], cluster: Resource, secrets: Secrets
    ) -> None:
        self.folder, self.timeline, self.room_for_a_head = folder, timeline, True
        self._cluster, self._secrets = cluster, secrets
        self._environment = _foreign(os.environ) | QUIET | dict(environment)
        self._gcs, self._dashboard, self._client, self._metrics = free_ports(HEAD_ADDRESS, 4)
        self._pods: dict[str, Pod] = {}
        self._addresses = (f"127.0.0.{number}" for number in range(3, 255))
        self._noted: dict[str, Any] = {}
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

    def workers(self, *groups: str) -> list[str]:
        """Return the worker pods whose Ray is up and that are not told to end, of some groups or of all."""
        ready = [pod for pod in self._pods.copy().values() if pod.ready and not pod.head]
        return [pod.name for pod in ready if not groups or pod.group in groups]

    def pods(self, node_type: str = "worker") -> list[str]:
        """Return the worker pods, or the heads, that are there in whatever state."""
        return [pod["metadata"]["name"] for pod in self._labelled("node-type", node_type)]

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

    def delete(self) -> None:
        """Delete the RayCluster; its pods go with it, each with its grace."""
        self.timeline.note("user", "deletes the RayCluster")
        self.kube.delete("rayclusters", NAME)

    def apply(self) -> None:
        """Make the RayCluster again."""
        self.timeline.note("user", "applies the RayCluster")
        self.kube.create("rayclusters", self._cluster)

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
        try:
            spec = self.kube.get("rayclusters", NAME)["spec"]
        except Refused:  # it was deleted, and its pods are to go with it
            self._noted = {}
            for pod in self.kube.list("pods"):
                self._delete(pod["metadata"]["name"])
            return
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
            self._note_wish(group["groupName"], group["replicas"], sorted(unwanted))
            for name in unwanted:
                self._delete(name)
            for _ in range(group["replicas"] - len(names - unwanted)):  # one that is still ending has its place
                self._create("worker", group["groupName"], group["template"])

    def _labelled(self, label: str, value: str) -> list[Resource]:
        return self.kube.list("pods", {f"ray.io/{label}": value})

    def _note_wish(self, group: str, replicas: int, unwanted: list[str]) -> None:
        if self._noted.get(group, (0, [])) != (replicas, unwanted):
            self._noted[group] = replicas, unwanted
            but = "".join(f", not {one}" for one in unwanted)
            self.timeline.note("autoscaler", f"wants {replicas} workers of the group {group}{but}")

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
        waiting = [pod for pod in self.kube.list("pods") if pod["metadata"]["name"] not in self._pods]
        for document in waiting:
            if "deletionTimestamp" in document["metadata"]:  # nothing of it runs
                self.kube.delete("pods", document["metadata"]["name"])
                return
        heads = [pod for pod in waiting if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
        if heads and self.room_for_a_head:
            self._start(heads[0])
        elif waiting and self.head() is not None:
            self._start(waiting[0])

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
        node = believed(Cluster(f"RayCluster {NAME}", spec))["available_node_types"][pod.group]
        options = {"num-cpus": node["resources"]["CPU"], "memory": node["resources"]["memory"]}
        if node["labels"]:
            options["labels"] = ",".join(f"{name}={value}" for name, value in node["labels"].items())
        options |= group["rayStartParams"]
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
        container = document["spec"]["containers"][0]
        assert "envFrom" not in container, "only variables by name are played"
        name, group = document["metadata"]["name"], document["metadata"]["labels"]["ray.io/group"]
        added = {"RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": group, "RAY_enable_autoscaler_v2": "1"}
        return {**resolved(variables(container), self._secrets), **added, **self._token()}

    def _token(self) -> dict[str, str]:
        """Return what the operator adds for the cluster's token."""
        auth = self._cluster["spec"]["authOptions"]
        return {"RAY_AUTH_MODE": auth["mode"], "RAY_AUTH_TOKEN": self._secrets[auth["secretName"], "auth_token"]}

    def _container(self, name: str, command: list[str], its_own: Mapping[str, str]) -> Container:
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(CONTAINER), *command],
                env=self._environment | dict(its_own),
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
                there = {**self.kube.environment(), **self._token(), "RAY_HEAD_POD_NAME": pod.name}
                pod.containers.append(self._container(f"{pod.name}-autoscaler", command, there))
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
