"""What a cluster could ever hold."""

from __future__ import annotations

import pytest
from sampa.service.room import Node, why_no_room
from sampa.workers.plan import Workers

SMALL, LARGE = Node(2, 0), Node(8, 1)


@pytest.mark.parametrize(
    ("asked", "nodes", "fits"),
    [
        ({}, [SMALL], True),
        ({"min": 2}, [SMALL], True),
        ({"min": 3}, [SMALL], False),
        ({"min": 3}, [SMALL, SMALL], True),
        ({"cpus": 3}, [SMALL, SMALL], False),  # no worker is spread over two nodes
        ({"cpus": 0.5, "min": 4}, [SMALL], True),
        ({"cpus": 0.1, "min": 20}, [SMALL], True),  # 2 // 0.1 is 19
        ({"cpus": 0.1, "min": 21}, [SMALL], False),
        ({"gpus": 1}, [SMALL], False),
        ({"gpus": 1}, [SMALL, LARGE], True),
        ({"gpus": 0.5, "min": 2}, [LARGE], True),
        ({"gpus": 1, "min": 2}, [LARGE], False),
        ({}, [], False),
    ],
)
def test_the_fewest_workers_must_fit_on_whole_nodes(asked: dict[str, float], nodes: list[Node], fits: bool) -> None:
    assert (why_no_room(Workers.model_validate(asked), nodes) == "") == fits


def test_a_refusal_says_what_is_needed_and_what_the_cluster_has() -> None:
    sentence = why_no_room(Workers.model_validate({"min": 3, "gpus": 1}), [LARGE, SMALL, SMALL])
    assert sentence == (
        "there must be room for 3 workers at once of 1 processor and 1 GPU, but the nodes of the cluster have room for "
        "1 (2 with 2 processors and 0 GPUs; 1 with 8 processors and 1 GPU); ask for less, or add nodes"
    )
