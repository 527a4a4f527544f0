"""The lobby, without Ray: who waits for work gets it, and runs are heard apart."""

import asyncio

import pytest
from sampa.workers.errors import Dismissed
from sampa.workers.lobby import Assignment, Lobby
from sampa.workers.reports import Report

from .serial import plan_of


def assignment(key="run", name="worker 0"):
    return Assignment(key, plan_of(method={"name": "sgd"}), f"{key}-1", name, "/nowhere", None)


def test_a_waiting_worker_gets_what_it_is_assigned():
    async def play():
        lobby = Lobby()
        waiting = asyncio.create_task(lobby.next("a", None, 10))
        _, idle = await lobby.news(10)
        assert idle == ["a"]
        assert await lobby.assign("a", assignment())
        assert not await lobby.assign("a", assignment(name="worker 1"))
        _, idle = await lobby.news(0)
        return idle, await waiting

    idle, work = asyncio.run(play())
    assert (idle, work.name) == ([], "worker 0")


def test_a_worker_asks_again_when_nothing_came():
    assert asyncio.run(Lobby().next("a", None, 0.01)) is None


def test_a_released_worker_is_dismissed_now_and_when_it_comes_back():
    async def play():
        lobby = Lobby()
        waiting = asyncio.create_task(lobby.next("a", None, 10))
        await lobby.news(10)
        await lobby.release("a")
        for asked in (waiting, lobby.next("a", None, 10)):
            with pytest.raises(Dismissed):
                await asked

    asyncio.run(play())


def test_each_run_is_heard_by_its_own_key_and_a_closed_one_not_at_all():
    async def play():
        lobby = Lobby()
        for key in ("a", "b"):
            await lobby.open(key, 1, 1, 32, 0)
        await lobby.ask("b", "report", [Report("log", {"line": "hello"})])
        told, _ = await lobby.news(10)
        await lobby.close("b")
        with pytest.raises(Dismissed):
            await lobby.ask("b", "report", [])
        return told

    told = asyncio.run(play())
    assert [one.data for one in told["b"].reports] == [{"line": "hello"}]
    assert "a" not in told
