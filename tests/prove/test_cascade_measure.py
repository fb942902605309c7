"""The arithmetic of the cascade's demonstration: what is right, at which cost, at equal cost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _cascade.measure import Asked, best_threshold, cascaded, evenly, routed_at
from _cascade.questions import Question, questions

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


def test_answers_are_words_of_their_own():
    assert (
        Q.is_right("The answer is 2.")
        and not Q.is_right("It is 12.")
        and len({one.text for one in questions()}) == len(questions()) > 120
    )
