"""Where a server is, as it says in its state directory."""

from __future__ import annotations

from pathlib import Path

from sampa.api.found import DEFAULT_URL, erase, find_server, write_down


def test_a_server_takes_back_what_it_wrote_and_not_what_another_of_its_number_did(tmp_path: Path) -> None:
    """In two containers that share a state directory, both are process 1."""
    first = write_down(tmp_path, "http://first:8700")
    second = write_down(tmp_path, "http://second:8700")
    erase(tmp_path, first)
    assert find_server(None, None, tmp_path).url == "http://second:8700"
    erase(tmp_path, second)
    assert find_server(None, None, tmp_path).url == DEFAULT_URL
    erase(tmp_path, second)
