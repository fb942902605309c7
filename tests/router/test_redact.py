"""What is redacted comes back exactly, whatever the pieces, and nothing leaves that a second look would still find."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.residency.classify.kinds import Kind
from router.residency.classify.scan import Scanner
from router.residency.redact import NotRedactable, Redaction, Restorer, StreamRestorer, redact, redact_text, restore
from router.residency.restored_answer import RestoredBody, RestoredEvents

SCANNER = Scanner()
CARD, IBAN = "4111 1111 1111 1111", "DE89370400440532013000"
VALUES = {"<IBAN_1>": IBAN, "<CARD_1>": CARD, "<CARD_12>": 'a "quoted"\nvalue\\', "<NATIONAL_ID_1>": "<CARD_1>"}


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content} for content in contents], **more}


def cut(text: Any, places: list[int]) -> list[Any]:
    marks = [0, *sorted({place % (len(text) + 1) for place in places}), len(text)]
    return [text[low:high] for low, high in pairwise(marks)]


fragments = st.lists(
    st.one_of(
        st.sampled_from([CARD, IBAN, "bob@example.org", "<IBAN_1>", "<CARD", "_1>", "<", ">", " ", "\u200b", "é", "日本"]),
        st.text(max_size=6),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(fragments, st.lists(st.integers(0, 400), max_size=12))
def test_what_was_redacted_comes_back_in_any_pieces(text: str, places: list[int]):
    try:
        cleaned, redaction = redact(chat(text), SCANNER)
    except NotRedactable:
        return
    restorer = Restorer(redaction.values)
    pieces = cut(cleaned["messages"][0]["content"], places)
    assert "".join([*map(restorer.feed, pieces), restorer.finish()]) == text
    for value in redaction.values.values():
        assert value not in json.dumps(cleaned, ensure_ascii=False) or len(value) < 6


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([*VALUES, "<", "<CARD_", "<CARD_1", ">", "\\", '"']), st.text(max_size=4)), max_size=10
    ).map("".join),
    st.lists(st.integers(0, 300), max_size=12),
)
def test_pieces_make_no_difference(text: str, places: list[int]):
    whole, parts = Restorer(VALUES), Restorer(VALUES)
    assert "".join([*map(parts.feed, cut(text, places)), parts.finish()]) == whole.feed(text) + whole.finish()


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n" for chunk in chunks)


def chunk(delta: dict[str, Any], index: int = 0, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def read(stream: bytes) -> tuple[dict[int, str], dict[int, str]]:
    """Texts by choice and arguments by tool call."""
    texts: dict[int, str] = {}
    calls: dict[int, str] = {}
    for line in stream.split(b"\n\n"):
        data = line.removeprefix(b"data: ")
        if not data or data == b"[DONE]":
            continue
        for choice in json.loads(data)["choices"]:
            delta = choice.get("delta", choice)
            texts[choice["index"]] = texts.get(choice["index"], "") + (delta.get("content") or delta.get("text") or "")
            for call in delta.get("tool_calls") or []:
                calls[call["index"]] = calls.get(call["index"], "") + call["function"].get("arguments", "")
    return texts, calls


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=10), st.lists(st.integers(0, 3000), max_size=20), st.booleans(), st.booleans())
def test_a_stream_cut_anywhere_is_restored(text_cuts: list[int], byte_cuts: list[int], finishes: bool, done: bool):
    answer = "To <IBAN_1> and <CARD_12>, not <CARD_2> nor <IBAN"
    arguments = '{"to": "<CARD_12>", "from": "\\u003cIBAN_1\\u003e"}'
    chunks: list[Any] = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": piece}, index) for piece in cut(answer, text_cuts) for index in (0, 1)]
    chunks += [chunk({"tool_calls": [{"index": 1, "function": {"arguments": piece}}]}) for piece in cut(arguments, text_cuts)]
    if finishes:
        chunks += [chunk({}, 0, "tool_calls"), chunk({}, 1, "stop")]
    stream = sse(*chunks, *([b"[DONE]"] if done else []))
    restorer = StreamRestorer(VALUES)
    out = b"".join([*map(restorer.feed, cut(stream, byte_cuts)), restorer.finish()])
    texts, calls = read(out)
    expected = f"To {IBAN} and {VALUES['<CARD_12>']}, not <CARD_2> nor <IBAN"
    assert texts == {0: expected, 1: expected}
    assert json.loads(calls[1]) == {"to": VALUES["<CARD_12>"], "from": IBAN}
    assert out.endswith(b"data: [DONE]\n\n") or not done


def test_events_that_are_no_chunks_pass_as_they_are():
    stream = b'event: error\ndata: {"error":{"message":"<IBAN_1>"}}\n\n: comment\n\ndata: not json\n\n'
    restorer = StreamRestorer(VALUES)
    assert restorer.feed(stream) + restorer.finish() == stream


def test_a_whole_answer_is_restored_arguments_too():
    call = {"function": {"name": "pay", "arguments": '{"to":"<CARD_12>"}'}}
    answer = restore({"choices": [{"message": {"content": "<IBAN_1>!", "tool_calls": [call]}}]}, VALUES)
    message = answer["choices"][0]["message"]
    assert message["content"] == IBAN + "!"
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"to": VALUES["<CARD_12>"]}


def test_the_same_value_has_the_same_placeholder_everywhere():
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": json.dumps({"iban": IBAN})}}
    body = {
        "model": "m",
        "messages": [
            {"role": "user", "content": f"pay {IBAN}"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": [{"type": "text", "text": f"paid {IBAN} by {CARD}"}]},
        ],
        "metadata": {"ssn": "123456789"},
    }
    before = json.dumps(body)
    cleaned, redaction = redact(body, SCANNER)
    assert json.dumps(body) == before
    text = json.dumps(cleaned)
    assert text.count("<IBAN_1>") == 3 and "<CARD_1>" in text and IBAN not in text and "123456789" not in text
    assert sorted(redaction.values.values()) == sorted([IBAN, CARD, "123456789"])
    assert restore(cleaned, redaction.values) == body


class Looked(dict[str, str]):
    """Values by placeholder, and how often somebody went through all of them."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()


