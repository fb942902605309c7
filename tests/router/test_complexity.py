"""The complexity rule: total, bounded, explained; it changes the tier and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.complexity.rule import judge, last_user_text

TIERS = ("small", "medium", "large")


def judged(text, tokens=None, tiers=TIERS, **body):
    request = {"messages": [{"role": "user", "content": text}], **body}
    return judge(request, tokens if tokens is not None else len(text) // 4 + 1, tiers, 0.5, 1500)


def test_easy_and_hard_requests_ask_for_different_tiers():
    assert judged("What is the capital of France?").tier == "small"
    hard = "Prove step by step that the algorithm terminates and analyse its complexity:\n```def f(n): ...```"
    assert judged(hard).tier == "large"
    assert any("code" in reason for reason in judged(hard).reasons)
    assert judged("x", tokens=5000).tier == "large"
    assert judged("x", tiers=("only",)).tier == "only"


def test_only_the_last_user_turn_is_read():
    messages = [
        {"role": "user", "content": "Prove the theorem step by step"},
        {"role": "assistant", "content": "..."},
        {"role": "user", "content": [{"type": "text", "text": "thanks"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    ]
    assert last_user_text({"messages": messages}) == "thanks"
    assert last_user_text({"prompt": ["a", "b"]}) == "a\nb"
    assert last_user_text({"messages": "nonsense"}) == ""
    assert last_user_text({"prompt": ["first", *["x"] * 100_000, "last"]}) == "first\n" + "x\n" * 62 + "last"  # not all of it


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=50) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "text", "type"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from(["messages", "prompt", "input", "tools", "response_format"]), anything), st.integers(0, 10**7)
)
def test_any_body_gets_a_tier_and_a_score_and_the_same_again(body, tokens):
    first = judge(body, tokens, TIERS, 0.5, 1500)
    assert first.tier in TIERS and 0 <= first.score <= 1 and first.reasons
    assert first == judge(body, tokens, TIERS, 0.5, 1500)


@pytest.mark.parametrize("text", ["", "a" * 1_000_000, "?" * 100_000, "```" * 50_000, "\U0001f600" * 1000, "\x00"])
def test_extreme_texts_are_judged(text):
    assert judged(text).tier in TIERS
