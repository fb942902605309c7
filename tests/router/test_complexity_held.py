"""What the check reads of an answer: the same however the bytes arrive, and nothing lost but what only the check asked for."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.complexity.cascade import TOOL_CALL, Doubt, judge_answer, plain_answer
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


def called(*calls: tuple[str, object], older: bool = False) -> str:
    """What is compared of an answer that makes these calls."""
    made = [{"id": str(place), "function": {"name": name, "arguments": said}} for place, (name, said) in enumerate(calls)]
    message = {"function_call": made[0]["function"]} if older else {"tool_calls": made}
    found = read_answer(msgspec.json.encode({"choices": [{"message": message}]}), wants_json=False, strip=False)
    assert found is not None
    return plain_answer(found.evidence.text)


def test_calls_of_tools_are_compared_by_name_and_arguments():
    one = called(("weather", '{"city": "Paris", "days": 3}'))
    assert one == called(("weather", '{ "days": 3.0, "city":"Paris"}')) == called(("weather", {"city": "Paris", "days": 3}))
    assert one == called(("weather", '{"city": "Paris", "days": 3}'), older=True)
    others = [
        called(("weather", '{"city": "paris", "days": 3}')),
        called(("weather", '{"city": "Paris", "days": 4}')),
        called(("news", '{"city": "Paris", "days": 3}')),
        called(("weather", '{"city": "Paris", "days": 3')),
        called(("weather", '{"city": "Paris", "days": 3}'), ("news", "{}")),
        called(("weather", "")),
        called(("ask", '{"answer": 1}')),
        called(("ask", '{"other answer": 1}')),
    ]
    assert len({one, *others}) == len(others) + 1
    assert called(("now", "")) == called(("now", "{}")) == called(("now", None))


@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=5), st.dictionaries(st.text(max_size=3), st.integers())), min_size=1),
    st.data(),
)
def test_calls_in_pieces_compare_like_whole_ones(calls, data):
    held = HeldStream(wants_json=True, strip=True)
    for place, (name, said) in enumerate(calls):
        written = json.dumps(said)
        cut = data.draw(st.integers(0, len(written)))
        for function in ({"name": name, "arguments": ""}, {"arguments": written[:cut]}, {"arguments": written[cut:]}):
            piece = {"choices": [{"delta": {"tool_calls": [{"index": place, "function": function}]}}]}
            held.feed(b"data: " + msgspec.json.encode(piece) + b"\n\n")
    assert plain_answer(held.evidence(complete=True).text) == called(*((name, json.dumps(said)) for name, said in calls))


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5) | st.integers(), lambda s: st.lists(s) | st.dictionaries(
    st.sampled_from(["function", "custom", "name", "arguments", "index", "input"]), s)))  # fmt: skip
def test_calls_of_any_shape_are_read(calls):
    for message in ({"tool_calls": calls}, {"function_call": calls}, {"tool_calls": [calls]}):
        body = msgspec.json.encode({"choices": [{"message": message}]})
        found = read_answer(body, wants_json=True, strip=False)
        assert found is not None and found.evidence.text.startswith(TOOL_CALL) is not found.evidence.wants_json


def test_what_a_request_asks_for():
    assert demands_json({"response_format": {"type": "json_schema"}}) and demands_json({"guided_json": {"type": "object"}})
    assert not demands_json({"response_format": {"type": "text"}}) and not demands_json({"response_format": "json_object"})
    assert asked_logprobs({"logprobs": 0}) and asked_logprobs({"logprobs": True})
    assert not asked_logprobs({"logprobs": False}) and not asked_logprobs({"logprobs": None}) and not asked_logprobs({})
