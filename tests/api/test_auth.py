"""Nobody gets in without the token, and the token is its owner's alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sampa.api.app import create_app
from sampa.api.auth import token_in
from sampa.service.settings import ServiceSettings
from sampa.service.store import Store

from .conftest import AppTransport
from .fakes import IdleReconciler
from .test_problems import problem


def test_the_token_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    token = token_in(tmp_path / "state")
    assert (tmp_path / "state" / "token").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert len(token) >= 32


def test_the_token_stays_the_same(tmp_path: Path) -> None:
    assert token_in(tmp_path) == token_in(tmp_path)


def test_many_that_make_a_token_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        tokens = set(pool.map(lambda _: token_in(tmp_path), range(64)))
    assert len(tokens) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token_in(tmp_path)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        token_in(tmp_path)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/nowhere")])
def test_without_a_token_nothing_is_shown(stranger: httpx.Client, method: str, path: str) -> None:
    answer = stranger.request(method, path, json={} if method == "POST" else None)
    assert "Authorization: Bearer" in problem(answer, 401, "unauthorized")["detail"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "Bearer ", "Basic {token}", "{token}", "Bearer {token}x", "Bearer \xe9"]
)
def test_a_wrong_token_is_refused(stranger: httpx.Client, token: str, header: str) -> None:
    sent = header.format(token=token).encode("latin-1")
    answer = stranger.get("/v1/jobs", headers=[(b"authorization", sent)])
    document = problem(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert token not in document["detail"]


def test_the_scheme_is_read_in_any_case(stranger: httpx.Client, token: str) -> None:
    assert stranger.get("/v1/jobs", headers={"Authorization": f"bearer {token}"}).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json"])
def test_health_and_description_need_no_token(stranger: httpx.Client, path: str) -> None:
    assert stranger.get(path).status_code == 200


def test_a_token_that_is_given_is_the_one_and_no_file_is_made(
    settings: ServiceSettings, store: Store, reconciler: IdleReconciler
) -> None:
    given = settings.model_copy(update={"token": SecretStr("of-a-secret")})
    app = create_app(given, store, reconciler)
    with httpx.Client(transport=AppTransport(app), base_url="http://sampa.test") as http:
        assert http.get("/v1/jobs", headers={"Authorization": "Bearer of-a-secret"}).status_code == 200
        refused = http.get("/v1/jobs", headers={"Authorization": "Bearer of-another"})
    assert "SAMPA_TOKEN" in problem(refused, 401, "unauthorized")["detail"]
    assert "of-a-secret" not in refused.text
    assert not (settings.state_dir / "token").exists()
