"""Strict reading of a body, and changing its model without changing anything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.errors import ApiError
from router.wire.json_body import MAX_CONTAINERS, MAX_VALUES, parse_object, replace_model

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
bodies = st.dictionaries(st.sampled_from(["messages", "model2", "x", "metadata"]), values, max_size=4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":1,}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1}{"b":2}',
        b'{"a":1,"a":1}',
        b'{"x":{"b":[{"a":1,"a":2}]}}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b"[" * 100_000,
    ],
)
def test_refused(body):
    with pytest.raises(ApiError) as refusal:
        parse_object(body)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_request")


def test_depth_is_counted_in_structure_not_in_text():
    text = "{[" * 5000
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}
    deep = b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"
    assert parse_object(deep)
    with pytest.raises(ApiError, match="deeper"):
        parse_object(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")


def test_what_is_made_of_too_many_parts_is_refused_before_it_is_parsed():
    for part, most in ((b"{}", MAX_CONTAINERS - 2), (b"[1,2]", MAX_CONTAINERS - 2), (b"1", MAX_VALUES)):
        assert len(parse_object(b'{"a":[' + b",".join([part] * most) + b"]}")["a"]) == most
        for more in (b",".join([part] * (most + 1)), b'"\\"",' + b",".join([part] * most)):
            if part != b"1" and more.startswith(b'"'):
                more += b"," + part
            with pytest.raises(ApiError, match="more than"):
                parse_object(b'{"a":[' + more + b"]}")


@pytest.mark.parametrize("text", ["{[,", ',"', "\\", '\\",{['])
def test_text_is_no_part_however_much_of_it_there_is(text):
    whole = text * (MAX_VALUES // len(text) + 10)
    assert parse_object(json.dumps({"a": whole}).encode()) == {"a": whole}
    with pytest.raises(ApiError):
        parse_object(b'{"a":"' + json.dumps(whole)[1:-1].encode())


def test_errors_do_not_quote_content():
    for body in (b'{"secret-prompt text": 1, "secret-prompt text": 2}', b'{"a": "secret-prompt', b'{"a": secret-prompt}'):
        with pytest.raises(ApiError) as refusal:
            parse_object(body)
        assert "secret-prompt" not in refusal.value.message


@given(bodies, st.sampled_from(["auto", "small", "a-b/c", 'q"uote', "é"]), st.booleans(), st.sampled_from([None, 1]))
def test_replacing_the_model_changes_the_model_and_nothing_else(body, model, ascii_only, indent):
    raw = json.dumps({**body, "model": model, "last": 1}, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "surrogatepass")
    try:
        parsed = parse_object(raw)
    except ApiError:
        return
    assert json.loads(replace_model(raw, parsed, "served")) == {**json.loads(raw), "model": "served"}
    assert replace_model(raw, parsed, model) is raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"metadata":{"model":"auto"},"model":"auto"}',
        b'{"mod\\u0065l":"auto","metadata":{"model":"auto"}}',
        b'{"messages":["\\"model\\":\\"auto\\""],"model":"auto"}',
        b'{"model":"auto","n":123456789012345678901234567890,"e":1e400}',
        b'{"model":"\\u0061uto"}',
        b'{"x":"model","model"\n:\t"auto"}',
    ],
)
def test_look_alikes_do_not_mislead_it(raw):
    parsed = parse_object(raw)
    changed = json.loads(replace_model(raw, parsed, "served"))
    assert changed == {**json.loads(raw), "model": "served"}


@given(
    st.dictionaries(st.sampled_from("ab"), values, max_size=3),
    st.lists(st.tuples(st.integers(0, 60), st.text('{}[]",: \n\t1-xN', max_size=2))),
)
def test_a_fault_is_found_where_the_standard_library_finds_it(value, edits):
    text = json.dumps(value)
    for place, piece in edits:
        text = text[:place] + piece + text[place + 1 :]
    try:
        expected = json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(ApiError) as refused:
            parse_object(text.encode())
        assert not text or f": {error.msg} at position {error.pos}." in refused.value.message or "twice" in refused.value.message
        return
    try:
        assert parse_object(text.encode()) == expected
    except ApiError as refused:
        assert not isinstance(expected, dict) or "NaN" in text or any(word in refused.message for word in ("twice", "numbers"))
