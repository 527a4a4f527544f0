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
    assert told["a"].reports == []


@pytest.mark.parametrize("gap", range(10))
def test_what_comes_while_the_news_of_another_run_is_on_its_way_is_heard_next(gap):
    """``gap``: turns of the event loop between the two, anywhere between waking up and having answered."""
    evaluation, end = Report("evaluation", {"step": 4}), {"succeeded": False, "reason": "done"}

    async def play():
        lobby = Lobby()
        for key in ("a", "b"):
            await lobby.open(key, 1, 1, 32, 0)
        listening = asyncio.create_task(lobby.news(10))
        await asyncio.sleep(0.01)
        await lobby.ask("a", "report", [Report("log", {"line": "hello"})])
        for _ in range(gap):
            await asyncio.sleep(0)
        await lobby.ask("b", "report", [evaluation])
        await lobby.ask("b", "finish", "worker 0", end)
        told = [await listening, await lobby.news(0), await lobby.news(0)]
        return [runs["b"] for runs, _ in told]

    heard = asyncio.run(play())
    assert [report for news in heard for report in news.reports] == [evaluation]
    assert heard[-1].outcome == end


def test_nothing_is_lost_of_many_runs_that_report_at_their_own_pace():
    async def tell(lobby, key):
        for number in range(50):
            await lobby.ask(key, "report", [Report("metrics", {"step": number})])
            for _ in range(number % 7):
                await asyncio.sleep(0)

    async def play():
        lobby, heard = Lobby(), {f"run {number}": [] for number in range(8)}
        for key in heard:
            await lobby.open(key, 1, 1, 32, 0)
        telling = asyncio.gather(*(tell(lobby, key) for key in heard))
        while not telling.done():
            await listen(lobby, heard)
        await listen(lobby, heard)
        return heard

    async def listen(lobby, heard):
        for key, news in (await lobby.news(0.01))[0].items():
            heard[key] += [report.data["step"] for report in news.reports]

    assert asyncio.run(play()) == {f"run {number}": [*range(50)] for number in range(8)}
