"""A store and settings of its own for each test, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sampa.service.reconciler import Reconciler
from sampa.service.settings import ServiceSettings
from sampa.service.store import Store

from ..fake_kube import FakeKube, fake_kube, make_account
from .samples import FakeRay


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store with nothing in it, not even tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sampa.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def settings(tmp_path: Path, store_url: str) -> ServiceSettings:
    return ServiceSettings(state_dir=tmp_path, store_url=store_url, poll_s=0.02)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = Store(store_url)
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def reconciler(store: Store, ray: FakeRay, settings: ServiceSettings) -> Reconciler:
    return Reconciler(store, ray, settings)


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """The service account of a pod."""
    return make_account(tmp_path / "account")


@pytest.fixture
def kube(account: Path) -> Iterator[FakeKube]:
    """A Kubernetes that trusts it."""
    with fake_kube(account) as kube:
        kube.tokens = {"first"}
        yield kube