def test_an_answer_is_restored_without_going_through_all_values_for_each_piece():
    values = Looked({f"<EMAIL_{i}>": f"ann{i}@example.org" for i in range(1, 2001)})
    restorer = Restorer(values)
    restorer._values = values  # what it holds by itself is a plain copy
    answer = "".join(restorer.feed(piece) for i in range(1, 101) for piece in ("<EM", f"AIL_{i}", "> <", "b> "))
    assert answer + restorer.finish() == "".join(f"ann{i}@example.org <b> " for i in range(1, 101))
    assert values.times <= 2


def test_very_many_values_in_a_very_long_text_do_not_leave():
    addresses = (" and then " * 6).join(f"ann{i}@example.org" for i in range(3000))
    body = {"messages": [{"role": "user", "content": addresses + " nothing else" * 8000}]}
    with pytest.raises(NotRedactable, match="too many values"):
        redact(body, SCANNER)


def test_a_value_is_also_taken_out_where_it_was_not_recognised():
    cleaned, _ = redact(chat(f"pay {IBAN}", f"the file is called x{IBAN}y.pdf"), SCANNER)
    assert [message["content"] for message in cleaned["messages"]] == ["pay <IBAN_1>", "the file is called x<IBAN_1>y.pdf"]


def test_a_placeholder_the_client_wrote_is_not_taken():
    cleaned, redaction = redact(chat(f"keep <IBAN_7> but hide {IBAN}"), SCANNER)
    assert cleaned["messages"][0]["content"] == "keep <IBAN_7> but hide <IBAN_8>"
    assert restore(cleaned, redaction.values) == chat(f"keep <IBAN_7> but hide {IBAN}")


@pytest.mark.parametrize(
    "body",
    [
        chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
        chat("x", metadata={"ssn": 123456789}),
        chat("x", metadata={IBAN: "a value"}),
        chat("+4930901820 " * 3000),
        {"model": "m", "prompt": [1, 2, 3]},
    ],
)
def test_what_cannot_be_redacted_does_not_leave(body: dict[str, Any]):
    with pytest.raises(NotRedactable) as refused:
        redact(body, SCANNER)
    assert IBAN not in str(refused.value)


def test_only_the_kinds_asked_for_are_taken_out():
    redaction = Redaction()
    text = redact_text(f"{IBAN} or {CARD}", SCANNER, redaction, frozenset({Kind.CARD}))
    assert IBAN in text and CARD not in text


def test_values_show_in_no_representation():
    _, redaction = redact(chat(IBAN), SCANNER)
    assert IBAN not in f"{redaction!r} {redaction} {StreamRestorer(redaction.values)!r} {Restorer(redaction.values)!r}"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=20), st.booleans())
def test_an_exchanges_stream_is_restored_and_keeps_its_books(byte_cuts: list[int], keep_usage: bool):
    usage = {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    stream = sse(chunk({"content": "To <IB"}), chunk({"content": "AN_1>"}), chunk({}, 0, "stop"), usage, b"[DONE]")
    events = RestoredEvents(keep_usage, VALUES)
    out = b"".join([*map(events.feed, cut(stream, byte_cuts)), events.finish()])
    assert read(out)[0] == {0: f"To {IBAN}"} and events.done and not events.empty
    assert (b'"usage"' in out) == keep_usage and b'"completion_tokens": 4' in events.usage


def test_an_exchanges_whole_answer_is_restored():
    body = json.dumps({"choices": [{"message": {"content": "<IBAN_1>"}}], "usage": {"prompt_tokens": 3}}).encode()
    events = RestoredBody(VALUES)
    assert events.feed(body[:20]) + events.feed(body[20:]) == b""
    assert json.loads(events.finish())["choices"][0]["message"]["content"] == IBAN
    assert b'"prompt_tokens":3' in events.usage
    events = RestoredBody(VALUES)
    events.feed(b"no json <IBAN_1>")
    assert events.finish() == b"no json <IBAN_1>"


@pytest.mark.parametrize(
    "junk", [b"[]", b"1", b'{"choices":[1,{"delta":3},{"delta":{"tool_calls":[1,{"function":2}]},"index":"x"}]}', b"[" * 99999]
)
def test_a_stream_of_rubbish_passes(junk: bytes):
    restorer = StreamRestorer(VALUES)
    assert restorer.feed(b"data: " + junk + b"\n\n") + restorer.finish()
