"""The coordinator, without Ray: it gives the protocol of ``generations`` a clock and a network, and passes on news."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from sampa.workers import coordinator as module
from sampa.workers.coordinator import Coordinator
from sampa.workers.errors import Dismissed
from sampa.workers.pairs import Member
from sampa.workers.reports import Report
from sampa.workers.words import Place, Word

NEW = Word()
DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "TICK_S", 0.01)


def member(number, node="a", address=""):
    return Member(f"worker {number}", node, address)


def at(step, **fields):
    return Word(Place(step, settled=True), **fields)


def meeting_of(*arguments, end=lambda handle: None, **fields):
    return Coordinator(*arguments, end=end, **fields)


async def joined(meeting, *numbers, word=NEW):
    """Let workers come, and return what each is answered."""
    coming = (meeting.join(member(number), word, handle=number) for number in numbers)
    return await asyncio.wait_for(asyncio.gather(*coming, return_exceptions=True), DEADLINE_S)


async def until(fits):
    async with asyncio.timeout(DEADLINE_S):
        while not fits():
            await asyncio.sleep(0.001)


def play(scene):
    return asyncio.run(scene())


def names(view):
    return [member.name for member in view.members]


def test_a_generation_forms_when_all_are_there_and_numbers_are_never_used_twice():
    async def scene():
        meeting = meeting_of(2)
        return await joined(meeting, 0, 1), await joined(meeting, 0, 1, word=at(1))

    first, second = play(scene)
    assert [view.generation for view in first + second] == [1, 1, 2, 2]
    assert first[0] == first[1]


def test_a_run_that_can_do_with_one_worker_does_not_wait_for_the_second():
    async def scene():
        return await joined(meeting_of(2, least=1), 0)

    (view,) = play(scene)
    assert names(view) == ["worker 0"]


def test_partners_share_a_node_where_possible():
    async def scene():
        meeting = meeting_of(4)
        nodes = ["a", "b", "a", "b"]
        views = await asyncio.gather(*(meeting.join(member(n, nodes[n]), NEW) for n in range(4)))
        return views[0].members

    assert [m.node for m in play(scene)] == ["a", "a", "b", "b"]


@asynccontextmanager
async def store(number):
    """Serve what the coordinator takes for a worker's store; yield the member and a function that lets it die."""
    served = asyncio.Queue()
    server = await asyncio.start_server(lambda _, writer: served.put_nowait(writer), "127.0.0.1", 0)

    async def die():
        (await asyncio.wait_for(served.get(), DEADLINE_S)).transport.abort()

    yield member(number, address=f"127.0.0.1:{server.sockets[0].getsockname()[1]}"), die
    server.close()


def test_a_worker_whose_connection_ends_is_lost_and_the_others_go_on_without_it():
    async def scene():
        meeting = meeting_of(2)
        async with store(0) as (dying, die):
            views = await asyncio.gather(meeting.join(dying, NEW), meeting.join(member(1), NEW))
            await die()
            (alone,) = await joined(meeting, 1, word=at(3, in_flight=True, failure="worker 0 was lost"))
            return views[0], alone, await meeting.news(0.0)

    both, alone, news = play(scene)
    assert (names(both), names(alone), news.lost) == (["worker 0", "worker 1"], ["worker 1"], ["worker 0"])
    assert (news.present, news.reached) == (["worker 1"], 3)


def test_a_worker_that_cant_be_reached_is_lost():
    async def scene():
        meeting = meeting_of(2)
        waiting = asyncio.create_task(meeting.join(member(0, address="127.0.0.1:1"), NEW))
        with pytest.raises(Dismissed):
            await asyncio.wait_for(waiting, DEADLINE_S)
        return await meeting.news(0.0)

    assert play(scene).lost == ["worker 0"]


