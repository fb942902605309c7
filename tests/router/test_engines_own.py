"""What an engine shares between tenants is not a client's to name: another's media, another's keys and values, a better place."""

from __future__ import annotations

import json

import pytest

from router.residency.engines_own import refuse_engines_own, refuse_named_media
from router.wire.errors import ApiError
from router.wire.json_body import parse_object
from router.wire.multipart import parse_form

INLINE = "data:image/png;base64,AA=="


def turn(part: object) -> list[object]:
    return [{"role": "user", "content": ["look", part]}]


def schema(**keys: object) -> dict[str, object]:
    inner = {"type": "object", "properties": {"deep": keys}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": inner}}}


REFUSED = [
    ("uuid", {"messages": turn({"type": "image_url", "image_url": {"url": INLINE}, "uuid": "scan-7"})}),
    ("uuid", {"messages": turn({"type": "image_url", "image_url": None, "uuid": 7})}),
    ("uuid", {"messages": turn({"type": "text", "text": "x", "audio_url": None, "uuid": "scan-7"})}),
    ("uuid", {"messages": turn({"input_audio": {"data": "AA", "format": "wav"}, "uuid": ""})}),
    ("uuid", {"messages": [turn({"image_embeds": None, "uuid": "scan-7"})]}),
    ("uuid", {"input": turn({"type": "input_image", "image_url": INLINE, "uuid": "scan-7"})}),
    ("uuid", {"documents": {"content": [{"type": "image_url", "image_url": {"url": INLINE}, "uuid": "scan-7"}]}}),
    ("uuid", {"query": "x", "data_2": [{"content": [{"video_url": None, "uuid": "scan-7"}]}]}),
    ("priority", {"priority": -9}),
    ("priority", {"priority": 1}),
    ("priority", {"priority": "-9"}),
    ("response_format", schema(minItems=10**9)),
    ("response_format", schema(properties={f"a{i}": {"type": "array", "maxItems": 5000} for i in range(100)})),
    ("structured_outputs", {"structured_outputs": {"json": {"type": "array", "minItems": 1e9}}}),
    ("structured_outputs", {"structured_outputs": {"json": ' {"type": "array", "min\\u0049tems": 1000000000}'}}),
    ("structured_outputs", {"structured_outputs": {"structural_tag": '{"a": [{"minItems": 1000000000}]}'}}),
    ("text", {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"maxItems": 10**400}}}}),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"minItems": 10**9}}}]}),
    ("vllm_xargs", {"vllm_xargs": {"kv_transfer_params": "x"}}),
    ("vllm_xargs", {"vllm_xargs": {"top": 1, "ec_transfer_params": 0}}),
    ("vllm_xargs", {"vllm_xargs": '{"kv_transfer_params": 1}'}),
    ("vllm_xargs", {"vllm_xargs": '{"kv\\u005ftransfer_params": 1}'}),
]
TAKEN = [
    {"messages": turn({"type": "image_url", "image_url": {"url": INLINE}, "uuid": None})},
    {"messages": [{"role": "user", "content": "x", "uuid": "a message's own"}]},
    {"messages": turn({"type": "text", "text": "uuid image_url", "uuid": "a text's own"})},
    {"prompt": [1, 2, 3], "input": [1, 2, 3], "priority": 0},
    {"priority": None, "vllm_xargs": {"top": 1}, "kv_transfer_params": None},
    schema(minItems=1, maxItems=1000, items={"type": "string", "maxLength": 10**9}, enum=["minItems", None, True]),
    {"structured_outputs": {"json": '{"minItems": 5', "regex": "[Items]"}, "text": "minItems", "tools": None},
    {"vllm_xargs": '{"top": 1}', "messages": [[[1]], None, {"content": {"content": []}}]},
]


def refuse_all(body):
    refuse_engines_own(body)
    refuse_named_media(body)


@pytest.mark.parametrize(("name", "body"), REFUSED)
def test_what_is_not_a_clients_to_say(name, body):
    with pytest.raises(ApiError) as refusal:
        refuse_all(body)
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (400, "invalid_request", name)
    assert b"scan-7" not in refusal.value.body("")


@pytest.mark.parametrize("body", TAKEN)
def test_everything_else_is_taken(body):
    refuse_all(body)


def test_a_form_is_read_for_it():
    fields = (("model", "m"), ("vllm_xargs", '{"kv_transfer_params": "x"}'))
    parts = [f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    form = parse_form(("".join(parts) + "--b--").encode(), b"multipart/form-data; boundary=b")
    with pytest.raises(ApiError, match="between engines"):
        refuse_engines_own(form.fields)


@pytest.mark.parametrize(("name", "body"), REFUSED)
async def test_it_reaches_no_engine(door, name, body):
    path = next((path for field, path in (("input", "/v1/responses"), ("query", "/v1/score")) if field in body), None)
    response = await door.client.post(path or "/v1/chat/completions", json={"model": "m", **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    assert door.engines["a"].requests == []


def test_a_name_with_escapes_in_it_is_the_same_name():
    body = json.dumps({"messages": turn({"type": "image_url", "image_url": None, "uuid": "x"})}).replace("uuid", "u\\u0075id")
    with pytest.raises(ApiError, match="uuid"):
        refuse_all(parse_object(body.encode()))
