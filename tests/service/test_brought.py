"""The code that a runner brings along, where nobody could give it to the cluster before."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampa.service.brought import code_of
from sampa.service.bundles import Contents
from sampa.service.store import NoSuchBundle, Store

from .zips import sha256_of, zip_of

BUNDLE = zip_of({"my_module.py": b"x = 1", ".gitignore": b"*.py"})
SHA256 = sha256_of(BUNDLE)


def test_a_bundle_comes_out_of_the_store_as_it_went_in(store: Store) -> None:
    store.bundles.put(SHA256, Contents(2, 9), io.BytesIO(BUNDLE))
    with code_of(store, {"SAMPA_BUNDLE": SHA256}) as runtime_env:
        assert runtime_env is not None
        path = Path(runtime_env["working_dir"])
        assert (path.name, path.read_bytes()) == (f"{SHA256}.zip", BUNDLE)
    assert not path.parent.exists()


def test_where_the_launcher_has_seen_to_it_there_is_nothing_to_bring(store: Store) -> None:
    with code_of(store, {}) as runtime_env:
        assert runtime_env is None


def test_one_that_is_gone_is_said_to_be(store: Store) -> None:
    with pytest.raises(NoSuchBundle, match="upload it again"), code_of(store, {"SAMPA_BUNDLE": SHA256}):
        pass


DRIVER = """
import ray, sys
from sampa.service import brought
from sampa.service.store import Store
store = Store(sys.argv[1])
brought.connect(store)
store.close()

@ray.remote(num_cpus=0)
def there():
    import os, my_module
    return [my_module.x, os.path.exists(".gitignore"), os.environ["OF_THE_JOB"]]

print(ray.get(there.remote()))
"""


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_find_what_their_runner_brought_beside_what_its_job_was_given(store: Store, store_url: str) -> None:
    import ray

    store.bundles.put(SHA256, Contents(2, 9), io.BytesIO(BUNDLE))
    of_ray = json.dumps({"runtime_env": {"env_vars": {"OF_THE_JOB": "1"}}})  # as Ray tells the process of a submission
    environment = {"RAY_JOB_CONFIG_JSON_ENV_VAR": of_ray, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, store_url],
        env={**os.environ, **environment, "SAMPA_BUNDLE": SHA256},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "[1, True, '1']", done.stderr
