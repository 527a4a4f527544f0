"""Where runners are started, as the settings choose it."""

from __future__ import annotations

from .kube_launcher import KubeRayJobs
from .launcher import Launcher, RayJobs, find_token
from .local_ray import LocalRayJobs
from .settings import ServiceSettings


def launcher_of(settings: ServiceSettings) -> Launcher:
    """Return what the settings name: Kubernetes, the Jobs API of a cluster, or of the local Ray, started when needed.

    Raises:
        ValueError: If Kubernetes can't be used from here, or the template or the store not with it.
    """
    if settings.backend == "rayjob":
        return KubeRayJobs.of(settings)
    if settings.own_ray:
        return LocalRayJobs(settings.state_dir)
    assert settings.ray_address is not None
    return RayJobs(settings.ray_address, find_token())