def test_a_late_worker_is_ended_by_its_handle_and_the_log_says_why():
    ended = []

    async def scene():
        meeting = meeting_of(2, end=ended.append)
        await joined(meeting, 0, 1, word=Word(patience_s=0.1))
        word = at(3, failure="worker 1 did not answer within 0.08 s", late="worker 1", patience_s=0.1)
        (alone,) = await joined(meeting, 0, word=word)
        news = await meeting.news(0.0)
        with pytest.raises(Dismissed):
            await meeting.join(member(1), at(3))
        return alone, news

    alone, news = play(scene)
    assert (names(alone), ended, news.lost) == (["worker 0"], [1], ["worker 1"])
    (line,) = [report.data["line"] for report in news.reports if report.kind == "log"]
    assert line.startswith("worker 1 is replaced, since it was late: worker 1 ")


def test_who_watches_learns_at_once_that_a_change_is_wanted():
    async def scene():
        meeting = meeting_of(3, least=2)
        await joined(meeting, 0, 1)
        quiet = await meeting.watch("worker 0", 1, 0, 10.0, 0.01)
        watching = asyncio.create_task(meeting.watch("worker 0", 1, 5, 10.0, DEADLINE_S))
        coming = asyncio.create_task(meeting.join(member(2), NEW))
        asked = await asyncio.wait_for(watching, DEADLINE_S / 2)
        old = await meeting.watch("worker 0", 0, 5, 10.0, DEADLINE_S)
        views = await joined(meeting, 0, 1, word=at(6))
        after = await meeting.watch("worker 0", 2, 6, 10.0, 0.01)
        return quiet, asked, old, after, views[0], await coming

    quiet, asked, old, after, view, newcomers = play(scene)
    assert (quiet, asked, old, after) == (False, True, False, False)
    assert view == newcomers
    assert (view.source, view.behind, len(view.members)) == (0, (2,), 3)


def test_of_fewer_that_are_wanted_some_are_dismissed_at_a_boundary():
    async def scene():
        meeting = meeting_of(2)
        await joined(meeting, 0, 1)
        await meeting.want(1)
        return await joined(meeting, 0, 1, word=at(4))

    stays, leaves = sorted(play(scene), key=lambda answer: isinstance(answer, Dismissed))
    assert names(stays) in (["worker 0"], ["worker 1"])
    assert not leaves.save


def test_a_stopped_run_is_over_when_one_member_has_saved_it():
    async def scene():
        meeting = meeting_of(2)
        await joined(meeting, 0, 1)
        await meeting.stop("paused")
        coming = [asyncio.create_task(meeting.join(member(number), at(4))) for number in (0, 1)]
        done, others = await asyncio.wait(coming, return_when="FIRST_COMPLETED", timeout=DEADLINE_S)
        (saver,) = done
        before = (await meeting.news(0.0)).outcome
        await meeting.saved(f"worker {coming.index(saver)}", 4)
        await asyncio.wait(others, timeout=DEADLINE_S)
        return saver.exception(), [one.exception() for one in others], before, (await meeting.news(0.0)).outcome

    saver, (other,), before, outcome = play(scene)
    assert (saver.save, other.save, before) == (True, False, None)
    assert outcome == {"succeeded": False, "stopped": True, "step": 4, "reason": "paused"}


def test_nobody_waits_for_a_run_that_is_over():
    async def scene():
        meeting = meeting_of(2)
        waiting = asyncio.create_task(meeting.join(member(0), NEW))
        await asyncio.sleep(0)
        await meeting.finish("worker 0", {"succeeded": False, "reason": "first"})
        await meeting.finish("worker 1", {"succeeded": False, "reason": "second"})
        with pytest.raises(Dismissed):
            await waiting
        with pytest.raises(Dismissed):
            await meeting.join(member(1), NEW)
        return (await meeting.news(0.0)).outcome

    assert play(scene) == {"succeeded": False, "reason": "first"}


def test_a_worker_that_cant_be_reached_is_named_with_what_to_do():
    async def scene():
        meeting = meeting_of(2)
        closed = Member("worker 0", "a", "127.0.0.1:1")  # nobody listens there
        with pytest.raises(Dismissed):
            await asyncio.wait_for(meeting.join(closed, NEW), 10)
        return (await meeting.news(1.0)).reports

    lines = [report.data["line"] for report in play(scene) if report.kind == "log"]
    assert any("worker 0 can't be reached at 127.0.0.1:1" in line and "all ports" in line for line in lines), lines


