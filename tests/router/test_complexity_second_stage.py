"""Cascade, voting, feedback, experiments: pure functions over answers and counts."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.complexity.cascade import (
    Doubt,
    Evidence,
    agreement,
    check_is_due,
    fits_json,
    is_refusal,
    judge_answer,
    plain_answer,
    token_logprobs,
)
from router.complexity.experiment import Branch, Trial, assign, is_in
from router.complexity.feedback import Bandit, FeedbackError, context_of, draw_tier, learn, read_rating
from router.complexity.vote import Ballot, count_votes, wants_vote


def test_a_sure_answer_stands_and_an_unsure_one_is_escalated():
    assert not judge_answer(Evidence((-0.1, -0.2), "Paris", "stop"), Doubt()).escalate
    unsure = judge_answer(Evidence((-1.0, -2.0), "Paris", "stop"), Doubt())
    assert unsure.escalate and unsure.confidence == pytest.approx(math.exp(-1.5))
    assert judge_answer(Evidence((-0.1, -9.0), "Paris"), Doubt(mean_logprob=None, min_logprob=-5)).escalate
    assert judge_answer(Evidence((), "I'm sorry, I can't help with that."), Doubt()).escalate
    assert judge_answer(Evidence((), " "), Doubt()).escalate
    assert judge_answer(Evidence((), "abc", "length"), Doubt()).escalate
    assert judge_answer(Evidence((), "{a", "stop", wants_json=True), Doubt()).escalate
    assert not judge_answer(Evidence((), '{"a": 1}', "stop", wants_json=True), Doubt()).escalate
    assert not judge_answer(Evidence((), "", complete=False), Doubt()).escalate
    assert judge_answer(Evidence((-math.inf, math.nan), "x"), Doubt()).escalate


@given(st.lists(st.floats(), max_size=20), st.text(max_size=50), st.booleans(), st.booleans())
def test_any_answer_gets_a_verdict(logprobs, text, wants_json, complete):
    found = judge_answer(Evidence(tuple(logprobs), text, "stop", wants_json, complete), Doubt())
    assert isinstance(found.escalate, bool) and found.reason


def test_a_stream_is_held_back_with_a_bound():
    doubt = Doubt(hold_tokens=8, hold_s=1.0)
    assert not check_is_due(7, 0.9, False, doubt)
    assert check_is_due(8, 0, False, doubt) and check_is_due(0, 1.0, False, doubt) and check_is_due(0, 0, True, doubt)


def test_refusals_json_and_logprobs():
    assert is_refusal("Es tut mir leid, das weiß ich nicht.") and not is_refusal("Sorry states of affairs are common.")
    assert fits_json('```json\n{"a": 1}\n```', True) and fits_json('{"a', False) and not fits_json("Sure! {", False)
    assert not fits_json("[" * 100_000, True)
    assert token_logprobs({"logprobs": {"content": [{"logprob": -0.5}, {"logprob": None}, 3]}}) == (-0.5,)
    assert token_logprobs({"logprobs": {"token_logprobs": [None, -1]}}) == (-1.0,)
    assert token_logprobs({}) == token_logprobs(None) == ()


@pytest.mark.parametrize("value", [10**400, -(10**400), "NaN", "-0.1", True, [], math.inf])
def test_a_logprob_that_is_no_number_is_no_sure_token(value):
    for found in ({"content": [{"logprob": value}]}, {"token_logprobs": [value]}):
        logprobs = token_logprobs({"logprobs": found})
        assert len(logprobs) == 1 and judge_answer(Evidence(logprobs, "Paris", "stop"), Doubt()).escalate


def test_agreement_and_votes():
    assert agreement(["Answer: 12", "the answer is 12.", "Answer: 13"]) == ("Answer: 12", pytest.approx(2 / 3))
    assert agreement([]) == ("", 0.0)
    won = count_votes([Ballot("a", "Answer: 4"), Ballot("b", "\\boxed{5}", 2), Ballot("c", "The answer is 5.", 1)])
    assert won.winner == 1 and won.support == pytest.approx(2 / 3)
    alone = count_votes([Ballot("a", "x", 0), Ballot("b", "y", 3), Ballot("c", "", 9), Ballot("d", "x", 9, failed=True)])
    assert alone.winner == 1 and "no two" in alone.reason
    assert count_votes([]).winner == -1 and wants_vote(b" Vote ") and not wants_vote(b"")


@pytest.mark.parametrize(("one", "other"), [
    ("```python\nreturn a + b\n```", "```python\nreturn a - b\n```"),
    ("x:\n```\na = 1\nreturn a", "x:\n```\na = 2\nreturn a"),
    ('{\n  "total": 3\n}', '{\n  "total": 4\n}'),
    ('So:\n{\n  "total": 3\n}', 'So:\n{\n  "total": 4\n}'),
    ('[{"answer": 3, "x": 1}]', '[{"answer": 4, "x": 1}]'),
    ('{"a": 1e400}', '{"a": 1e500}'),
    ("<p>1</p>\n</html>", "<p>2</p>\n</html>"),
    ("\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{1}{3}}"),
    ("\\boxed{\\frac{1}{2}", "\\boxed{\\frac{1}{3}"),
    ("\\boxed{\\{1, \\{2\\}, 3\\}}", "\\boxed{\\{1, \\{2\\}, 4\\}}"),
    ("Answer: A\n```", "Answer: B\n```"),
    ("Paris. That is my answer.", "Lyon. That is my answer."),
    (".5", "5"),
    ("...", "***"),
    ("[" * 5000 + "1", "[" * 5000 + "2"),
])  # fmt: skip
def test_answers_that_only_end_alike_do_not_agree(one, other):
    assert agreement([one, other]) == (one, 0.5)
    assert agreement([one, one]) == (one, 1.0)
    assert "no two" in count_votes([Ballot("a", one), Ballot("b", other)]).reason


@pytest.mark.parametrize(("one", "other"), [
    ('{"a": 1, "b": [2.0]}', '```json\n{\n  "b": [2],\n  "a": 1e0\n}\n```'),
    ("So \\boxed{\\frac{1}{2}}.", "It follows that $\\boxed{\\frac{1}{2}}$"),
    ("```\n42\n```", "The answer is **42**."),
    ("Let me think.\nparis", "Answer: Paris"),
])  # fmt: skip
def test_answers_that_are_only_written_differently_agree(one, other):
    assert agreement([one, other]) == (one, 1.0)


@given(st.text(max_size=60) | st.from_regex(r"(\\boxed|[{}\[\]`\\\n\"a1:,.])*", fullmatch=True))
def test_any_answer_agrees_with_itself_and_says_something(text):
    assert agreement([text, text]) == (text, 1.0)
    assert bool(plain_answer(text)) is bool(text.strip())


@pytest.mark.parametrize("filler", [" ", "\n", "```", "{", "answer ", "\\boxed{"])
def test_an_answer_that_repeats_itself_without_end_is_read_in_one_go(filler):
    long = "{" + filler * 300_000 + "x"  # minutes, where a search begins anew at every character
    assert not fits_json(long, True) and plain_answer(long) == plain_answer(long + " ")


def test_feedback_is_read_strictly_and_takes_no_text():
    assert read_rating({"request_id": "r", "score": 1}).weight == 1.0
    assert read_rating({"request_id": "r", "signal": "retry"}).score < 0.5
    for body in (
        None,
        {},
        {"request_id": "", "score": 1},
        {"request_id": "r"},
        {"request_id": "r", "score": True},
        {"request_id": "r", "score": 2},
        {"request_id": "r", "score": math.nan},
        {"request_id": "r", "signal": "great"},
        {"request_id": "r", "score": 1, "comment": "text"},
        {"request_id": "r", "score": 1, "signal": "retry"},
    ):
        with pytest.raises(FeedbackError):
            read_rating(body)


def test_the_bandit_explores_its_floor_and_learns_what_is_clear():
    dice = random.Random(0)
    context = context_of("maths", 0.07)
    drawn = [draw_tier(Bandit(), context, 0, 2, 0.1, dice.random(), (0.0, 0.05)) for _ in range(20_000)]
    assert abs(sum(d.explored for d in drawn) / 20_000 - 0.1) < 0.01
    assert abs(sum(d.tier == 1 for d in drawn) / 20_000 - 0.05) < 0.01
    assert drawn[0].propensity == pytest.approx(0.95)
    bandit = Bandit()
    for _ in range(200):
        bandit = learn(bandit, context, 0, 2, read_rating({"request_id": "r", "score": 0.1}))
        bandit = learn(bandit, context, 1, 2, read_rating({"request_id": "r", "score": 0.9}))
    assert draw_tier(bandit, context, 0, 2, 0.0, 0.5, (0.0, 0.05)).tier == 1
    assert draw_tier(bandit, context_of("law", 0.07), 0, 2, 0.0, 0.5, (0.0, 0.05)).tier == 0
    for i in range(2000):
        bandit = learn(bandit, f"c{i}", 0, 2, read_rating({"request_id": "r", "score": 1}))
    assert len(bandit.arms) <= 512


def test_experiments_are_assigned_by_hash_evenly_and_independently():
    a, b = Trial("a", 0.2), Trial("b", 0.2, shadow=True)
    units = [f"conversation-{i}" for i in range(5000)]
    inside = {unit for unit in units if is_in(a, unit)}
    assert abs(len(inside) / 5000 - 0.2) < 0.02
    assert abs(sum(is_in(b, unit) for unit in inside) / len(inside) - 0.2) < 0.05
    assert inside <= {unit for unit in units if is_in(Trial("a", 0.3), unit)}
    both = (Branch(a, None), Branch(b, None))
    assert assign(both, "\ud800") == assign(both, "\ud800")
