"""Storage that jobs share with the API: what can be told from here."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sampa.service import shared
from sampa.service.launcher import RayJobs
from sampa.service.local_ray import LocalRayJobs
from sampa.service.room import Node
from sampa.service.shared import is_here, is_on_own_disk

FAR = "192.0.2.1"  # of a network that is only written about


def test_addresses_of_this_machine_are_told_from_others() -> None:
    assert is_here("127.0.0.1")
    assert is_here("localhost")
    assert not is_here(FAR)


def test_a_name_that_nobody_knows_is_not_held_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert is_here("sampa-head-svc")


@pytest.mark.parametrize(
    ("mounts", "own"),
    [
        ("21 1 0:20 / / rw - overlay overlay rw\n30 21 0:30 / /proc rw - proc proc rw\n", True),
        ("21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n", True),
        ("21 1 0:20 / / rw - nfs4 server:/root rw\n", False),
        ("20 1 0:1 / / rw - rootfs rootfs rw\n21 1 0:20 / / rw - fuse.sshfs x rw\n", False),
    ],
)
def test_the_root_of_a_machine_without_disks_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: str, own: bool
) -> None:
    (tmp_path / "mountinfo").write_text(mounts)
    monkeypatch.setattr(shared, "_MOUNTS", tmp_path / "mountinfo")
    assert is_on_own_disk(Path("/")) is own
    assert is_on_own_disk(Path("/not/there/yet")) is own


def test_another_mount_may_be_shared() -> None:
    assert not is_on_own_disk(Path("/proc/self"))


class TestOnRay:
    """Whether the nodes of a Ray cluster share a directory of this machine."""

    @pytest.fixture(autouse=True)
    def _disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sampa.service.launcher.is_on_own_disk", lambda path: path == Path("/own"))

    @pytest.fixture
    def near(self) -> Iterator[RayJobs]:
        ray = RayJobs("http://127.0.0.1:1")
        yield ray
        ray.close()

    def test_a_disk_of_this_machine_is_not_that_of_a_head_elsewhere(self) -> None:
        ray = RayJobs(f"http://{FAR}:8265")
        assert ray.why_not_shared(Path("/own")) == (
            f"it lies on this machine's own disk, but the Ray cluster has a node at {FAR}"
        )
        assert ray.why_not_shared(Path("/mounted")) == ""
        ray.close()

    @pytest.mark.parametrize(
        ("addresses", "far"), [(["127.0.0.1", FAR], True), (["127.0.0.1", ""], False), (None, False)]
    )
    def test_nor_that_of_a_worker_elsewhere(
        self, near: RayJobs, monkeypatch: pytest.MonkeyPatch, addresses: list[str] | None, far: bool
    ) -> None:
        nodes = None if addresses is None else [Node(2, 0, address) for address in addresses]
        monkeypatch.setattr(near, "room", lambda: nodes)
        assert bool(near.why_not_shared(Path("/own"))) is far

    def test_a_local_ray_shares_everything(self, tmp_path: Path) -> None:
        assert LocalRayJobs(tmp_path).why_not_shared(Path("/own")) == ""
