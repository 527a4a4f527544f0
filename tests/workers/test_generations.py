"""The membership protocol, turn by turn; see ``test_storms`` for whole runs."""

import pytest
from sampa.workers.generations import SETTLE_S, Generations, Phase
from sampa.workers.pairs import Member
from sampa.workers.words import Admit, Change, CutOff, Farewell, Happened, Lost, Place, Stopped, Word

PATIENCE_S = 10.0


class Script:
    """A protocol with a clock that is set by hand; each turn returns the effects."""

    def __init__(self, wanted, least=1, **how):
        self.protocol, self.now, self.effects = Generations(wanted, least, **how), 0.0, []

    def __getattr__(self, name):
        def turn(*values):
            getattr(self.protocol, name)(*values, self.now)
            effects, self.protocol.effects = self.protocol.effects, []
            self.effects += effects
            return effects

        return turn

    def come(self, name, step=None, *, settled=True, node="a", **word):
        place = None if step is None else Place(step, settled)
        return self.join(Member(name, node, ""), Word(place, patience_s=PATIENCE_S, **word))

    def after(self, seconds):
        self.now += seconds
        return self.tick()

    def beats(self, step, *names):
        for name in names:
            self.beat(name, step, PATIENCE_S)

    @property
    def ledger(self):
        return [effect.data for effect in self.effects if isinstance(effect, Happened)]


def started(*names, step=0, **how):
    """Return a script whose generation 1 has these members and has made its first step from ``step``."""
    script = Script(len(names), **how)
    for name in names:
        script.come(name)
    script.resumed(1, step, None)
    script.beats(step + 1, *names)
    return script


def view_in(effects):
    """Return the names in the view that was admitted, its source's name, and who is behind."""
    (view,) = [effect.view for effect in effects if isinstance(effect, Admit)]
    names = [member.name for member in view.members]
    return names, None if view.source is None else names[view.source], [names[rank] for rank in view.behind]


# How generations form


def test_all_who_are_wanted_begin_at_once():
    script = Script(2)
    assert script.come("a") == []
    assert view_in(script.come("b")) == (["a", "b"], None, [])


def test_those_who_are_enough_wait_a_moment_for_one_more():
    script = Script(3, 2)
    script.come("a")
    assert script.after(10 * SETTLE_S) == []
    script.come("b")
    assert script.after(0.5 * SETTLE_S) == []
    assert view_in(script.after(0.6 * SETTLE_S))[0] == ["a", "b"]


def test_a_smaller_wish_in_between_does_not_change_how_many_are_enough():
    script = Script(4, 2)
    script.want(1)
    script.want(4)
    script.come("a")
    assert script.after(10 * SETTLE_S) == []


def test_the_survivor_goes_on_at_once_and_the_ledger_says_what_it_cost():
    script = started("a", "b", batch_size=8)
    script.now = 5.0
    assert script.come("a", 7, in_flight=True, failure="b was lost") == []
    assert script.protocol.phase == Phase.BROKEN
    script.now = 5.2
    assert view_in(script.gone("b")) == (["a"], "a", [])
    script.resumed(2, 7, 0.4)
    assert script.ledger[-1] == {
        "cause": "loss",
        "generation": 2,
        "step": 7,
        "steps_lost": 1,
        "samples_replayed": 8,
        "recovery_seconds": 0.4,
        "workers_before": 2,
        "workers_after": 1,
        "detail": "b was lost",
    }


@pytest.mark.parametrize(("ahead", "settled"), [(8, False), (7, True)])
def test_the_one_ahead_hands_over(ahead, settled):
    script = started("a", "b", "c")
    script.come("b", 7, settled=False, in_flight=True, failure="c was lost")
    script.come("a", ahead, settled=settled, failure="c was lost")
    assert view_in(script.gone("c")) == (["a", "b"], "a", ["b"])


def test_newcomers_come_in_at_a_boundary_to_which_the_members_are_called_once():
    script = started("a", "b")
    script.want(3)
    assert script.come("c") == [Change(1)]
    assert script.after(1.0) == []
    script.come("a", 5)
    assert script.protocol.phase == Phase.CHANGING
    assert view_in(script.come("b", 5)) == (["a", "b", "c"], "a", ["c"])
    script.resumed(2, 5, None)
    assert len(script.ledger) == 1, "a newcomer does not know how long the others stood still"
    script.resumed(2, 5, 0.1)
    assert script.ledger[-1]["cause"] == "join"


