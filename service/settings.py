"""Where the service keeps its things, and how much it runs at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasGenerator, BeforeValidator, ConfigDict, Field, SecretStr

from ..workers.settings import Settings
from ..workers.storage import Storage, address
from .bundles import BundleLimits
from .room import Node, NodeGroup

STATE_DIR_VARIABLE = "SAMPA_STATE_DIR"
STORE_URL_VARIABLE = "SAMPA_STORE_URL"
TOKEN_VARIABLE = "SAMPA_TOKEN"
STORAGE_VARIABLE = "SAMPA_STORAGE"
ATTEMPT_VARIABLE = "SAMPA_ATTEMPT"  # tells a runner which attempt at its job it is
STARTED_TWICE = 75
"""The exit code of a runner whose attempt had begun before. When the head of a RayJob is lost, KubeRay makes a new one
and submits the same runner to it once more; then the cluster was lost, and what has to come is the next attempt."""

BUNDLE_VARIABLE = "SAMPA_BUNDLE"  # tells a runner which bundle it is to take out of the store


def variable_of(field: str) -> str:
    """Return the name of a setting in the environment."""
    return f"SAMPA_{field.upper()}"


def _from_json(value: object) -> object:
    """Return what a variable holds as JSON; whatever is no text stays."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"must be JSON, which fails at column {error.colno}") from None


def _fit_for_a_header(token: SecretStr) -> SecretStr:
    text = token.get_secret_value().strip()  # files that secrets come from tend to end with a line break
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII characters without a space")
    return SecretStr(text)


def _sqlite_url(fields: dict[str, Any]) -> str:
    return f"sqlite:///{fields.get('state_dir', '')}/sampa.db"


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:  # a container's user may have none
        raise ValueError(f"there is no home directory for {path}; give an absolute path") from None


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Token = Annotated[SecretStr, AfterValidator(_fit_for_a_header)]


class ServiceSettings(Settings):
    """The settings of one service: of its API processes, its reconciler and its runners.

    Each may be given by its name, or as ``SAMPA_<NAME>``, under which errors name it then; see ``from_environment``.
    """

    model_config = ConfigDict(
        alias_generator=AliasGenerator(validation_alias=variable_of), hide_input_in_errors=True, validate_default=True
    )

    state_dir: AbsolutePath = Field(
        default=Path("~/.sampa"),
        description="the store and the token; the jobs' files too, unless storage says otherwise",
    )
    store_url: str = Field(
        default_factory=_sqlite_url,
        description="an SQLAlchemy URL; SQLite in the state directory when left out",
    )
    storage: Annotated[str, AfterValidator(address)] = Field(
        default_factory=lambda fields: str(fields.get("state_dir", "")),
        description="where checkpoints, models and results lie: a path that all nodes share, or s3://bucket/prefix; "
        "the state directory when left out",
    )
    ray_address: Annotated[str, Field(pattern=r"^https?://")] | None = Field(
        default=None,
        description="http URL of the Ray dashboard, where its Jobs API is; a local Ray is started when left out",
    )
    max_running: Annotated[int, Field(ge=1)] = Field(
        default=2, description="jobs that run at once; the others wait in order"
    )
    nodes: Annotated[list[NodeGroup] | None, Field(min_length=1), BeforeValidator(_from_json)] = Field(
        default=None,
        description='the nodes that the cluster can have at most, as JSON: `[{"cpus": 2, "gpus": 0, "count": 12}]`; '
        "what Ray says when left out",
    )
    bundles: Annotated[BundleLimits, BeforeValidator(_from_json)] = Field(
        default=BundleLimits(), description="how large the users' own code may be; in the environment as JSON"
    )
    poll_s: Annotated[float, Field(gt=0)] = Field(default=0.5, description="seconds between two looks at the jobs")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8700, description="port to listen on; 0 takes a free one"
    )
    token: Token | None = Field(
        default=None,
        description="what clients of the API must send; made, and kept in the state directory, when left out",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="`json` writes one object a line, also for each request but those of probes"
    )
    drain_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="seconds after SIGTERM in which requests are still served, but `/readyz` says no"
    )
    backend: Literal["jobs", "rayjob"] = Field(
        default="jobs",
        description="`jobs` starts runners on one Ray cluster, `rayjob` each on a cluster of its own, on Kubernetes",
    )
    rayjob_template: AbsolutePath | None = Field(
        default=None, description="YAML file with the RayJob that runners are started from, with `rayjob`"
    )
    kube_namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] | None = Field(
        default=None, description="namespace of the RayJobs; that of this pod when left out"
    )
    lease_s: Annotated[float, Field(ge=0.2, le=60)] = Field(
        default=5.0, description="seconds after which another API process over the same store looks after the jobs"
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **given: Any) -> Self:
        """Return the settings that are given, and the others as the environment has them; an empty variable is none.

        Raises:
            pydantic.ValidationError: If one is wrong; it names what came from the environment by its variable.
        """
        others = {
            variable_of(name): environment.get(variable_of(name)) for name in cls.model_fields if name not in given
        }
        return cls(**given, **{name: value for name, value in others.items() if value})

    @property
    def own_ray(self) -> bool:
        """Whether the jobs run on a local Ray of this service's own, which nobody else can ask anything."""
        return self.backend == "jobs" and self.ray_address is None

    def most_nodes(self) -> list[Node] | None:
        """Return the nodes that the cluster can have at most; None where the settings don't say."""
        return None if self.nodes is None else [node for group in self.nodes for node in group.nodes()]

    def job_storage(self, job_id: str) -> Storage:
        """Return where the files of one job or sweep lie: checkpoints/, model.safetensors and result.json; its report.

        Raises:
            StorageError: If it is away already when it is to be opened.
        """
        return Storage.at(self.storage) / "jobs" / job_id
