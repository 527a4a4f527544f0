"""Reports travel in bundles, in order, and each step's once."""

import sys

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
