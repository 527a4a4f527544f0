"""The settings: by name, or by variable; what is wrong is named as it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sampa.api.faults import faults_of, summary
from sampa.service.bundles import BundleLimits
from sampa.service.launcher import find_token
from sampa.service.room import Node
from sampa.service.settings import ServiceSettings

GIVEN = {
    "SAMPA_STATE_DIR": "/var/lib/sampa",
    "SAMPA_STORE_URL": "postgresql://sampa@db/sampa",
    "SAMPA_RAY_ADDRESS": "http://head:8265",
    "SAMPA_MAX_RUNNING": "8",
    "SAMPA_NODES": '[{"cpus": 2, "count": 2}, {"cpus": 8, "gpus": 1, "count": 1}]',
    "SAMPA_BUNDLES": '{"files": 10}',
    "SAMPA_POLL_S": "0.1",
    "SAMPA_HOST": "0.0.0.0",
    "SAMPA_PORT": "80",
    "SAMPA_TOKEN": "of-a-secret\n",
    "SAMPA_LOG_FORMAT": "json",
    "SAMPA_DRAIN_S": "20",
    "SAMPA_STORAGE": "s3://bucket/sampa",
    "SAMPA_BACKEND": "rayjob",
    "SAMPA_RAYJOB_TEMPLATE": "/etc/sampa/rayjob.yaml",
    "SAMPA_KUBE_NAMESPACE": "sampa",
    "SAMPA_LEASE_S": "4",
}


def test_every_setting_may_be_in_the_environment() -> None:
    settings = ServiceSettings.from_environment(GIVEN)
    assert {f"SAMPA_{name.upper()}" for name in settings.model_fields_set} == set(GIVEN)
    assert (settings.state_dir, settings.store_url) == (Path("/var/lib/sampa"), "postgresql://sampa@db/sampa")
    assert (settings.max_running, settings.poll_s, settings.drain_s) == (8, 0.1, 20.0)
    assert settings.bundles == BundleLimits(files=10)
    assert settings.most_nodes() == [Node(2, 0), Node(2, 0), Node(8, 1)]
    assert settings.token is not None
    assert settings.token.get_secret_value() == "of-a-secret"


def test_what_is_given_wins_over_the_environment() -> None:
    settings = ServiceSettings.from_environment(GIVEN, state_dir="/tmp/mine", max_running=1)
    assert (settings.state_dir, settings.max_running, settings.port) == (Path("/tmp/mine"), 1, 80)


def test_an_empty_variable_is_none_and_others_are_not_looked_at() -> None:
    environment = {"SAMPA_MAX_RUNNING": "", "SAMPA_URL": "x", "SAMPA_API_SERVICE_HOST": "10.0.0.1"}
    assert ServiceSettings.from_environment(environment) == ServiceSettings()


def test_made_by_name_they_know_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GIVEN:
        monkeypatch.setenv(name, "wrong")
    settings = ServiceSettings(state_dir="~/here")
    assert settings.state_dir == Path.home() / "here"
    assert settings.store_url == f"sqlite:///{Path.home()}/here/sampa.db"


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("SAMPA_PORT", "tcp://10.0.0.1:8700", 'SAMPA_PORT must be a valid integer, but is "tcp://10.0.0.1:8700"'),
        ("SAMPA_PORT", "70000", 'SAMPA_PORT must be at most 65535, but is "70000"'),
        ("SAMPA_MAX_RUNNING", "0", 'SAMPA_MAX_RUNNING must be at least 1, but is "0"'),
        ("SAMPA_DRAIN_S", "nan", 'SAMPA_DRAIN_S must be a finite number, but is "nan"'),
        ("SAMPA_LOG_FORMAT", "xml", "SAMPA_LOG_FORMAT must be 'text' or 'json', but is \"xml\""),
        ("SAMPA_BUNDLES", "{files: 1}", "SAMPA_BUNDLES: must be JSON, which fails at column 2"),
        ("SAMPA_BUNDLES", '{"fils": 1}', "SAMPA_BUNDLES.fils is not a known field; did you mean files?"),
        ("SAMPA_NODES", "12", "SAMPA_NODES must be a valid list, but is 12"),
        ("SAMPA_NODES", "[", "SAMPA_NODES: must be JSON, which fails at column 2"),
        ("SAMPA_NODES", "[]", "SAMPA_NODES must have at least 1 item after validation, but is a list"),
        ("SAMPA_NODES", '[{"cpus": 2}]', "SAMPA_NODES.0.count is missing; add it"),
        ("SAMPA_NODES", '[{"cpus": 2, "count": 0}]', "SAMPA_NODES.0.count must be at least 1, but is 0"),
        ("SAMPA_NODES", '[{"cpus": -1, "count": 1}]', "SAMPA_NODES.0.cpus must be at least 0, but is -1"),
        ("SAMPA_NODES", '[{"cpus": 2, "gpu": 1, "count": 1}]', "SAMPA_NODES.0.gpu is not a known field; remove it"),
        ("SAMPA_TOKEN", "my secret", "SAMPA_TOKEN: must be printable ASCII characters without a space"),
    ],
)
def test_a_bad_variable_is_one_sentence_that_names_it(variable: str, value: str, sentence: str) -> None:
    with pytest.raises(ValidationError) as raised:
        ServiceSettings.from_environment({variable: value})
    assert summary(faults_of(ServiceSettings, raised.value)) == sentence


@pytest.mark.parametrize("given", [{"SAMPA_RAY_ADDRESS": "ftp://x"}, {"ray_address": "ftp://x"}])
def test_a_bad_form_is_explained_under_either_name(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        ServiceSettings(**given)
    detail = summary(faults_of(ServiceSettings, raised.value))
    assert detail.startswith(f'{next(iter(given))} "ftp://x" is not of the form that is allowed: http URL of the Ray')


def test_a_user_without_a_home_must_say_where_the_state_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "expanduser", lambda path: _no_home() if str(path)[0] == "~" else path)
    with pytest.raises(ValidationError) as raised:
        ServiceSettings()
    assert "state_dir: there is no home directory" in summary(faults_of(ServiceSettings, raised.value))
    assert ServiceSettings(state_dir="/var/lib/sampa").state_dir == Path("/var/lib/sampa")
    assert find_token({}) is None


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_secrets_are_shown_nowhere() -> None:
    settings = ServiceSettings.from_environment(GIVEN)
    assert "of-a-secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    with pytest.raises(ValidationError) as raised:
        ServiceSettings.from_environment({"SAMPA_TOKEN": "two words", "SAMPA_STORE_URL": "postgresql://u:pw@db/x"})
    shown = f"{raised.value} {summary(faults_of(ServiceSettings, raised.value))}"
    assert "two words" not in shown
    assert "pw" not in shown
