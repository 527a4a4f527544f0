"""What all tests share."""

import os

import pytest
from hypothesis import settings

from .postgres import postgres, postgres_url

__all__ = ["postgres", "postgres_url"]
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")  # torch looks addresses up; a lost answer costs 5 s else
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
settings.register_profile("sampa", deadline=None)  # a busy machine is no bug
settings.load_profile("sampa")


def pytest_collection_modifyitems(items):
    """Run the cheap tests first: those with a real Ray come last."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(scope="module")
def ray_cluster():
    """A local Ray for the tests of a module that train in this process; one Ray at a time is enough for a machine."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    from sampa.workers.train_runs import settle

    settle()
    ray.shutdown()


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3 for all tests, and its keys in the environment."""
    from .s3 import KEYS, S3Server

    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        server = S3Server(tmp_path_factory.mktemp("s3"))
        yield server
        server.close()


@pytest.fixture
def bucket(s3):
    """The name of a bucket of the test's own."""
    return s3.new_bucket()
