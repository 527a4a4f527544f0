"""Reports travel in bundles, in order, and each step's once."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from sampa.workers.reports import Once, Report, Reporter


def reporter(every_s=1000.0):
    sent, confirmed = [], []

    def send(bundle):
        sent.append(list(bundle))
        return len(sent)

    return Reporter(send, confirmed.append, every_s), sent, confirmed


def test_reports_wait_for_their_bundle_unless_they_are_urgent():
    made, sent, _ = reporter()
    made.report("metrics", {"step": 1})
    made.report("metrics", {"step": 2})
    assert sent == []
    made.report("metrics", {"step": 3}, at_once=True)
    assert [report.data["step"] for report in sent[0]] == [1, 2, 3]


def test_settling_waits_until_the_last_bundle_has_arrived():
    made, sent, confirmed = reporter()
    made.report("log", {"line": "last words"})
    made.settle()
    made.settle()
    assert sent == [[Report("log", {"line": "last words"})]]
    assert confirmed == [1]


def test_whole_lines_that_are_printed_become_log_reports(capsys):
    made, sent, _ = reporter()
    with made.capturing_output("worker 1"):
        print("one", end="")
        print(" line")
        print("an error", file=sys.stderr)
        print("\n")
    made.settle()
    assert [report.data for bundle in sent for report in bundle] == [
        {"worker": "worker 1", "line": "one line"},
        {"worker": "worker 1", "line": "an error"},
    ]
    assert capsys.readouterr().out.startswith("one line")


def test_a_step_told_again_is_dropped():
    once = Once()
    told = [
        ("task", {"steps": 9}),
        ("metrics", {"step": 1}),
        ("metrics", {"step": 10}),
        ("evaluation", {"step": 10, "split": "test"}),
        ("evaluation", {"step": 10, "split": "validation"}),
        ("checkpoint", {"step": 10, "path": "a"}),
        ("log", {"line": "x"}),
    ]
    assert all(once.is_new(*report) for report in told)
    assert [once.is_new(*report) for report in told] == [False] * 6 + [True]
    assert once.is_new("metrics", {"step": 20})
    assert once.reached == 20


def test_urgent_reports_take_along_what_printing_them_reports():
    """What a sending prints is reported too, not lost, and does not send again within itself."""
    sent = []

    def send(bundle):
        sent.append([report.kind for report in bundle])
        if len(sent) == 1:
            print("sent")

    made = Reporter(send, lambda receipt: None, 1000.0)
    with made.capturing_output("worker 1"):
        made.report("metrics", {"step": 1}, at_once=True)
    made.settle()
    assert sent == [["metrics"], ["log"]]


def test_what_is_printed_is_sent_even_if_no_report_follows():
    arrived = threading.Event()
    made = Reporter(lambda bundle: arrived.set(), lambda receipt: None, 0.01)
    with made.capturing_output("worker 1"):
        print("the last words before a long silence")
        assert arrived.wait(20)


def test_reports_of_several_threads_arrive_in_the_order_of_each():
    made, sent, _ = reporter(every_s=0.0)

    def tell(kind):
        for step in range(200):
            made.report(kind, {"step": step}, at_once=step % 7 == 0)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(tell, ["metrics", "evaluation", "checkpoint"]))
    made.settle()
    told = [report for bundle in sent for report in bundle]
    for kind in ("metrics", "evaluation", "checkpoint"):
        assert [report.data["step"] for report in told if report.kind == kind] == [*range(200)]


def test_each_split_is_a_series_of_its_own_and_what_has_no_steps_always_passes():
    once = Once()
    assert once.is_new("evaluation", {"step": 10, "split": "test"})
    assert once.is_new("evaluation", {"step": 8, "split": "validation"})
    assert not once.is_new("evaluation", {"step": 9, "split": "test"})
    for kind in ("log", "elastic", "fault"):
        assert once.is_new(kind, {"step": 1})
        assert once.is_new(kind, {"step": 1})
    assert once.reached == 0
