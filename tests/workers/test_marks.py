"""Marks in a storage that is shared, or isn't."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from pyarrow import fs
from sampa.workers import marks as marks_module
from sampa.workers.errors import NotShared
from sampa.workers.marks import MARK_VARIABLE, Marker, NotMarked, leave_mark, why_no_mark
from sampa.workers.part import check_mark
from sampa.workers.storage import Storage


def test_a_mark_is_found_where_it_was_left(tmp_path: Path) -> None:
    leave_mark(tmp_path, "a/1")
    leave_mark(tmp_path, "a/2")
    assert why_no_mark(tmp_path, {MARK_VARIABLE: "a/2"}) == ""
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a", "a/attempt"]


def test_many_who_leave_the_same_mark_are_not_in_each_others_way(tmp_path: Path) -> None:
    threads = [threading.Thread(target=leave_mark, args=(tmp_path, "a/1")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert why_no_mark(tmp_path, {MARK_VARIABLE: "a/1"}) == ""
    assert len([*(tmp_path / "a").iterdir()]) == 1


@pytest.mark.parametrize("left", [None, "a/1", "b/2"])
def test_a_directory_without_it_is_another_one(tmp_path: Path, left: str | None) -> None:
    if left:
        leave_mark(tmp_path, left)
    assert why_no_mark(tmp_path, {MARK_VARIABLE: "a/2"}) == (
        f"the storage is not shared: {tmp_path} on {socket.gethostname()} is not what the API sees there; mount one "
        "volume that many nodes may write to at this path, in the API and on all nodes of Ray"
    )


def test_one_who_was_told_of_no_mark_looks_for_none(tmp_path: Path) -> None:
    assert why_no_mark(tmp_path, {}) == ""


def test_a_worker_looks_for_it_beside_the_run_that_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's is that of its sweep."""
    monkeypatch.setenv(MARK_VARIABLE, "sweep/1")
    of_trial = str(tmp_path / "trial")
    with pytest.raises(NotShared, match="the storage is not shared"):
        check_mark(Storage(of_trial))
    check_mark(Storage(of_trial, fs.SubTreeFileSystem("/x", fs.LocalFileSystem())))  # what is remote is everybody's
    leave_mark(tmp_path, "sweep/1")
    check_mark(Storage(of_trial))


def test_what_keeps_a_mark_from_being_left_is_a_sentence(tmp_path: Path) -> None:
    runs = tmp_path / "jobs"
    runs.write_text("no directory")
    with pytest.raises(NotMarked) as raised:
        Marker(runs).leave("a/1")
    assert str(raised.value) == (
        f"nothing can be written to {runs} in the API, where the runs' files lie (Not a directory); see whether the "
        f"volume is mounted there, has room, and may be written to by the user {os.getuid()}"
    )
    runs.unlink()
    Marker(runs).leave("a/1")
    assert why_no_mark(runs, {MARK_VARIABLE: "a/1"}) == ""


def test_a_storage_that_hangs_holds_up_one_thread_and_nobody_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, begun = threading.Event(), []

    def hang(runs: Path, mark: str) -> None:
        begun.append(mark)
        assert back.wait(30)
        leave_mark(runs, mark)

    monkeypatch.setattr(marks_module, "leave_mark", hang)
    marker = Marker(tmp_path, within_s=0.05)
    with pytest.raises(NotMarked, match=r"\(it hangs: nothing was written within 0.05 s\)"):
        marker.leave("a/1")
    for _ in range(3):
        with pytest.raises(NotMarked, match=r"\(it still hangs\)"):
            marker.leave("b/1")
    assert begun == ["a/1"]
    back.set()
    marker._writing.join(30)
    Marker(tmp_path).leave("b/1")
    assert begun == ["a/1", "b/1"]
