"""Events pass whole and unchanged, however the bytes are cut; usage is taken from them without reading their text."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.events import MAX_EVENT_BYTES, EventStream, EventTooLarge
from router.wire.stream_ends import RESPONSES

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def event(data: object, ending: str = "\n\n") -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}{ending}".encode()


texts = st.text(max_size=20) | st.sampled_from(
    ['"usage"', '\n\n"usage":{"prompt_tokens":9}', "\r\n\r\n", "data: [DONE]", "\x85\u2028"]
)
endings = st.sampled_from(["\n\n", "\r\n\r\n", "\r\r"])


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(texts, max_size=6), st.lists(st.integers(0, 10**6), max_size=30), endings, st.booleans())
def test_any_cut_gives_the_same_events_less_the_usage_one(parts, places, ending, keep):
    chat = b"".join(event({"choices": [{"delta": {"content": text}}], "usage": None}, ending) for text in parts)
    usage, done = event({"choices": [], "usage": USAGE}, ending), f"data: [DONE]{ending}".encode()
    events = EventStream(keep_usage=keep)
    passed = b"".join(events.feed(piece) for piece in cut(chat + usage + done, places)) + events.finish()
    assert passed == chat + (usage if keep else b"") + done
    assert json.loads(events.usage)["usage"] == USAGE and events.done


@given(st.lists(texts, min_size=1, max_size=4), st.integers(1, 30))
def test_only_whole_events_pass_and_the_rest_waits(parts, missing):
    stream = b"".join(event({"choices": [{"text": text}]}) for text in parts)
    events = EventStream(keep_usage=False)
    passed = events.feed(stream[: -min(missing, len(stream))])
    assert stream.startswith(passed) and (passed == b"" or passed.endswith(b"\n\n"))
    assert passed + events.finish() == stream[: -min(missing, len(stream))]


def test_usage_beside_choices_is_recorded_and_stays():
    both = event({"choices": [{"delta": {}}], "usage": USAGE})
    events = EventStream(keep_usage=False)
    assert events.feed(both) == both and b"prompt_tokens" in events.usage


def test_anthropic_and_responses_usage_is_found_inside():
    for data in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 1}}},
        {"response": {"usage": {"input_tokens": 1}}},
    ):
        events = EventStream(keep_usage=True)
        assert events.feed(event(data)) and b"input_tokens" in events.usage


def test_what_anthropics_stream_began_with_is_not_forgotten():
    """Its last event may count the answer alone, as llama.cpp's does."""
    events, began = EventStream(keep_usage=True), {"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1}
    events.feed(event({"type": "message_start", "message": {"usage": began}}))
    events.feed(event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 30}}))
    assert json.loads(events.usage)["usage"] == {**began, "output_tokens": 30}
    events.feed(event({"type": "message_delta", "usage": {"input_tokens": 8, "output_tokens": 31}}))
    assert json.loads(events.usage)["usage"] == {"input_tokens": 8, "output_tokens": 31}


def test_what_is_no_json_passes_and_an_event_without_end_does_not():
    events = EventStream(keep_usage=False)
    assert events.feed(b': comment "usage"\n\ndata: {"usage"\n\n') == b': comment "usage"\n\ndata: {"usage"\n\n'
    with pytest.raises(EventTooLarge):
        events.feed(b"x" * (MAX_EVENT_BYTES + 1))


@given(st.integers(1, 40), st.lists(st.integers(0, 10**6), max_size=30), endings)
def test_the_last_event_of_responses_may_have_much_of_the_answer_in_it(kilobytes, places, ending):
    answer = {"error": None, "output": [{"text": '"usage" ' * 128 * kilobytes}], "usage": {"input_tokens": 3}}
    whole = event({"type": "response.output_text.delta", "delta": "a"}, ending)
    whole += event({"type": "response.completed", "response": answer}, ending)
    events = EventStream(True, RESPONSES)
    assert b"".join(events.feed(piece) for piece in cut(whole, places)) + events.finish() == whole
    assert events.done and not events.failed and json.loads(events.usage) == {"usage": answer["usage"]}


def test_log_probabilities_of_thousands_of_tokens_fit_into_the_last_event():
    top = [{"token": " word", "bytes": [32, 119, 111, 114, 100], "logprob": -1.2345678901} for _ in range(20)]
    tokens = [{**top[0], "top_logprobs": top}] * 8000
    response = {"error": None, "output": [{"content": [{"logprobs": tokens}]}], "usage": {"input_tokens": 3}}
    whole = event({"type": "response.completed", "response": response})
    assert 10 * 1024 * 1024 < len(whole) < MAX_EVENT_BYTES
    events = EventStream(True, RESPONSES)
    assert b"".join(events.feed(whole[i : i + 24576]) for i in range(0, len(whole), 24576)) == whole
    assert events.done and json.loads(events.usage)["usage"] == {"input_tokens": 3}