def test_a_newcomer_for_whom_there_is_no_place_is_not_kept_waiting():
    assert started("a").come("b") == [Farewell("b")]


def test_a_newcomer_on_a_node_that_is_about_to_go_is_of_no_use():
    script = started("a", "b")
    script.drain(["x"])
    script.want(3)
    assert script.come("c", node="x") == [Farewell("c")]


def test_who_is_not_wanted_any_more_leaves_at_a_boundary():
    script = started("a", "b")
    assert script.want(1) == [Change(1)]
    script.come("b", 5)
    effects = script.come("a", 5)
    assert Farewell("a") in effects or Farewell("b") in effects
    assert len(view_in(effects)[0]) == 1
    script.resumed(2, 5, 0.1)
    assert script.ledger[-1]["cause"] == "leave"


def test_of_those_who_must_choose_the_one_ahead_stays():
    script = started("a", "b")
    script.want(1)
    script.come("a", 7, in_flight=True, failure="b was lost")
    assert view_in(script.come("b", 8, failure="a was late")) == (["b"], "b", [])


def test_a_change_that_is_not_wanted_any_more_changes_nothing():
    script = started("a", "b")
    script.want(1)
    script.want(2)
    script.come("a", 5)
    assert view_in(script.come("b", 5))[0] == ["a", "b"]
    script.resumed(2, 5, 0.1)
    assert script.ledger[-1]["cause"] == "change"


# Nodes that are about to go


def test_a_member_whose_node_is_about_to_go_hands_over_and_leaves():
    script = started("a")
    assert script.drain(["a"]) == [Change(1)], "to save, if nobody comes"
    assert script.come("b", node="x") == []
    effects = script.come("a", 5)
    assert view_in(effects) == (["a", "b"], "a", ["b"])
    assert Change(2) in effects, "one more than wanted"
    script.come("a", 6)
    effects = script.come("b", 6, node="x")
    assert view_in(effects) == (["b"], "b", [])
    assert Farewell("a") in effects
    script.resumed(3, 6, 0.1)
    assert [entry["cause"] for entry in script.ledger] == ["start", "join", "preemption"]


def test_with_nobody_to_hand_over_to_a_checkpoint_is_written_each_time():
    script = started("a")
    for generation in (2, 3):
        assert script.drain(["a"]) == [Change(generation - 1)]
        (view,) = [effect.view for effect in script.come("a", 5) if isinstance(effect, Admit)]
        assert view.save
        assert script.after(1.0) == [], "once is enough"
        assert script.drain([]) == []


# Who is late


def test_the_one_found_late_is_cut_off_soon_and_answered_no_more():
    script = started("a", "b")
    script.come("a", 7, in_flight=True, failure="b was late", late="b")
    assert script.after(0.1 * PATIENCE_S) == []
    script.beats(7, "b")
    effects = script.after(0.15 * PATIENCE_S)
    assert effects[:2] == [CutOff("b", "b was late"), Lost("b")]
    assert view_in(effects)[0] == ["a"]
    assert script.come("b", 7, failure="a was lost") == [Farewell("b")]
    assert script.gone("b") == []


def test_the_accused_who_waited_for_a_third_is_not_cut_off():
    """In the second of an exchange's trades a waits for b, which waits for c in the first."""
    script = started("a", "b", "c")
    script.come("a", 7, in_flight=True, failure="b was late", late="b")
    assert script.after(0.15 * PATIENCE_S) == []
    script.come("b", 7, in_flight=True, failure="c was late", late="c")
    assert script.after(0.15 * PATIENCE_S) == []
    effects = script.after(0.1 * PATIENCE_S)
    assert CutOff("c", "c was late") in effects
    assert view_in(effects)[0] == ["a", "b"]


def test_who_gives_no_sign_of_life_is_cut_off():
    script = started("a", "b")
    script.now = 0.5 * PATIENCE_S
    script.beats(3, "a")
    effects = script.after(0.5 * PATIENCE_S)
    assert [effect.name for effect in effects if isinstance(effect, CutOff)] == ["b"]


def test_who_shows_life_and_does_not_come_is_cut_off():
    script = started("a", "b")
    script.come("a", 7, failure="the group did not form", late="a worker")
    for _ in range(11):
        script.now += 0.1 * PATIENCE_S
        script.beats(7, "b")
        assert script.after(0.0) == []
    effects = script.after(0.1 * PATIENCE_S)
    assert [effect.name for effect in effects if isinstance(effect, CutOff)] == ["b"]


