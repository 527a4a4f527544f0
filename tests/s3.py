"""An S3 of the tests' own: moto's server, as a process on a free port."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
from pyarrow import fs

START_S = 60.0
KEYS = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


class S3Server:
    """Started at once; ``close`` ends it."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "s3.log"
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "moto.server", "--port", "0"]
            environment = {**os.environ, "NO_COLOR": "1"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._buckets = 0
        try:
            self.url = self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> str:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if found := re.search(r"http://127\.0\.0\.1:\d+", self._log.read_text()):
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"moto's server did not start: {self._log.read_text()}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def address(self, path: str) -> str:
        """Return the address of a path in a bucket."""
        return f"s3://{path}?endpoint_override={self.url}&region=us-east-1"

    def make(self, bucket: str) -> None:
        self.filesystem(allow_bucket_creation=True).create_dir(bucket)

    def new_bucket(self) -> str:
        """Make a bucket that nobody has used, and return its name."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.make(name)
        return name

    def filesystem(self, **options: bool) -> fs.FileSystem:
        return fs.S3FileSystem(endpoint_override=self.url, region="us-east-1", **options)

    def ask_for_keys(self, *, known: bool) -> None:
        """Let it refuse all keys from now on, or none: it knows no user."""
        count = "inf" if known else "0"
        httpx.post(f"{self.url}/moto-api/reset-auth", content=count, trust_env=False).raise_for_status()

    def uploads(self, bucket: str) -> str:
        """Return what it says of uploads that have been begun and not ended."""
        return httpx.get(f"{self.url}/{bucket}?uploads", trust_env=False).text
