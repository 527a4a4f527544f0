"""The launcher that starts each runner as a RayJob, so on a Ray cluster of its own, through Kubernetes' API.

To end a runner its RayJob is deleted. KubeRay has a finalizer on it, by which it first asks the job's own Ray to end
the runner: SIGTERM, with ``RAY_JOB_STOP_WAIT_TIME_S`` to have a checkpoint written. Then the resource goes, and after
it the cluster, whose pods have their grace period. (Suspending it would delete the cluster without a word to the
runner, and KubeRay refuses that where there are deletionRules.) So a runner may be there for some seconds after its
RayJob; the store takes nothing from it once another attempt has begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import rayjob
from .kube import KubeUnusable, RayJobResources, in_this_cluster
from .launcher import Content, LaunchRefused
from .room import Node
from .settings import ServiceSettings


class KubeRayJobs:
    """RayJobs that are made from a template; may be shared between threads.

    Args:
        resources: Where they are.
        template: A YAML file with a RayJob, read anew for each.
    """

    def __init__(self, resources: RayJobResources, template: Path) -> None:
        self._resources, self._template = resources, template
        self._seen: dict[str, Mapping[str, Any]] = {}  # statuses by name, as ``look`` has found them

    @classmethod
    def of(cls, settings: ServiceSettings) -> KubeRayJobs:
        """Return the launcher of this pod; raises ValueError with what is missing, or wrong with the template."""
        if settings.rayjob_template is None:
            raise ValueError(
                "the backend rayjob needs SAMPA_RAYJOB_TEMPLATE, the path of a YAML file with the RayJob to start "
                "runners from"
            )
        if settings.store_url.startswith("sqlite"):
            raise ValueError(
                "the backend rayjob needs a store that other nodes reach, and SQLite is a file; give SAMPA_STORE_URL a "
                "PostgreSQL"
            )
        rayjob.read_template(settings.rayjob_template)
        return cls(in_this_cluster(settings.kube_namespace), settings.rayjob_template)

    def submit(
        self, submission_id: str, entrypoint: str, env: Mapping[str, str], code: str = "", pip: Sequence[str] = ()
    ) -> None:
        """Start a runner once for each id: repeating it is not an error and starts nothing.

        Whatever is left of earlier attempts at its job is deleted: their clusters would take its place.

        Args:
            submission_id: Of the attempt.
            entrypoint: Its command.
            env: Variables of its environment, and of all actors that it starts.
            code: What ``carry`` has returned.
            pip: Requirements that are installed for them.

        Raises:
            KubeUnusable: If Kubernetes doesn't answer, or not to us; it may or may not have taken the RayJob.
            LaunchRefused: If it answers that it won't, or there is no template that could be used.
        """
        try:
            template = rayjob.read_template(self._template)
        except rayjob.TemplateRefused as error:
            raise TemplateUnusable(error) from error
        made = rayjob.resource_of(template, submission_id, entrypoint, env, code, pip)
        job_id, attempt = rayjob.place_of(submission_id)
        if attempt > 1:
            self._delete_before(job_id, attempt)
        self._seen.pop(rayjob.name_of(submission_id), None)
        self._resources.create(made)

    def carry(self, sha256: str, content: Content) -> str:
        """Return the SHA-256 as it is: a cluster that isn't there yet can't be given anything, so the runner takes the
        bundle out of the store."""
        return sha256

    def obstacle(self, submission_id: str) -> str:
        """Return why a RayJob has failed, as KubeRay tells it; empty if it hasn't. Raises as ``submit`` does."""
        name = rayjob.name_of(submission_id)
        found = self._resources.get(name)
        return rayjob.why_failed(name, (found or {}).get("status") or {})

    def look(self, submission_ids: Sequence[str]) -> None:
        """Look at several RayJobs with one question, so that ``status`` asks for none that was found; raises
        KubeUnusable."""
        jobs = sorted({rayjob.place_of(each)[0] for each in submission_ids})
        found = self._list(f"{rayjob.JOB_LABEL} in ({','.join(jobs)})") if jobs else []
        self._seen = {one["metadata"]["name"]: one.get("status") or {} for one in found}

    def status(self, submission_id: str) -> str | None:
        """Return PENDING, RUNNING or one of ``OVER``; None when there is no such RayJob, or its cluster was lost.
        Raises as ``submit`` does."""
        name = rayjob.name_of(submission_id)
        status = self._seen.get(name)
        if status is None:  # which may have come since we looked
            found = self._resources.get(name)
            status = None if found is None else found.get("status") or {}
        return None if status is None else rayjob.phase(status)

    def delay(self, submission_id: str) -> str:
        """Return what a RayJob waits for, as far as KubeRay told when we looked; empty if it doesn't wait."""
        name = rayjob.name_of(submission_id)
        return rayjob.why_pending(name, self._seen.get(name) or {})

    def stop(self, submission_id: str) -> None:
        """End a runner, and its cluster after it; no error if there is none. Raises as ``submit`` does."""
        self._seen.pop(rayjob.name_of(submission_id), None)
        self._resources.delete(rayjob.name_of(submission_id))

    def check(self) -> None:
        """See that there is a Kubernetes with RayJobs that accepts our token; raises KubeUnusable if not."""
        self._list(limit=1)

    def room(self) -> list[Node] | None:
        """Return None: there are no nodes before a job asks for them."""
        return None

    def why_not_shared(self, directory: Path) -> str:
        """Return why the pods of a RayJob don't share a directory, as far as its template tells; empty if they do."""
        try:
            return rayjob.why_not_shared(rayjob.read_template(self._template), directory)
        except rayjob.TemplateRefused as error:
            return str(error)

    def close(self) -> None:
        """Let go of all connections; RayJobs stay."""
        self._resources.close()

    def _list(self, labels: str = "", limit: int | None = None) -> list[dict[str, Any]]:
        """Return RayJobs; where that is refused, nothing can be done for any job, so that raises KubeUnusable too."""
        try:
            return self._resources.list(labels, limit)
        except LaunchRefused as error:
            raise KubeUnusable(self._resources.url, error.answer) from error

    def _delete_before(self, job_id: str, attempt: int) -> None:
        for found in self._resources.list(f"{rayjob.JOB_LABEL}={job_id}"):
            if int(found["metadata"]["labels"][rayjob.ATTEMPT_LABEL]) < attempt:
                self._resources.delete(found["metadata"]["name"])


class TemplateUnusable(LaunchRefused):
    """A template that was changed since the start, and can't be used any more."""

    def __init__(self, why: rayjob.TemplateRefused) -> None:
        super().__init__(str(why.path), 422, str(why))
        self.why = why
        self.args = (str(why),)

    def __reduce__(self) -> tuple[type[TemplateUnusable], tuple[rayjob.TemplateRefused]]:
        return type(self), (self.why,)