def test_who_is_gone_is_answered_no_more():
    script = started("a", "b")
    script.gone("b")
    assert script.come("b", 8) == [Farewell("b")]
    assert script.come("c") == [Change(1)], "somebody else takes its place"


# The end


def test_a_stop_saves_the_newest_state_once():
    script = started("a", "b")
    assert script.stop("enough") == [Change(1)]
    script.come("a", 5, in_flight=True, failure="b was late")
    assert script.come("b", 6) == [Farewell("b", save=True)]
    assert script.protocol.phase == Phase.SAVING
    assert script.saved("a", 5) == []
    effects = script.saved("b", 6)
    assert effects == [Farewell("a"), Stopped(6, "enough")]
    assert script.come("c") == [Farewell("c")]


def test_a_saver_that_dies_is_replaced_by_the_next():
    script = started("a", "b")
    script.stop("enough")
    script.come("a", 6)
    (farewell,) = script.come("b", 6)
    other = "b" if farewell.name == "a" else "a"
    assert script.gone(farewell.name) == [Lost(farewell.name), Farewell(other, save=True)]
    assert Stopped(6, "enough") in script.saved(other, 6)


def test_a_saver_that_was_once_found_late_is_given_its_time():
    script = started("a", "b")
    script.stop("enough")
    script.come("a", 5, in_flight=True, failure="b was late", late="b")
    assert script.come("b", 6) == [Farewell("b", save=True)]
    script.now += 0.9 * PATIENCE_S
    script.beats(6, "b")
    assert script.after(0.5 * PATIENCE_S) == []


def test_a_stop_before_anybody_has_a_state_saves_nothing():
    script = Script(2)
    script.come("a")
    assert script.stop("enough") == [Farewell("a"), Stopped(None, "enough")]


# What the ledger says when nobody is left


def alone_lost_at(step):
    """Return a script whose only member has committed ``step`` steps, and is gone."""
    script = started("a", batch_size=8)
    script.beats(step, "a")
    script.now = 2.0
    script.gone("a")
    return script


def test_the_steps_since_the_checkpoint_are_lost():
    script = alone_lost_at(7)
    script.come("b")
    script.now = 3.5
    script.resumed(2, 4, None)
    entry = script.ledger[-1]
    assert (entry["cause"], entry["step"], entry["steps_lost"], entry["samples_replayed"]) == ("loss", 4, 3, 24)
    assert (entry["recovery_seconds"], entry["detail"]) == (1.5, "a ended")


def test_a_sign_of_life_that_overtakes_the_first_commit_is_no_loss():
    script = alone_lost_at(7)
    script.come("b")
    script.beats(8, "b")
    script.resumed(2, 7, None)
    assert script.ledger[-1]["steps_lost"] == 0


def test_no_step_is_counted_as_lost_twice():
    script = alone_lost_at(7)
    script.come("b")
    script.resumed(2, 4, None)
    script.beats(5, "b")
    script.gone("b")
    script.come("c")
    script.resumed(3, 4, None)
    assert [entry["steps_lost"] for entry in script.ledger] == [0, 3, 1]


def test_a_generation_that_never_began_leaves_its_loss_to_the_next():
    script = alone_lost_at(7)
    script.come("b")
    script.gone("b")
    script.come("c")
    script.resumed(3, 4, None)
    assert [(entry["step"], entry["steps_lost"]) for entry in script.ledger] == [(0, 0), (7, 0), (4, 3)]


def test_survivors_of_a_generation_that_told_nothing_tell_where_it_began():
    script = Script(2, reached=7)
    script.come("a")
    script.come("b")
    script.come("a", 4, in_flight=True, failure="b was lost")
    script.gone("b")
    script.resumed(2, 4, 0.1)
    assert [(entry["cause"], entry["step"], entry["steps_lost"]) for entry in script.ledger] == [
        ("resume", 4, 3),
        ("loss", 4, 1),
    ]


def test_a_commit_of_one_who_could_not_hand_over_is_lost():
    script = started("a", "b", "c")
    script.come("a", 8, failure="c was lost")
    script.come("b", 7, in_flight=True, failure="c was lost")
    script.gone("c")
    script.come("b", 7, failure="a was lost")
    assert view_in(script.gone("a")) == (["b"], "b", [])
    script.resumed(3, 7, 0.1)
    assert [entry["steps_lost"] for entry in script.ledger] == [0, 0, 1]
