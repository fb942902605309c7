"""The arithmetic of the cascade's demonstration: what is right, at which cost, at equal cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _cascade.measure import Asked, best_threshold, cascaded, evenly, lead_interval, paired, routed_at
from _cascade.questions import Question, is_training, questions

Q = Question("What is 1 + 1?", "2")
RIGHT = Asked(Q, True, True, 1.0, 10.0, (-0.1, -0.1), 0.3)
UNSURE = Asked(Q, False, True, 1.0, 10.0, (-0.1, -3.0), 0.1)
LOST = Asked(Q, False, False, 1.0, 10.0, (-0.2, -0.4), 0.2)


def test_the_cascade_pays_for_both_and_a_prompt_router_for_one():
    found = cascaded([RIGHT, UNSURE, LOST], -1.0)
    assert (found.right, found.usd, found.large) == pytest.approx((2 / 3, 13 / 3, 1 / 3))
    assert cascaded([RIGHT, UNSURE, LOST], -1.0, tokens=1).large == 0
    by_gain = routed_at([RIGHT, UNSURE, LOST], [0.3, 0.1, 0.2], found.usd)
    assert (by_gain.right, by_gain.usd) == pytest.approx((1 / 3, 13 / 3)), (
        "its money goes to what was right anyway, and to what is lost"
    )
    assert routed_at([RIGHT, UNSURE, LOST], [0.0, 1.0, 0.0], found.usd).right == pytest.approx(2 / 3)
    assert routed_at([RIGHT, UNSURE, LOST], [0.0, 1.0, 0.0], 100.0).large == 1.0
    assert evenly([RIGHT, UNSURE, LOST], 5.5).right == pytest.approx(0.5)


def test_the_threshold_is_the_one_with_the_largest_lead_over_lots():
    assert -1.55 < best_threshold([RIGHT, UNSURE, LOST]) <= -0.3


def test_pairs_are_counted_at_no_less_cost_for_the_router():
    seen_through = Asked(Q, False, True, 1.0, 10.0, (-3.0,), 0.0)
    kept = Asked(Q, True, True, 1.0, 10.0, (-0.1,), 0.5)
    ours, theirs, chance = paired([seen_through] * 10 + [kept] * 10, -1.0)
    assert (ours, theirs) == (8, 0), "100 more than small answers cost: 9 each for the ten it likes better, and for two others"
    assert chance == pytest.approx(2 / 2**8)
    assert paired([kept] * 5, -1.0) == (0, 0, 1.0)
    assert paired([UNSURE], -1.0) == (0, 0, 1.0), "what the router cannot pay in full it is given"


def test_the_interval_of_a_lead_that_every_draw_has_lies_above_nothing():
    seen_through = Asked(Q, False, True, 1.0, 10.0, (-3.0,), 0.0)
    kept = Asked(Q, True, True, 1.0, 10.0, (-0.1,), 0.5)
    low, high = lead_interval([seen_through] * 40 + [kept] * 40, -1.0, rounds=200)
    assert 0.2 < low < high < 0.8
    assert lead_interval([LOST] * 20, -1.0, rounds=50) == (0.0, 0.0)


def test_answers_are_words_of_their_own():
    assert Q.is_right("The answer is 2.") and not Q.is_right("It is 12.")
    larger = Question("Which number is larger, 3 or 7?", "7", r"\d+")
    assert (
        larger.is_right("7 is larger than 3.") and not larger.is_right("3 is larger than 7.") and not larger.is_right("Neither.")
    )


def test_questions_do_not_give_their_answers_away_and_fall_into_two_halves():
    every = questions()
    assert len({one.text for one in every}) == len(every) > 1000
    given = [one for one in every if not one.among and one.kind != "copying" and one.is_right(one.text)]
    assert not given
    assert all(one.is_right(one.text.rsplit(" ", 1)[1]) for one in every if one.kind == "copying")
    assert every == questions(), "the same on every machine"
    kinds = {one.kind for one in every}
    assert {one.kind for one in every if is_training(one)} == {one.kind for one in every if not is_training(one)} == kinds
    assert abs(sum(map(is_training, every)) / len(every) - 0.5) < 0.05
    assert {one.kind for one in every[: len(every) // 4]} == kinds
