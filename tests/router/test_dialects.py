"""The other dialects: Anthropic's clients get errors in their own shape, and no stored response is ever asked for."""

from __future__ import annotations

import json

import anthropic
import pytest

from router.wire.errors import ApiError
from tests.router.conftest import KEY, FrontDoor

ASK = {"model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]}


def sdk(door: FrontDoor, key: str = KEY) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{door.port}", api_key=key, max_retries=0)


async def test_refusals_become_anthropics_own_exceptions(door):
    with pytest.raises(anthropic.AuthenticationError) as wrong_key:
        await sdk(door, "nobody").messages.create(**ASK)
    assert wrong_key.value.body["type"] == "error"
    assert wrong_key.value.body["error"] | {"message": ""} == {
        "type": "authentication_error",
        "message": "",
        "param": None,
        "code": "invalid_api_key",
    }
    with pytest.raises(anthropic.NotFoundError):
        await sdk(door).messages.create(**{**ASK, "model": "nobody"})
    with pytest.raises(anthropic.BadRequestError):
        await sdk(door).messages.count_tokens(model="m", messages=[], extra_headers={"x-tidegate-residency": "mars"})


async def test_openais_paths_keep_openais_envelope(door):
    for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages-not"):
        response = await door.client.post(path, json={**ASK, "model": "nobody"})
        assert set(response.json()) == {"error"}, path
    assert (await door.client.get("/v1/messages")).json()["type"] == "error"
    assert (await door.client.get("/v1/messages/batches")).json()["type"] == "error"


async def test_a_broken_stream_raises_in_anthropics_client(door):
    """It reads named events only: an error without a name would end the stream like a success."""
    events = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]

    async def die_mid(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in events:
            data = f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        return False

    door.engines["a"]._hello = die_mid
    with pytest.raises(anthropic.APIStatusError, match="middle of the answer"):
        async for _ in await sdk(door).messages.create(**ASK, stream=True):
            pass


@pytest.mark.parametrize("field", [{"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "conv_1"}])
async def test_a_request_that_needs_a_stored_response_is_refused(door, field):
    response = await door.client.post("/v1/responses", json={"model": "m", "input": "hello", **field})
    assert response.status_code == 400 and response.json()["error"]["param"] in field
    assert door.engines["a"].requests == []


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"), ("POST", "/v1/responses/r/cancel")]
)
async def test_stored_responses_can_not_be_reached(door, method, path):
    response = await door.client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "invalid_request")
    assert "not stored" in response.json()["error"]["message"]
    assert (await door.client.request(method, path, headers={"authorization": "Bearer no"})).status_code == 401


@pytest.mark.parametrize(
    ("status", "anthropics", "openais"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (403, "permission_error", "permission_error"),
        (404, "not_found_error", "invalid_request_error"),
        (413, "request_too_large", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "server_error"),
        (502, "api_error", "server_error"),
        (503, "overloaded_error", "overloaded_error"),
        (504, "timeout_error", "timeout_error"),
    ],
)
def test_each_apis_clients_read_their_own_name_of_what_went_wrong(status, anthropics, openais):
    error = ApiError(status, "code", "Words.")
    assert json.loads(error.body("/v1/messages"))["error"]["type"] == anthropics
    assert json.loads(error.body("/v1/chat/completions"))["error"]["type"] == openais
