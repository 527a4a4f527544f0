"""Storage that jobs share with the API: what can be told from here."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sampa.service import shared
from sampa.service.launcher import RayJobs
from sampa.service.local_ray import LocalRayJobs
from sampa.service.room import Node
from sampa.service.settings import ServiceSettings
from sampa.service.shared import is_here, is_on_own_disk, why_store_out_of_reach

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


class TestDisks:
    """Whose a directory is, by what is mounted there."""

    @pytest.fixture
    def mounted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        monkeypatch.setattr(shared, "_MOUNTS", tmp_path / "mountinfo")
        return (tmp_path / "mountinfo").write_text

    @pytest.mark.parametrize(
        ("mounts", "own"),
        [
            ("21 1 0:20 / / rw - overlay overlay rw\n30 21 0:30 / /proc rw - proc proc rw\n", True),
            ("21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n", True),
            ("21 1 0:20 / / rw - nfs4 server:/root rw\n", False),
            ("20 1 0:1 / / rw - rootfs rootfs rw\n21 1 0:20 / / rw - fuse.sshfs x rw\n", False),
            ("", False),
        ],
    )
    def test_the_root_of_a_machine_without_disks_is_not_its_own(
        self, mounted: Callable[[str], None], mounts: str, own: bool
    ) -> None:
        mounted(mounts)
        assert is_on_own_disk(Path("/")) is own
        assert is_on_own_disk(Path("/not/there/yet")) is own

    @pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "vfat", "tmpfs", "ramfs", "overlay"])
    def test_another_disk_or_memory_is_this_machines_own(self, mounted: Callable[[str], None], kind: str) -> None:
        mounted(f"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 8:17 / /not/there rw - {kind} /dev/sdb1 rw\n")
        assert is_on_own_disk(Path("/not/there/yet"))

    @pytest.mark.parametrize("kind", ["nfs", "nfs4", "ceph", "cifs", "fuse.s3fs", "lustre", "9p", "something-new"])
    def test_what_others_may_see_or_nobody_knows_is_not_held_against_it(
        self, mounted: Callable[[str], None], kind: str
    ) -> None:
        mounted(f"21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:9 / /not/there rw shared:3 - {kind} x:/y rw\n")
        assert not is_on_own_disk(Path("/not/there/yet"))
        assert is_on_own_disk(Path("/not/thereabouts"))

    def test_the_one_on_top_counts_and_names_may_have_blanks(self, mounted: Callable[[str], None]) -> None:
        root, place = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "/not\\040there"
        mounted(f"{root}22 21 8:17 / {place} rw - ext4 /dev/sdb1 rw\n23 21 0:9 / {place} rw - nfs4 x:/y rw\n")
        assert not is_on_own_disk(Path("/not there/yet"))

    def test_a_link_is_followed(self, mounted: Callable[[str], None], tmp_path: Path) -> None:
        mounted("21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:9 / /not/there rw - nfs4 x:/y rw\n")
        (tmp_path / "state").symlink_to("/not/there")
        assert not is_on_own_disk(tmp_path / "state" / "jobs")

    def test_a_claim_of_one_node_is_not_held_against_a_pod(
        self, mounted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As in the overlay dev, where the API and Ray's head share one, under two addresses."""
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        pods = "/var/lib/kubelet/pods/0/volumes"
        mounted(
            "21 1 0:20 / / rw - overlay overlay rw\n"
            "22 21 8:17 / /var/lib/sampa rw - ext4 /dev/sdb rw\n"
            f"23 21 8:1 {pods}/kubernetes.io~empty-dir/state /empty rw - ext4 /dev/sda1 rw\n"
            "24 21 0:9 / /memory rw - tmpfs tmpfs rw\n"
        )
        own = {path: is_on_own_disk(Path(path)) for path in ("/var/lib/sampa/jobs", "/home", "/empty/jobs", "/memory")}
        assert own == {"/var/lib/sampa/jobs": False, "/home": True, "/empty/jobs": True, "/memory": True}

    def test_nor_is_a_volume_held_against_a_container(self, mounted: Callable[[str], None]) -> None:
        mounted("21 1 0:20 / / rw - overlay overlay rw\n22 21 8:1 /volumes/x /state rw - ext4 /dev/sda1 rw\n")
        assert not is_on_own_disk(Path("/state"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ray_address": f"http://{FAR}:8265"}, True),
        ({"ray_address": f"http://{FAR}:8265", "store_url": "postgresql+psycopg://db/sampa"}, False),
        ({"ray_address": f"http://{FAR}:8265", "backend": "rayjob"}, False),  # which has a sentence of its own
        ({"ray_address": "http://127.0.0.1:8265"}, False),
        ({"ray_address": "http://head.invalid:8265"}, False),
        ({}, False),
    ],
)
def test_a_file_is_no_store_for_runners_on_another_machine(tmp_path: Path, change: dict[str, str], why: bool) -> None:
    said = why_store_out_of_reach(ServiceSettings(state_dir=tmp_path, **change))
    assert bool(said) is why
    assert ("give SAMPA_STORE_URL, or --store, a PostgreSQL" in said) is why


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
