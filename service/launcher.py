"""Ray's Jobs API, over HTTP: the process that calls it needs no Ray of its own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx

from .room import Node
from .shared import is_here, is_on_own_disk

Content = Callable[[], Iterable[bytes]]
CARRY_S = 120.0  # in which Ray must take a package, which it keeps in memory
ROOM_S = 5.0  # in which Ray must say what its nodes have
MOST_NODES = 10_000  # of which Ray tells at once
NOT_IN_PLACE = "the bundle or the packages of its field code could not be put in place"
LOOK_S = 10.0  # between two looks at which nodes live
HOPELESS = "HOPELESS"  # what we call a submission that has failed as each further attempt would
OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED", HOPELESS})  # what a submission is called whose process has ended


class Launcher(Protocol):
    """What the reconciler needs of Ray; ``RayJobs`` says what each does."""

    def submit(
        self, submission_id: str, entrypoint: str, env: Mapping[str, str], code: str = "", pip: Sequence[str] = ()
    ) -> None: ...
    def carry(self, sha256: str, content: Content) -> str: ...
    def obstacle(self, submission_id: str) -> str: ...
    def look(self, submission_ids: Sequence[str]) -> None: ...
    def status(self, submission_id: str) -> str | None: ...
    def delay(self, submission_id: str) -> str: ...
    def stop(self, submission_id: str) -> None: ...
    def check(self) -> None: ...
    def room(self) -> list[Node] | None: ...
    def why_not_shared(self, directory: Path) -> str: ...
    def close(self) -> None: ...


class NoRay(Exception):
    """There is no Ray that could be asked."""


class RayUnreachable(NoRay):
    def __init__(self, url: str, cause: str) -> None:
        self.url, self.cause = url, cause
        super().__init__(
            f"Ray's Jobs API at {url} doesn't answer ({cause}); jobs keep their state until it does. "
            "Check that the Ray cluster is up and that its dashboard is at this address"
        )

    def __reduce__(self) -> tuple[type[RayUnreachable], tuple[str, str]]:
        return type(self), (self.url, self.cause)


class TokenRefused(NoRay):
    def __init__(self, url: str, given: bool) -> None:
        self.url, self.given = url, given
        what = "the token that it is given" if given else "requests without its token"
        super().__init__(
            f"Ray at {url} refuses {what}; jobs keep their state until it accepts one. Put the cluster's token into "
            "RAY_AUTH_TOKEN, or its file's path into RAY_AUTH_TOKEN_PATH, and start the server again"
        )

    def __reduce__(self) -> tuple[type[TokenRefused], tuple[str, bool]]:
        return type(self), (self.url, self.given)


class LaunchRefused(Exception):
    def __init__(self, url: str, status: int, answer: str) -> None:
        self.url, self.status, self.answer = url, status, answer
        super().__init__(f"Ray at {url} refused a request with {status}: {answer}")

    def __reduce__(self) -> tuple[type[LaunchRefused], tuple[Any, ...]]:
        return type(self), (self.url, self.status, self.answer)


class RayJobs:
    """The Jobs API of one Ray cluster; may be shared between threads.

    Args:
        url: Where the cluster's dashboard is, like ``http://127.0.0.1:8265``.
        token: Of a cluster that asks for one; see ``find_token``.
        timeout_s: After which an answer counts as missing.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 15.0) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)
        self._living: Sequence[Mapping[str, Any]] | None = None  # nodes, as they were found
        self._looked_at = -math.inf  # on the monotonic clock

    def submit(
        self, submission_id: str, entrypoint: str, env: Mapping[str, str], code: str = "", pip: Sequence[str] = ()
    ) -> None:
        """Start a process on the head node, once for each id: repeating it is not an error and starts nothing.

        Args:
            submission_id: Of the process.
            entrypoint: Its command.
            env: Variables of its environment, and of all actors that it starts.
            code: What ``carry`` has returned: their working directory, and the first one on their path.
            pip: Requirements that are installed for them.

        Raises:
            RayUnreachable: If Ray doesn't answer; it may or may not have started the process.
            TokenRefused: If Ray takes no request with our token.
            LaunchRefused: If Ray answers that it won't.
        """
        body = {
            "entrypoint": entrypoint,
            "submission_id": submission_id,
            "entrypoint_num_cpus": 0,
            "runtime_env": {
                "env_vars": dict(env),
                **({"working_dir": code} if code else {}),
                **({"pip": {"packages": [*pip], "pip_check": False}} if pip else {}),
            },
        }
        response = self._request("POST", "/api/jobs/", json=body)
        if response.is_error and f"{submission_id} already exists" not in response.text:
            raise self._refused(response)

    def carry(self, sha256: str, content: Content) -> str:
        """Give a zip to the cluster, unless it has it already, and return its address there.

        Ray drops it some minutes after the last process that needs it, and with the cluster; so this comes before
        each ``submit``. Raises as that does.
        """
        name = f"_ray_pkg_{sha256}.zip"
        path = f"/api/packages/gcs/{name}"
        response = self._request("GET", path)
        if response.status_code == httpx.codes.NOT_FOUND:
            response = self._request("PUT", path, content=content(), timeout=CARRY_S)
        if response.is_error:
            raise self._refused(response)
        return f"gcs://{name}"

    def obstacle(self, submission_id: str) -> str:
        """Return why a submission has failed, where that is not for its process to tell: its code or its packages could
        not be put in place. Empty otherwise. Raises as ``submit`` does."""
        response = self._request("GET", f"/api/jobs/{submission_id}")
        found = response.json() if response.is_success else {}
        failed = found.get("error_type") == "RUNTIME_ENV_SETUP_FAILURE"
        return f"{NOT_IN_PLACE}: {first_reason(str(found.get('message', '')))}" if failed else ""

    def look(self, submission_ids: Sequence[str]) -> None:
        """Look at several at once, where that spares ``status`` the asking; Ray is asked for one at a time."""

    def status(self, submission_id: str) -> str | None:
        """Return PENDING, RUNNING or one of ``OVER``; None when Ray doesn't know the id, or the node of its process was
        lost. Raises as ``submit`` does."""
        response = self._request("GET", f"/api/jobs/{submission_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.is_error:
            raise self._refused(response)
        found = response.json()
        return None if self._is_lost(found) else str(found["status"])

    def _is_lost(self, found: Mapping[str, Any]) -> bool:
        """Say whether a submission is known to have gone down with its node.

        A Ray whose state outlives its head (GCS fault tolerance) still has the submissions of the old one. Its answer
        is what was last written of each, and nobody writes any more: Ray 2.60 takes them up again when it is next asked
        to start or stop one, and then calls them FAILED, since their supervisor died or isn't there.
        """
        unfinished = found["status"] in ("PENDING", "RUNNING")
        if not unfinished and not str(found.get("error_type") or "").startswith("JOB_SUPERVISOR_ACTOR"):
            return False
        living = self._find_living(LOOK_S if unfinished else 0.0)
        if not living:
            return False
        node_id = found.get("driver_node_id")
        if node_id:
            return all(node.get("node_id") != node_id for node in living)
        began_at = [node.get("start_time_ms") or 0 for node in living if node.get("is_head_node")]
        return bool(began_at) and (found.get("start_time") or math.inf) < min(began_at)

    def _find_living(self, not_older_s: float) -> Sequence[Mapping[str, Any]] | None:
        """Return the living nodes as they were not longer ago than this; None where that can't be told."""
        if time.monotonic() - self._looked_at >= not_older_s:
            try:
                self._living = self._nodes()
            except (RayUnreachable, ValueError, KeyError, TypeError):
                self._living = None
            self._looked_at = time.monotonic()
        return self._living

    def _nodes(self) -> list[dict[str, Any]]:
        asked = {"limit": MOST_NODES, "detail": "true"}  # the detail is when they began
        answer = self._request("GET", "/api/v0/nodes", params=asked, timeout=ROOM_S).json()
        return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def delay(self, submission_id: str) -> str:
        """Return what a submission that is PENDING waits for, as it was last looked at; empty: Ray doesn't tell."""
        return ""

    def stop(self, submission_id: str) -> None:
        """Ask Ray to end the process: SIGTERM, then SIGKILL; no error if there is none. Raises as ``submit`` does."""
        response = self._request("POST", f"/api/jobs/{submission_id}/stop")
        if response.is_error and response.status_code != httpx.codes.NOT_FOUND:
            raise self._refused(response)

    def check(self) -> None:
        """See that the Jobs API answers, and us; raises RayUnreachable or TokenRefused if not."""
        response = self._request("GET", "/api/version")
        if not response.is_success:
            raise RayUnreachable(self.url, f"it answers {response.status_code}, and not with its version")

    def room(self) -> list[Node] | None:
        """Return the nodes of the cluster; None where that can't be told, an autoscaler may add others, or those that
        take work are still to come."""
        try:
            alive = self._nodes()
            status = self._request("GET", "/api/cluster_status", timeout=ROOM_S).json()
            types: dict[str, str] = status["data"]["clusterStatus"]["autoscalerReport"]["nodeTypeMapping"]
            # Ray's monitor makes up these names where there is no autoscaler, of which the nodes would be known types
            fixed = all(types[node["node_id"]] == f"node_{node['node_id']}" for node in alive)
            nodes = [_node(one) for one in alive]
            return nodes if fixed and any(node.cpus for node in nodes) else None
        except (NoRay, ValueError, KeyError, TypeError):
            return None

    def why_not_shared(self, directory: Path) -> str:
        """Return why the cluster's nodes can't share a directory of this machine, as far as can be told; empty if they
        can, or nobody knows.

        Asked when a job is submitted: a head elsewhere is enough; workers elsewhere are known where no autoscaler may
        add others. What this lets pass, the mark of an attempt shows where its processes start.
        """
        if not is_on_own_disk(directory):
            return ""
        head = urlsplit(self.url).hostname or ""
        addresses = [head] if not is_here(head) else [node.address for node in self.room() or [] if node.address]
        far = next((address for address in addresses if not is_here(address)), "")
        return far and f"it lies on this machine's own disk, but the Ray cluster has a node at {far}"

    def close(self) -> None:
        """Let go of all connections."""
        self._http.close()

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise RayUnreachable(self.url, str(error) or type(error).__name__) from error
        if response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            raise TokenRefused(self.url, given="Authorization" in self._http.headers)
        return response

    def _refused(self, response: httpx.Response) -> LaunchRefused:
        lines = response.text.strip().splitlines()
        return LaunchRefused(self.url, response.status_code, lines[-1] if lines else response.reason_phrase)


def _node(told: Mapping[str, Any]) -> Node:
    have = told["resources_total"]
    return Node(have.get("CPU", 0.0), have.get("GPU", 0.0), str(told.get("node_ip", "")))


def first_reason(message: str) -> str:
    """Return the line of Ray's report that says most: what pip calls an error, else the last one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["Ray gives no reason"])[-1].removeprefix("ERROR:").strip()


def find_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the token for a Ray cluster that is not ours, from where Ray itself looks for it, in Ray's order."""
    if token := environment.get("RAY_AUTH_TOKEN"):
        return token
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token")
    try:
        return path.expanduser().read_text().strip() or None
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        return None
