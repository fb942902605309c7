"""What the check reads of an answer: the same however the bytes arrive, and nothing lost but what only the check asked for."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.complexity.cascade import Doubt, judge_answer
from router.complexity.held import HeldStream, asked_logprobs, demands_json, read_answer

ENDS = ("\n\n", "\r\n\r\n", "\r\r")


def event(token: str, value: float | None, end: str = "\n\n", finish: str | None = None) -> bytes:
    logprobs = None if value is None else {"content": [{"token": token, "logprob": value}]}
    choice = {"index": 0, "delta": {"content": token}, "logprobs": logprobs, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + end.encode()


def texts_of(data: bytes) -> list[str]:
    found = [line[6:] for line in data.replace(b"\r", b"\n").split(b"\n") if line.startswith(b"data: {")]
    return [choice["delta"]["content"] for one in map(json.loads, found) for choice in one["choices"]]


@given(
    st.lists(st.tuples(st.text(max_size=6), st.floats(-20, 0), st.sampled_from(ENDS)), max_size=12),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.booleans(),
)
def test_a_stream_reads_the_same_in_any_pieces(said, sizes, strip):
    data = b"".join(event(*one) for one in said) + b": a comment\n\ndata: [DONE]\n\n"
    held, out, at, turn = HeldStream(wants_json=False, strip=strip), b"", 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        out += held.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    out += held.finish()
    assert texts_of(out) == [token for token, _, _ in said] and out.endswith(b": a comment\n\ndata: [DONE]\n\n")
    assert held.evidence(complete=True).text == "".join(token for token, _, _ in said)
    assert held.evidence(complete=True).logprobs == tuple(value for _, value, _ in said)
    assert (b'"logprob"' in out) is (bool(said) and not strip)
    assert strip or out == data


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_bytes_that_are_no_events_pass_as_they_are(pieces):
    held = HeldStream(wants_json=False, strip=True)
    out = b"".join(map(held.feed, pieces)) + held.finish()
    assert out == b"".join(pieces)


def test_after_the_check_nothing_is_kept_and_stripping_goes_on():
    held = HeldStream(wants_json=False, strip=True)
    held.feed(event("a", -0.1, finish="stop"))
    assert held.finished and held.tokens == 1
    held.forget()
    assert b'"logprob"' not in held.feed(event("b", -0.2)) and held.evidence(complete=True).text == ""


@given(
    st.one_of(
        st.binary(max_size=80), st.recursive(st.none() | st.text(max_size=5) | st.integers(), st.lists).map(msgspec.json.encode)
    )
)
def test_an_answer_of_any_shape_is_read_or_left_alone(body):
    assert read_answer(body, wants_json=False, strip=True) is None


def test_a_call_of_a_tool_is_an_answer():
    choice = {"message": {"content": None, "tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}
    found = read_answer(msgspec.json.encode({"choices": [choice]}), wants_json=True, strip=True)
    assert found is not None and not judge_answer(found.evidence, Doubt()).escalate
    held = HeldStream(wants_json=True, strip=True)
    held.feed(b"data: " + msgspec.json.encode({"choices": [{"delta": {"tool_calls": [{"id": "1"}]}}]}) + b"\n\n")
    assert not judge_answer(held.evidence(complete=True), Doubt()).escalate


def test_what_a_request_asks_for():
    assert demands_json({"response_format": {"type": "json_schema"}}) and demands_json({"guided_json": {"type": "object"}})
    assert not demands_json({"response_format": {"type": "text"}}) and not demands_json({"response_format": "json_object"})
    assert asked_logprobs({"logprobs": 0}) and asked_logprobs({"logprobs": True})
    assert not asked_logprobs({"logprobs": False}) and not asked_logprobs({"logprobs": None}) and not asked_logprobs({})
