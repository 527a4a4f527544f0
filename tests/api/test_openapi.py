"""The description says what the server does, and needs nothing that it shouldn't load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from sampa.api.problems import KINDS
from sampa.service.store import Store

from ..service.samples import begun_trial
from ..service.zips import zip_of

ROUTES = {
    ("get", "/livez"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("post", "/v1/jobs"),
    ("get", "/v1/jobs"),
    ("get", "/v1/jobs/{job_id}"),
    ("post", "/v1/jobs/{job_id}/cancel"),
    ("post", "/v1/jobs/{job_id}/pause"),
    ("post", "/v1/jobs/{job_id}/resume"),
    ("post", "/v1/jobs/{job_id}/resize"),
    ("get", "/v1/jobs/{job_id}/events"),
    ("get", "/v1/jobs/{job_id}/metrics"),
    ("get", "/v1/jobs/{job_id}/checkpoints"),
    ("get", "/v1/jobs/{job_id}/model"),
    ("post", "/v1/sweeps"),
    ("get", "/v1/sweeps"),
    ("get", "/v1/sweeps/{sweep_id}"),
    ("post", "/v1/sweeps/{sweep_id}/cancel"),
    ("post", "/v1/sweeps/{sweep_id}/pause"),
    ("post", "/v1/sweeps/{sweep_id}/resume"),
    ("post", "/v1/sweeps/{sweep_id}/extend"),
    ("post", "/v1/sweeps/{sweep_id}/retry"),
    ("post", "/v1/sweeps/{sweep_id}/promote"),
    ("get", "/v1/sweeps/{sweep_id}/events"),
    ("get", "/v1/sweeps/{sweep_id}/trials"),
    ("get", "/v1/sweeps/{sweep_id}/trials/{number}"),
    ("get", "/v1/sweeps/{sweep_id}/trials/{number}/events"),
    ("get", "/v1/sweeps/{sweep_id}/report"),
    ("get", "/v1/sweeps/{sweep_id}/report.png"),
    ("post", "/v1/bundles"),
    ("get", "/v1/bundles/{sha256}"),
}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def test_every_route_is_described_and_no_other(document: dict[str, Any]) -> None:
    assert {(method, path) for method, path, _ in operations(document)} == ROUTES
    assert all(operation["summary"] for _, _, operation in operations(document))


def test_the_description_has_the_form_of_openapi(document: dict[str, Any]) -> None:
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(document))
    assert found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def test_every_route_of_jobs_wants_the_token_and_documents_its_problems(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
    assert document["security"] == [{"token": []}]
    for _, path, operation in operations(document):
        if path.startswith("/v1/"):
            assert "security" not in operation
            assert {"401", "422", "500"} <= operation["responses"].keys()
            content = operation["responses"]["401"]["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        else:
            assert operation["security"] == []


def examples(document: dict[str, Any], path: str) -> list[Any]:
    """Return the example bodies of a POST, each of which fits its schema."""
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    found = [example["value"] for example in body["examples"].values()]
    for example in found:
        jsonschema.validate(example, {**body["schema"], "components": document["components"]})
    return found


def test_the_examples_fit_their_schemas_and_are_accepted(document: dict[str, Any], http: httpx.Client) -> None:
    (job,), (sweep,) = examples(document, "/v1/jobs"), examples(document, "/v1/sweeps")
    assert http.post("/v1/jobs", json=job).status_code == 201
    answer = http.post("/v1/sweeps", json=sweep)
    assert answer.status_code == 201
    (extension,) = examples(document, "/v1/sweeps/{sweep_id}/extend")
    assert http.post(f"{answer.headers['location']}/extend", json=extension).status_code == 202
    (promotion,) = examples(document, "/v1/sweeps/{sweep_id}/promote")
    assert http.post(f"{answer.headers['location']}/promote", json=promotion).status_code == 404, "no report yet"


def test_answers_fit_their_schemas(document: dict[str, Any], http: httpx.Client, store: Store) -> None:
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    created = http.post("/v1/jobs", json=body["examples"]["digits"]["value"]).json()
    answers = {"JobAnswer": created, "WholeJobAnswer": http.get(f"/v1/jobs/{created['id']}").json()}
    answers |= {"JobPage": http.get("/v1/jobs").json(), "Problem": http.get("/v1/jobs/nobody").json()}
    answers |= {"EventPage": http.get(f"/v1/jobs/{created['id']}/events").json(), "Health": http.get("/readyz").json()}
    bundle = http.post("/v1/bundles", content=zip_of({"a.py": b""}), headers={"Content-Type": "application/zip"})
    answers["BundleAnswer"] = bundle.json()
    trial = begun_trial(store)
    sweep = f"/v1/sweeps/{trial.sweep_id}"
    answers |= {"SweepPage": http.get("/v1/sweeps").json(), "WholeSweepAnswer": http.get(sweep).json()}
    answers |= {"TrialPage": http.get(f"{sweep}/trials").json()}
    answers |= {"WholeTrialAnswer": http.get(f"{sweep}/trials/1").json()}
    for name, answer in answers.items():
        reference = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(answer, reference)


def test_every_kind_of_problem_is_described(document: dict[str, Any]) -> None:
    types = document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
    assert types == [f"urn:sampa:problem:{kind}" for kind in KINDS]


def test_the_server_loads_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'pandas', 'numpy', 'sklearn'}"
    code = f"import sys, sampa.api.serve, sampa.api.client; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_the_command_line_loads_only_what_it_needs() -> None:
    heavy = "{'torch', 'ray', 'fastapi', 'pydantic', 'sqlalchemy', 'httpx'}"
    code = f"import sys, sampa.api.cli; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_readiness_tells_what_is_missing(stranger: httpx.Client, reconciler: Any) -> None:
    reconciler.ray = "does not answer"
    answer = stranger.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"] == {"store": "ok", "ray": "does not answer"}
    assert answer.json()["detail"] == "Not ready: ray does not answer."
    assert stranger.get("/livez").json()["status"] == "ok"
