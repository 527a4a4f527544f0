"""What a runner does first on a cluster: connect to it, and bring along the code that nobody could put there before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .settings import BUNDLE_VARIABLE
from .store import Store


def connect(store: Store) -> None:
    """Connect to the cluster that started this process; its workers have the bundle that the environment names."""
    import ray

    with code_of(store) as runtime_env:
        ray.init(address="auto", log_to_driver=False, logging_level="warning", runtime_env=runtime_env)


@contextmanager
def code_of(store: Store, environment: Mapping[str, str] = os.environ) -> Iterator[dict[str, Any] | None]:
    """Give the runtime environment with the bundle, which Ray is to read meanwhile; None where there is none to bring.

    Ray takes a zip as it is, where it would leave out of a directory what a .gitignore names.
    """
    sha256 = environment.get(BUNDLE_VARIABLE)
    if not sha256:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sampa-bundle-") as folder:
        path = Path(folder) / f"{sha256}.zip"
        with path.open("wb") as file:
            for part in store.bundles.content(sha256):
                file.write(part)
        yield {"working_dir": str(path)}
