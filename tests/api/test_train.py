"""``sampa train`` where Ray doesn't start."""

from __future__ import annotations

import pytest
import ray
from sampa.api.train import CutOff, connected


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "a local Ray could not be started: the node timed out; look whether this machine is busy"),
        ("auto", "Ray at auto can't be used: the node timed out; see --ray-address"),
    ],
)
def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch, address, said):
    def fail(**_):
        raise Exception("the node timed out\nin several lines")  # noqa: TRY002 - as bare as Ray's own

    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_CHDIR_TO_TRIAL_DIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # what is set is taken back
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(CutOff, match=said), connected(None, address):
        pass