@pytest.mark.parametrize(
    ("name", "outcome", "ends"),
    [
        ("worker 0", {"succeeded": True, "result": {}}, True),
        ("worker 0", {"succeeded": False, "reason": "its loss is nan"}, True),
        ("worker 0", {"succeeded": False, "reason": "it ran out of memory", "retry": True}, False),
        ("worker 7", {"succeeded": False, "reason": "it can't import"}, False),
        ("worker 7", {"succeeded": True, "result": {}}, False),
    ],
)
def test_the_word_of_a_member_ends_a_run_unless_another_process_might_do_better(name, outcome, ends):
    async def scene():
        meeting = meeting_of(2)
        await joined(meeting, 0, 1)
        await meeting.finish(name, outcome)
        return await meeting.news(0.0)

    news = play(scene)
    assert news.outcome == (outcome if ends else None)
    failed = not outcome["succeeded"] and not ends
    assert {*news.lost} == ({name} if failed else set())
    assert [report.data["line"] for report in news.reports if report.kind == "log"] == (
        [outcome["reason"]] if failed else []
    )


def test_a_failure_of_the_first_workers_ends_a_run_that_nobody_has_begun():
    async def scene():
        meeting = meeting_of(2)
        await meeting.finish("worker 0", {"succeeded": False, "reason": "no such task"})
        return (await meeting.news(0.0)).outcome

    assert play(scene)["reason"] == "no such task"


def test_each_fault_is_claimed_once_and_told():
    async def scene():
        meeting = meeting_of(1)
        claims = [await meeting.claim(number) for number in (3, 4, 3)]
        return claims, (await meeting.news(0.0)).reports

    claims, reports = play(scene)
    assert claims == [True, True, False]
    assert reports == [Report("fault", {"number": 3}), Report("fault", {"number": 4})]


def test_a_fault_waits_for_a_complete_crew_unless_it_has_happened():
    async def scene():
        meeting = meeting_of(2, least=1)
        await joined(meeting, 0)
        alone = await meeting.due([5])
        coming = asyncio.create_task(meeting.join(member(1), NEW))
        await joined(meeting, 0, word=at(2))
        await coming
        complete = await meeting.due([5])
        await meeting.want(3)
        missing = await meeting.due([5])
        await meeting.claim(5)
        return alone, complete, missing, await meeting.due([5]), await meeting.due([5, 6])

    assert play(scene) == (True, False, True, False, True)


def test_reports_come_in_order_and_once():
    async def scene():
        meeting = meeting_of(1)
        await meeting.report([Report("log", {"n": 1}), Report("log", {"n": 2})])
        first = await meeting.news(1.0)
        nothing = await meeting.news(0.0)
        waiting = asyncio.create_task(meeting.news(DEADLINE_S))
        await asyncio.sleep(0)
        await meeting.report([Report("log", {"n": 3})])
        return first, nothing, await asyncio.wait_for(waiting, DEADLINE_S / 2)

    first, nothing, last = play(scene)
    assert [report.data["n"] for report in first.reports] == [1, 2]
    assert (nothing.reports, nothing.outcome) == ([], None)
    assert [report.data["n"] for report in last.reports] == [3]


def test_each_change_is_an_entry_of_the_ledger_with_its_cost():
    async def scene():
        meeting = meeting_of(2, batch_size=32)
        await joined(meeting, 0, 1)
        await meeting.resumed(1, 0, None)
        await meeting.finish("worker 0", {"succeeded": False, "reason": "out of memory", "retry": True})
        await joined(meeting, 1, word=at(7, in_flight=True, failure="worker 0 was lost"))
        await meeting.resumed(2, 7, 0.25)
        return [report.data for report in (await meeting.news(0.0)).reports if report.kind == "elastic"]

    start, loss = play(scene)
    assert (start["cause"], start["workers_before"], start["workers_after"]) == ("start", 0, 2)
    assert loss == {
        "cause": "loss",
        "generation": 2,
        "step": 7,
        "steps_lost": 1,
        "samples_replayed": 32,
        "recovery_seconds": 0.25,
        "workers_before": 2,
        "workers_after": 1,
        "detail": "worker 0 was lost",
    }
