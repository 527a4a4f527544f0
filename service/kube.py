"""RayJobs of one namespace, through Kubernetes' API over HTTPS, as the service account of this pod.

Four verbs on one kind of resource are all that is needed, so it is httpx, as for Ray's Jobs API. The client of
the Kubernetes project (37.0) takes 126 MiB on disk and 1 to 3 seconds to load, for resources that we may not touch.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from .launcher import LaunchRefused, NoRay

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts the token, which it replaces about once an hour, its own certificate and the namespace."""

ANSWER_S = 15.0
KIND = "rayjobs"
API_VERSION = "ray.io/v1"
VERBS = {"POST": "create", "GET": "get", "DELETE": "delete"}

_WITHOUT_REPLY = "jobs keep their state until it does"


class KubeUnusable(NoRay):
    """Kubernetes doesn't answer, or not to us."""

    def __init__(self, url: str, cause: str) -> None:
        self.url, self.cause = url, cause
        super().__init__(f"Kubernetes at {url} {cause}")

    def __reduce__(self) -> tuple[type[KubeUnusable], tuple[str, str]]:
        return type(self), (self.url, self.cause)


class KubeRefused(LaunchRefused):
    """Kubernetes won't do one thing, and says why."""

    def __init__(self, url: str, status: int, answer: str) -> None:
        super().__init__(url, status, answer)
        self.args = (f"Kubernetes at {url} {answer}",)

    def __reduce__(self) -> tuple[type[KubeRefused], tuple[str, int, str]]:
        return type(self), (self.url, self.status, self.answer)


class NotInCluster(ValueError):
    """Why this process can't be a client of Kubernetes, in one sentence."""


class RayJobResources:
    """The RayJobs of one namespace; may be shared between threads.

    Args:
        url: Of the API server.
        namespace: Where they are; the pod's own when left out.
        account: The directory with ``token``, ``ca.crt`` and ``namespace``.
        timeout_s: After which an answer counts as missing.

    Raises:
        NotInCluster: If the account isn't there.
    """

    def __init__(
        self, url: str, namespace: str | None = None, account: Path = ACCOUNT, timeout_s: float = ANSWER_S
    ) -> None:
        self.url = url.rstrip("/")
        self._token = account / "token"
        try:
            self.namespace = namespace or (account / "namespace").read_text().strip()
            certificate = ssl.create_default_context(cafile=account / "ca.crt")
        except OSError as error:
            raise NotInCluster(
                f"there is no service account in {account} ({error.strerror}); run the API in a pod with "
                "automountServiceAccountToken, or choose the backend jobs"
            ) from error
        self._path = f"/apis/{API_VERSION}/namespaces/{self.namespace}/{KIND}"
        self._http = httpx.Client(
            base_url=self.url, auth=self._signed, verify=certificate, timeout=timeout_s, trust_env=False
        )

    def create(self, resource: Mapping[str, Any]) -> bool:
        """Create one; False if one of its name is there already.

        Raises:
            KubeUnusable: If Kubernetes doesn't answer, or not to us; it may or may not be there then.
            KubeRefused: If it answers that it won't.
        """
        response = self._request("POST", self._path, json=resource)
        if response.status_code == httpx.codes.CONFLICT and _word(response, "reason") == "AlreadyExists":
            return False
        self._check(response)
        return True

    def get(self, name: str) -> dict[str, Any] | None:
        """Return one; None when there is none of its name. Raises as ``create`` does."""
        response = self._request("GET", f"{self._path}/{name}")
        if _is_gone(response):
            return None
        found: dict[str, Any] = self._check(response).json()
        return found

    def list(self, labels: str = "", limit: int | None = None) -> list[dict[str, Any]]:
        """Return those with these labels, at most so many. Raises as ``create`` does."""
        query = {"labelSelector": labels, **({"limit": limit} if limit else {})}
        items: list[dict[str, Any]] = self._check(self._request("GET", self._path, params=query), "list").json()[
            "items"
        ]
        return items

    def delete(self, name: str) -> None:
        """Delete one, and what belongs to it after it; no error if there is none. Raises as ``create`` does."""
        response = self._request("DELETE", f"{self._path}/{name}", json={"propagationPolicy": "Background"})
        if not _is_gone(response):
            self._check(response)

    def close(self) -> None:
        """Let go of all connections."""
        self._http.close()

    def _signed(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"  # read anew: it is replaced
        return request

    def _request(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            cause = f"doesn't answer ({str(error) or type(error).__name__}); {_WITHOUT_REPLY}"
            raise KubeUnusable(self.url, cause) from error
        except OSError as error:
            cause = f"can't be asked, since {self._token} can't be read ({error.strerror}); {_WITHOUT_REPLY}"
            raise KubeUnusable(self.url, cause.replace("until it does", "until it can")) from error

    def _check(self, response: httpx.Response, verb: str = "") -> httpx.Response:
        """Return a response that is good; raise what the others mean."""
        if response.is_success:
            return response
        status = response.status_code
        verb = verb or VERBS[response.request.method]
        said = _word(response, "message") or response.text.strip().partition("\n")[0] or response.reason_phrase
        if status == httpx.codes.UNAUTHORIZED:
            advice = f"look whether {self._token} is that of a service account of this cluster"
            raise KubeUnusable(self.url, f"doesn't accept our token (401: {said}); {_WITHOUT_REPLY}: {advice}")
        if status == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            raise KubeUnusable(self.url, f"can't {verb} {KIND} now ({status}: {said}); {_WITHOUT_REPLY}")
        what = f"refused to {verb} {KIND} in the namespace {self.namespace} ({status}: {said})"
        raise KubeRefused(self.url, status, f"{what}{_advice(status, verb)}")


def in_this_cluster(
    namespace: str | None, environment: Mapping[str, str] = os.environ, account: Path | None = None
) -> RayJobResources:
    """Return the RayJobs of the cluster that this process is a pod of; raises NotInCluster."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise NotInCluster(
            "the backend rayjob needs Kubernetes, but KUBERNETES_SERVICE_HOST, which it gives to each pod, is not set; "
            "run the API in a pod, or choose the backend jobs"
        )
    at = f"[{host}]" if ":" in host else host
    return RayJobResources(f"https://{at}:{port}", namespace, account or ACCOUNT)


def _is_gone(response: httpx.Response) -> bool:
    """Say whether this one resource isn't there. Where Kubernetes knows no RayJobs at all, it names none."""
    if response.status_code != httpx.codes.NOT_FOUND:
        return False
    name = response.request.url.path.rsplit("/", 1)[-1]
    details = _body(response).get("details")
    return isinstance(details, Mapping) and details.get("name") == name


def _advice(status: int, verb: str) -> str:
    match status:
        case httpx.codes.FORBIDDEN:
            return f"; unless that names a quota, bind a Role with {verb} on {KIND} of ray.io to the API's account"
        case httpx.codes.NOT_FOUND:
            return "; install KubeRay's custom resources, or look whether SAMPA_KUBE_NAMESPACE exists"
        case httpx.codes.UNPROCESSABLE_ENTITY | httpx.codes.BAD_REQUEST:
            return "; mend the file of SAMPA_RAYJOB_TEMPLATE"
    return ""


def _word(response: httpx.Response, field: str) -> str:
    return " ".join(str(_body(response).get(field) or "").split())


def _body(response: httpx.Response) -> Mapping[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, Mapping) else {}
