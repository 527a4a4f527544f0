"""The coordinator, without Ray: generations form of complete crews, and nobody waits for a run that is over."""

import asyncio

import pytest
from sampa.workers import coordinator as module
from sampa.workers.coordinator import Coordinator
from sampa.workers.errors import MembershipError, RunOver
from sampa.workers.pairs import Member
from sampa.workers.reports import Report


def member(number, node="a"):
    return Member(f"worker {number}", node, f"host:{number}")


def test_a_generation_forms_when_all_are_there_and_numbers_are_never_used_twice():
    async def scene():
        meeting = Coordinator(2)
        first = await asyncio.gather(*(meeting.join(seat, member(seat)) for seat in range(2)))
        second = await asyncio.gather(*(meeting.join(seat, member(seat)) for seat in range(2)))
        return first, second

    first, second = asyncio.run(scene())
    assert [view.generation for view in first + second] == [1, 1, 2, 2]
    assert first[0] == first[1]


def test_a_replacement_takes_the_seat_of_the_one_before():
    async def scene():
        meeting = Coordinator(2)
        gone = asyncio.create_task(meeting.join(0, member(0)))
        await asyncio.sleep(0)
        replaced, other = await asyncio.gather(meeting.join(0, member(7)), meeting.join(1, member(1)))
        gone.cancel()
        return replaced, other

    replaced, other = asyncio.run(scene())
    assert replaced == other
    assert {m.name for m in replaced.members} == {"worker 7", "worker 1"}


def test_partners_share_a_node_where_possible():
    async def scene():
        meeting = Coordinator(4)
        nodes = ["a", "b", "a", "b"]
        views = await asyncio.gather(*(meeting.join(seat, member(seat, nodes[seat])) for seat in range(4)))
        return views[0].members

    assert [m.node for m in asyncio.run(scene())] == ["a", "a", "b", "b"]


def test_a_worker_that_waits_alone_is_told_who_is_missing(monkeypatch):
    monkeypatch.setattr(module, "JOIN_S", 0.01)
    with pytest.raises(MembershipError, match=r"only 1 of 2 workers came .*worker 0"):
        asyncio.run(Coordinator(2).join(0, member(0)))


def test_nobody_waits_for_a_run_that_is_over():
    async def scene():
        meeting = Coordinator(2)
        waiting = asyncio.create_task(meeting.join(0, member(0)))
        await asyncio.sleep(0)
        await meeting.finish({"succeeded": False, "reason": "first"})
        await meeting.finish({"succeeded": True})
        with pytest.raises(RunOver):
            await waiting
        with pytest.raises(RunOver):
            await meeting.join(1, member(1))
        return await meeting.news(0.0)

    assert asyncio.run(scene()) == ([], {"succeeded": False, "reason": "first"})


def test_reports_come_in_order_and_once():
    async def scene():
        meeting = Coordinator(1)
        await meeting.report([Report("log", {"n": 1}), Report("log", {"n": 2})])
        first = await meeting.news(1.0)
        nothing = await meeting.news(0.0)
        await meeting.report([Report("log", {"n": 3})])
        return first, nothing, await meeting.news(1.0)

    first, nothing, last = asyncio.run(scene())
    assert [r.data["n"] for r in first[0]] == [1, 2]
    assert nothing == ([], None)
    assert [r.data["n"] for r in last[0]] == [3]
