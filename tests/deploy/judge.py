"""All checks of manifests together."""

from __future__ import annotations

from .consistency import consistency_faults
from .manifests import Manifest
from .network import network_faults
from .ray_options import option_faults
from .rules import kubernetes_faults, operator_faults, security_faults
from .schemas import schema_faults


def faults(documents: list[Manifest]) -> list[str]:
    """Return all that is wrong with the manifests of a deployment, one sentence each; if they have not the shape that
    their kinds have, only that."""
    checks = (kubernetes_faults, operator_faults, security_faults, consistency_faults, network_faults)
    checks += (option_faults,)
    return schema_faults(documents) or [fault for check in checks for fault in check(documents)]
