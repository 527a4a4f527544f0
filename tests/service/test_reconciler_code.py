"""The reconciler and the users' own code: it is handed to Ray at each start, and dropped when nobody needs it."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from sampa.service import reconciler as reconciler_module
from sampa.service.bundles import Contents
from sampa.service.launcher import NOT_IN_PLACE
from sampa.service.reconciler import Reconciler
from sampa.service.settings import ServiceSettings
from sampa.service.states import State
from sampa.service.store import NoSuchBundle, Store

from .samples import FakeRay, submitted
from .zips import sha256_of, zip_of

BUNDLE = zip_of({"my_module.py": b""})
SHA256 = sha256_of(BUNDLE)


def with_bundle(store: Store, **code: Any) -> str:
    store.bundles.put(SHA256, Contents(1, 0), io.BytesIO(BUNDLE))
    return submitted(store, task={"entrypoint": "my_module:build"}, code={"bundle": SHA256, **code})


@pytest.fixture
def job_id(store: Store, reconciler: Reconciler) -> str:
    job_id = with_bundle(store)
    reconciler.step()
    store.move(job_id, State.RUNNING, attempt=1)
    return job_id


def test_the_next_attempt_finds_the_code_too(store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str) -> None:
    ray.submissions[f"sampa-{job_id}-1"] = "FAILED"
    reconciler.step()
    assert ray.codes[f"sampa-{job_id}-2"] == f"gcs://{SHA256}"


def test_a_new_cluster_is_given_the_code_again(store: Store, ray: FakeRay, reconciler: Reconciler, job_id: str) -> None:
    ray.lose_everything()
    reconciler.step()
    assert ray.started[-1] == f"sampa-{job_id}-2"
    assert ray.packages == {f"gcs://{SHA256}": BUNDLE}


def test_code_that_can_not_be_put_in_place_is_the_reason(store: Store, ray: FakeRay, reconciler: Reconciler) -> None:
    job_id = submitted(store, code={"pip": ["no-such-package"]}, max_restarts=1)
    for attempt in (1, 2):
        reconciler.step()
        ray.submissions[f"sampa-{job_id}-{attempt}"] = "FAILED"
        ray.obstacles[f"sampa-{job_id}-{attempt}"] = (
            f"{NOT_IN_PLACE}: No matching distribution found for no-such-package"
        )
    reconciler.step()
    job = store.job(job_id)
    assert job.state is State.FAILED
    assert job.reason == (
        "the bundle or the packages of its field code could not be put in place: "
        "No matching distribution found for no-such-package"
    )
    again = next(one for one in store.transitions(job_id) if one["reason"].endswith("from its newest checkpoint"))
    assert again["reason"].startswith("the bundle or the packages of its field code could not be put in place: No m")


def test_a_bundle_that_no_job_refers_to_goes_after_a_day(
    store: Store, ray: FakeRay, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    unused, _ = store.bundles.put("0" * 64, Contents(1, 0), io.BytesIO(b"unused"))
    with_bundle(store)
    ray.up = False  # it needs no Ray
    Reconciler(store, ray, settings).step()
    assert store.bundles.get(unused.sha256)
    monkeypatch.setattr(reconciler_module, "BUNDLE_KEPT", timedelta(0))
    Reconciler(store, ray, settings).step()
    with pytest.raises(NoSuchBundle):
        store.bundles.get(unused.sha256)
    assert store.bundles.get(SHA256).in_use


def test_a_runner_finds_its_jobs_code(store: Store, ray: FakeRay, reconciler: Reconciler) -> None:
    job_id = with_bundle(store, pip=["einops"])
    reconciler.step()
    name = f"sampa-{job_id}-1"
    assert (ray.codes[name], ray.pips[name]) == (f"gcs://{SHA256}", ["einops"])
    assert ray.packages == {f"gcs://{SHA256}": BUNDLE}
