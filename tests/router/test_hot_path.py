"""What the hot path does by a shorter way gives what the long way gives."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.ledger.receipts import Receipt, read_usage
from router.residency.sha256 import sha256
from router.wire.client_head import BadHead, HeadCollector, HeaderBlock, framing_problem
from router.wire.exchange import Ending, Exchange
from router.wire.request import header
from router.wire.usage_search import UsageSearch, usage_in

NAMES = ("host", "accept", "content-length", "x-request-id", "transfer-encoding", "upgrade", "X-Upgraded")
LINE = st.builds("{}: {}".format, st.sampled_from(NAMES), st.text("abc1,; ", max_size=6)).map(str.encode)
BREAK = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n"])
START = st.sampled_from(
    [b"POST /v1/x HTTP/1.1\r\n", b"GET / HTTP/1.0\r\n", b"\r\nGET / HTTP/1.1\r\n", b"1 / HTTP/1.1\r\n", b"\x16\x03"]
)


def collected(pieces):
    """What a collector gives for a block in pieces: the block without what follows, "" where more is due, or that it is bad."""
    collector = HeadCollector()
    for piece in pieces:
        try:
            whole = collector.collect(piece)
        except BadHead as error:
            return str(error)
        if whole is not None:
            return whole[: whole.index(b"\r\n\r\n")]
    return ""


@given(START, st.lists(st.tuples(LINE, BREAK), max_size=6), st.sampled_from([b"", b"\r\n", b"\r\nbody\r\n\r\n"]))
def test_a_block_in_one_read_is_judged_like_one_byte_at_a_time(start, lines, end):
    data = start + b"".join(line + ending for line, ending in lines) + end
    assert collected([data]) == collected([data[i : i + 1] for i in range(len(data))])


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"host", b"content-length"]), st.sampled_from([b"", b"x", b"1"])), max_size=8)
)
def test_the_index_of_a_block_finds_what_a_search_finds(lines):
    block = HeaderBlock(lines)
    block.seal()
    assert list(block) == lines
    assert all(header(block, name) == header(lines, name) for name in (b"a", b"b", b"host", b"content-length", b"none"))
    doubled = any(sum(name == own for name, _ in lines) > 1 for own in (b"host", b"content-length"))
    unnamed = all(name != b"host" for name, _ in lines)
    assert (framing_problem("1.1", block, b"/") is not None) == (doubled or unnamed)
    assert (framing_problem("1.0", block, b"/") is not None) == doubled


@given(st.binary(max_size=300))
def test_short_digests_are_sha_256(data):
    assert sha256(data).digest() == hashlib.sha256(data).digest()
    begun = sha256(data[:7])
    own = begun.copy()
    own.update(data[7:])
    assert own.hexdigest() == hashlib.sha256(data).hexdigest()


COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")


def receipt():
    return Receipt("r", 0.0, "k", "t", "/v1/chat/completions", "m", "e", "l", {}, "", 0.0, 0)


def counts_of(tail):
    read_usage(found := receipt(), tail)
    return {name: getattr(found, name) for name in COUNTS}


@given(
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.none() | st.integers(0, 10**9),
    st.text(max_size=20),
    st.booleans(),
    st.sampled_from([None, (",", ":")]),
    st.integers(0, 40),
)
def test_usage_is_read_wherever_the_tail_begins(prompt, completion, cached, text, is_messages, separators, lost):
    names = ("input_tokens", "output_tokens") if is_messages else ("prompt_tokens", "completion_tokens")
    usage = {names[0]: prompt, "total_tokens": 3, names[1]: completion}
    usage["prompt_tokens_details"] = None if cached is None else {"audio_tokens": 1, "cached_tokens": cached}
    said = f'"usage": {{"prompt_tokens": 7}} {text}'  # in the answer's own text every quote is escaped
    answer = {"choices": [{"message": {"content": said}}], "usage": usage, "kv_transfer_params": None}
    tail = json.dumps(answer, separators=separators).encode()[lost:]
    expected = {"prompt_tokens": prompt, "completion_tokens": completion, "reasoning_tokens": -1}
    assert counts_of(tail) == expected | {"cached_tokens": -1 if cached is None else cached}


def long_text(text):
    return {"prompt_token_ids": list(range(3000)), "prompt_text": text * 400}


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.sampled_from(["usage", '"usage": {"prompt_tokens": 9999999}', "\\", "x"]),
    st.sampled_from([None, (",", ":")]),
    st.booleans(),
    st.lists(st.integers(1, 15_000), max_size=6),
)
def test_usage_is_found_wherever_it_stands_and_however_the_answer_is_cut(prompt, completion, text, separators, late, cuts):
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    schema = {"type": "object", "properties": {"usage": {"type": "object", "properties": {"prompt_tokens": {"type": "integer"}}}}}
    parts = [long_text(text), {"user": text, "tools": [schema], "usage": usage}]
    answer = {name: value for part in (parts if late else reversed(parts)) for name, value in part.items()}
    body = json.dumps({**answer, "stop_reason": text}, separators=separators).encode()
    search, at = UsageSearch(), 0
    for cut in [*sorted(cuts), len(body)]:
        search.take(body[at:cut])
        at = max(at, cut)
    assert len(search.text) < 40_000
    expected = {"prompt_tokens": prompt, "completion_tokens": completion, "cached_tokens": -1, "reasoning_tokens": -1}
    assert counts_of(search.text) == counts_of(usage_in(body)) == expected


def test_nobody_makes_an_answer_cheaper_than_it_was():
    real = '"usage":{"input_tokens":700,"output_tokens":90}'
    forged = '"usage":{"input_tokens":0,"output_tokens":0}'
    for body in (f"{{{forged},{real},{forged}}}", f"{{{real},{forged}}}", f'{{{real},"user":"usage"}}', f"{{{forged},{real}}}"):
        assert counts_of(body.encode())["prompt_tokens"] == 700 and counts_of(body.encode())["completion_tokens"] == 90


@pytest.mark.parametrize(
    ("tail", "prompt"),
    [
        (b'{"usage":null}', -1),
        (b'{"usage":[{"prompt_tokens":5}]}', 5),
        (b'"usage":{"prompt_tokens":5,"completion_tokens":', 5),
        (b'"usage" : \n {"prompt_tokens" : 5}', 5),
        (b'"usage":{"prompt_tokens":5.0,"x":"\xff"}', 5),
        (b'"usage":{"prompt_tokens":true}', -1),
        (b'"usage":{"prompt_tokens":"5"}', -1),
        (b'"usage":{"prompt_tokens":-5}', -1),
        (b'"usage":' + b"[" * 5000, -1),
        (b'"usage":' + b'{"a":' * 5000, -1),
        (b'"usage":{"prompt_tokens":NaN}', -1),
        (b'"usage":{"prompt_tokens":1e400}', -1),
    ],
)
def test_usage_in_unusual_shapes_is_read_or_left_unknown(tail, prompt):
    assert counts_of(tail)["prompt_tokens"] == prompt


@pytest.mark.parametrize("late", ["ended", "broken", "left"])
def test_what_was_written_whole_is_complete_whatever_happens_before_the_handler_hears_of_it(late):
    class Client:
        gone = False

        def listen(self, _listener):
            """Nobody there."""

    class Handler:
        def __init__(self):
            self.endings = []

        def finishes(self):
            return True

        def on_end(self, exchange, ending):
            self.endings.append((ending, exchange.failure))

    handler = Handler()
    exchange = Exchange(Client(), handler, b"", 0.0, 1.0, 1.0)
    exchange.sent = exchange.forwarding = exchange.whole = True
    exchange.resend = lambda _: handler.endings.append("sent again")
    {"ended": lambda: None, "broken": lambda: exchange.broken("policy_revoked", now=0.5), "left": exchange.client_gone}[late]()
    exchange.end(Ending.COMPLETE)
    assert handler.endings == [(Ending.COMPLETE, "")]
