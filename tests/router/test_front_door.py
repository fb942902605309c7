"""The front door over real sockets: what a client sees when all is well, and when the engine is not."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from router.placement.targets import Report
from tests.router.builders import digest
from tests.router.conftest import KEY, OTHER_KEY, open_front_door
from tests.router.simulated_engine import JSON_ANSWER, USAGE_EVENT, SimulatedEngine, answer, event, write_chunked

CONTRACT = ("x-request-id", "x-tidegate-model", "x-tidegate-target", "x-tidegate-zone", "x-tidegate-reason")


async def test_a_json_answer_arrives_byte_for_byte_with_the_headers_of_the_contract(door):
    response = await door.chat("hello")
    assert response.status_code == 200 and response.content == JSON_ANSWER
    assert all(name in response.headers for name in CONTRACT)
    assert (response.headers["x-tidegate-target"], response.headers["x-tidegate-zone"]) == ("a", "eu")
    receipt = door.receipt(response)
    assert (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["status"]) == (7, 2, 200)
    assert receipt["attempts"][0]["ending"] == "complete"


async def test_a_stream_arrives_whole_and_in_order(door):
    response = await door.chat("stream", stream=True)
    assert response.content == b"".join(event(i) for i in range(5)) + b"data: [DONE]\n\n"


async def test_small_writes_do_not_wait_for_the_clients_acknowledgement(door):
    """Without this, what is written in two pieces takes 40 ms longer on an event loop that is not uvloop."""
    await door.chat("hello")
    connections = [connection for server in door.router._servers for connection in server.server_state.connections]
    sockets = [connection.transport.get_extra_info("socket") for connection in connections]
    assert sockets and all(each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in sockets)


async def test_the_request_reaches_the_engine_verbatim_and_without_the_clients_key(door):
    raw = b'{"messages": [{"role":"user","content":"hello"}],  "model" : "m", "temperature": 0.10, "extra_body": {"x": [1, 2]}}'
    response = await door.client.post(
        "/v1/chat/completions", content=raw, headers={"cookie": "a=b", "x-request-id": "my-id-12345"}
    )
    assert response.headers["x-request-id"] == "my-id-12345"
    seen = door.engines["a"].requests[-1]
    assert seen["body"] == json.loads(raw)
    assert seen["headers"]["x-request-id"] == "my-id-12345"
    assert not {"authorization", "cookie", "x-api-key"} & set(seen["headers"])
    assert int(seen["headers"]["content-length"]) == len(raw)


async def test_auto_and_tiers_are_replaced_by_the_model_that_serves(door):
    for name in ("auto", "small"):
        response = await door.chat("hello", model=name)
        assert response.headers["x-tidegate-model"] == "m"
        assert door.engines["a"].requests[-1]["body"]["model"] == "m"


@pytest.mark.parametrize("wish", ["die-before", "garbage", "broken", "busy", "no-length"])
async def test_a_failure_before_the_first_byte_goes_to_another_target(pair, wish):
    failing = pair.engines["a"]
    failing._hello = getattr(failing, "_" + wish.replace("-", "_"))
    for _ in range(3):
        response = await pair.chat("hello")
        assert response.status_code == 200 and response.headers["x-tidegate-target"] == "b"
    attempts = [attempt["target"] for attempt in pair.receipt(response)["attempts"]]
    assert attempts[-1] == "b"


@pytest.mark.parametrize(
    ("wish", "status", "code"),
    [("die-before", 503, "overloaded"), ("broken", 502, "upstream_error"), ("busy", 503, "overloaded")],
)
async def test_a_failure_with_nowhere_else_to_go_is_typed(door, wish, status, code):
    response = await door.chat(wish)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert all(name in response.headers for name in CONTRACT)
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1


async def test_a_residency_tag_also_binds_the_retry(pair):
    pair.engines["a"]._hello = pair.engines["a"]._die_before
    response = await pair.chat("hello", headers={"x-tidegate-residency": "eu"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "residency_capacity")
    assert pair.engines["b"].requests == []


async def test_an_engines_own_400_is_the_clients_to_see(door):
    response = await door.chat("bad")
    assert response.status_code == 400 and response.json()["error"]["message"] == "too long"


async def test_a_stream_that_dies_ends_in_an_error_event_and_never_in_done(door):
    response = await door.chat("die-mid", stream=True)
    assert response.content.startswith(event(0) + event(1))
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"
    assert "[DONE]" not in response.text
    assert door.receipt(response)["code"] == "upstream_error"


async def test_an_event_cut_in_the_middle_is_not_passed_on_and_the_stream_ends_in_an_error(door):
    response = await door.chat("die-in-chunk", stream=True)
    assert response.content.startswith(event(0))
    last = response.content.removeprefix(event(0))
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"


async def test_a_long_json_answer_that_is_cut_breaks_the_connection(door):
    with pytest.raises(httpx.RemoteProtocolError):
        await door.chat("cut-json")


async def test_a_short_one_was_never_begun_and_another_is_asked(pair):
    pair.engines["b"]._cut_short = pair.engines["b"]._hello
    for _ in range(3):
        response = await pair.chat("cut-short")
        assert response.status_code == 200 and response.headers["x-tidegate-target"] == "b"
        assert response.json()["choices"][0]["message"]["content"] == "hi"
        if pair.engines["a"].requests:
            break
    attempts = pair.receipt(response)["attempts"]
    assert [(attempt["target"], attempt["ending"]) for attempt in attempts] == [("a", "broken_before"), ("b", "complete")]
    assert pair.receipt(response)["completion_tokens"] == 2


async def test_usage_is_asked_of_every_stream_and_shown_only_to_who_asked(door):
    silent = await door.chat("stream", stream=True)
    assert b"usage" not in silent.content
    assert door.engines["a"].requests[-1]["body"]["stream_options"] == {"include_usage": True}
    receipt = door.receipt(silent)
    assert (receipt["prompt_tokens"], receipt["completion_tokens"], receipt["cached_tokens"]) == (7, 5, 4)
    asked = await door.chat("stream", stream=True, stream_options={"include_usage": True})
    assert USAGE_EVENT in asked.content
    declined = await door.chat("stream", stream=True, stream_options={"include_usage": False, "x": 1})
    assert b"usage" not in declined.content
    assert door.engines["a"].requests[-1]["body"]["stream_options"] == {"include_usage": True, "x": 1}
    # To vLLM this means nothing without the other; with it, every event would have usage in it.
    await door.chat("stream", stream=True, stream_options={"continuous_usage_stats": True})
    assert door.engines["a"].requests[-1]["body"]["stream_options"] == {"include_usage": True}


async def test_a_second_answer_on_one_request_never_reaches_the_client(door):
    response = await door.chat("two-answers")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")


async def test_a_head_that_arrives_byte_by_byte_is_understood(door):
    response = await door.chat("split-head")
    assert response.content == JSON_ANSWER


@pytest.mark.parametrize("wish", ["hang", "stall"])
async def test_a_client_that_leaves_cuts_the_upstream(door, wish):
    task = asyncio.create_task(door.chat(wish, stream=True))
    while not door.engines["a"].requests:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    for _ in range(200):
        if door.engines["a"].disconnects:
            break
        await asyncio.sleep(0.01)
    assert door.engines["a"].disconnects == 1
    assert door.state.fleet.view(0).loads[0].inflight == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_requests_waiting_behind_one_another_cuts_the_upstream(door, stream):
    """While a second request waits for the first, the connection is not read: its end has to be noticed all the same."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    wish = "stall" if stream else "hang"
    body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": wish}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write((head.encode() + body) * 3)
    engine = door.engines["a"]
    while not engine.requests:
        await asyncio.sleep(0.01)
    writer.close()
    async with asyncio.timeout(5):
        while not engine.disconnects:
            await asyncio.sleep(0.01)
    assert len(engine.requests) == 1, "nobody waits for the others"
    assert door.state.fleet.view(0).loads[0].inflight == 0


async def test_the_limits_on_the_first_byte_and_on_silence_hold():
    async with open_front_door({"a": "eu"}, timeouts={"first_byte_s": 0.3, "idle_s": 0.3}) as door:
        late = await door.chat("hang")
        assert late.status_code == 503
        door.state.fleet.update([])
    async with open_front_door({"a": "eu"}, timeouts={"idle_s": 0.3}) as door:
        stalled = await door.chat("stall", stream=True)
        assert '"upstream_error"' in stalled.text and "[DONE]" not in stalled.text


async def test_a_slow_client_slows_its_own_upstream_and_nobody_else(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port, limit=1 << 16)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "flood"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.sleep(0.5)
    sent = door.engines["a"].sent
    assert (await door.chat("hello")).status_code == 200
    assert sent < 20_000_000, "32 MB were on offer; the rest must wait in the engine, not in the router"
    writer.close()


async def test_an_http_1_0_client_gets_a_stream_without_chunking(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "stream"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read()
    assert answer.partition(b"\r\n\r\n")[2] == b"".join(event(i) for i in range(5)) + b"data: [DONE]\n\n"


async def test_pipelined_requests_are_answered_in_order(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n"
    writer.write(b"".join(head.encode() + f"x-request-id: request-{i}\r\n\r\n".encode() + body for i in range(5)))
    seen = []
    for _ in range(5):
        answer = await reader.readuntil(b"\r\n\r\n")
        seen.append(answer.lower().partition(b"x-request-id: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(len(JSON_ANSWER))
    assert seen == [f"request-{i}".encode() for i in range(5)]
    writer.close()


async def test_every_kind_of_bad_request_has_its_error(door):
    async def refusal(**request):
        response = await door.client.request(**{"method": "POST", "url": "/v1/chat/completions", **request})
        assert all(name in response.headers for name in CONTRACT)
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return response.status_code, error["code"], error["message"]

    ok = {"model": "m", "messages": []}
    assert (await refusal(json=ok, headers={"authorization": "Bearer nope"}))[:2] == (401, "invalid_api_key")
    assert (await refusal(json=ok, headers={"authorization": ""}))[:2] == (401, "invalid_api_key")
    assert (await refusal(json=ok, headers={"x-api-key": "different"}))[:2] == (400, "invalid_request")
    assert (await refusal(json={"model": "nope"}))[:2] == (404, "model_not_found")
    assert (await refusal(json={"messages": []}))[:2] == (400, "invalid_request")
    assert (await refusal(json={"model": 7}))[:2] == (400, "invalid_request")
    assert (await refusal(json={**ok, "stream": "yes"}))[:2] == (400, "invalid_request")
    assert (await refusal(json=ok, headers={"x-tidegate-residency": "mars"}))[:2] == (400, "invalid_request")
    assert (await refusal(json=ok, headers={"x-tidegate-residency": "eu,,"}))[:2] == (400, "invalid_request")
    assert (await refusal(json=ok, headers={"x-tidegate-residency": "elsewhere"}))[:2] == (403, "residency_denied")
    assert (await refusal(json=ok, headers={"x-tidegate-residency": "eu, elsewhere"}))[:2] == (403, "residency_denied")
    assert (await refusal(content=b'{"model": "m"'))[:2] == (400, "invalid_request")
    assert (await refusal(content=b""))[:2] == (400, "invalid_request")
    assert (await refusal(content=b"[1]"))[:2] == (400, "invalid_request")
    assert "twice" in (await refusal(content=b'{"model":"m","model":"x"}'))[2]
    assert "deeper" in (await refusal(content=b'{"model":"m","x":' + b"[" * 65 + b"]" * 65 + b"}"))[2]
    assert "deeper" in (await refusal(content=b'{"model":"m","x":' + b"[" * 99_000 + b"]" * 99_000 + b"}"))[2]
    assert "more than" in (await refusal(content=b'{"model":"m","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"))[2]
    assert (await refusal(content=b"x" * (9 << 20)))[:2] == (413, "invalid_request")
    assert (await refusal(content=b"x", headers={"content-encoding": "gzip"}))[:2] == (415, "invalid_request")
    assert "byte order mark" in (await refusal(content=b'\xef\xbb\xbf{"model":"m"}'))[2]
    for odd in (1, 0, "true", [], {}):
        assert "include_usage" in (await refusal(json={**ok, "stream": True, "stream_options": {"include_usage": odd}}))[2]
    assert (await refusal(method="GET"))[0] == 405
    assert (await refusal(url="/v1/nothing"))[0] == 404
    assert (await refusal(method="DELETE", url="/v1/models", headers={"authorization": "Bearer x"}))[0] == 405
    assert door.engines["a"].requests == []
    assert (await door.chat("hello")).status_code == 200


async def test_refusals_name_the_methods_and_the_scheme_that_would_do(door):
    """RFC 9110, sections 15.5.6 and 11.6.1."""
    for path, allowed in (("/v1/chat/completions", "POST"), ("/v1/messages", "POST"), ("/v1/models", "GET")):
        response = await door.client.delete(path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
    for path in ("/v1/chat/completions", "/tidegate/v1/explain"):
        response = await door.client.post(path, headers={"authorization": "Bearer no"}, json={})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}   ",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\nhost: x\ncontent-length: 2\n\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nhost: y\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx y: z\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"NONSENSE\r\n\r\n",
    ],
)
async def test_ambiguous_or_oversized_framing_is_refused_and_the_connection_closed(door, head):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(head)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.count(b"HTTP/1.1") == 1
    assert door.engines["a"].requests == []
    writer.close()


async def test_models_explain_receipts_and_health(door):
    listed = (await door.client.get("/v1/models")).json()
    assert [card["id"] for card in listed["data"]] == ["auto", "small", "m"]
    assert (await door.client.get("/v1/models/m")).json()["id"] == "m"
    body = {"model": "auto", "messages": [{"role": "user", "content": "Prove it step by step"}]}
    told = (await door.client.post("/tidegate/v1/explain", json=body)).json()
    assert told["chosen"]["target"] == "a" and told["refusal"] is None
    assert {"label", "complexity", "candidates"} <= set(told)
    assert door.engines["a"].requests == []
    answered = await door.chat("hello")
    path = f"/tidegate/v1/receipts/{answered.headers['x-request-id']}"
    assert (await door.client.get(path)).json()["key"] == "front"
    stranger = await door.client.get(path, headers={"authorization": f"Bearer {OTHER_KEY}"})
    assert stranger.status_code == 404
    assert (await door.client.get("/healthz")).status_code == 200
    assert (await door.client.get("/readyz")).status_code == 200
    metrics = (await door.client.get("/metrics")).text
    assert 'tidegate_requests_total{model="m",router="router-test",status="200",target="a",zone="eu"} 1.0' in metrics


async def test_a_web_page_whose_name_means_this_machine_reads_nothing_of_the_admin_listener(door):
    port = door.state.config.admin.port
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as admin:
        for path in ("/tidegate/v1/cluster", "/tidegate/v1/receipts/some-id", "/metrics", "/readyz"):
            for name in ("pages.example", f"pages.example:{port}", "127.0.0.1.pages.example", "localhost.pages.example"):
                refused = await admin.get(path, headers={"host": name})
                assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
        for name in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "10.0.0.7"):
            assert (await admin.get("/tidegate/v1/cluster", headers={"host": name})).status_code == 200


async def test_the_admin_listener_is_separate_and_the_public_port_does_not_know_its_paths(door):
    assert (await door.client.get("/tidegate/v1/cluster")).status_code == 404
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.state.config.admin.port}") as admin:
        cluster = (await admin.get("/tidegate/v1/cluster")).json()
        assert [target["target"] for target in cluster["targets"]] == ["a"]
        assert (await admin.post("/v1/chat/completions", json={})).status_code == 404


async def test_draining_says_so_at_once_and_lets_a_running_stream_finish(door):
    stream = asyncio.create_task(door.chat("stream", stream=True))
    while not door.engines["a"].requests:
        await asyncio.sleep(0.001)
    drain = asyncio.create_task(door.router.drain())
    await asyncio.sleep(0)
    assert not door.state.ready
    assert (await stream).content.endswith(b"data: [DONE]\n\n")
    await drain


async def test_prompt_text_is_in_no_receipt_metric_or_log(door, caplog):
    canary = "canary-7f3a"
    for wish in (canary, "die-before"):
        await door.chat(wish, user=canary, metadata={"note": canary})
    await door.client.post("/v1/chat/completions", content=b'{"' + canary.encode() + b'": 1, "' + canary.encode() + b'": 2')
    receipts = json.dumps([door.state.receipts.find(key) for key in list(door.state.receipts._receipts)])
    metrics = (await door.client.get("/metrics")).text
    assert canary not in receipts and canary not in metrics and canary not in caplog.text


async def test_a_request_leaves_no_reference_cycle_behind(door):
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"

    async def ask() -> None:
        writer.write(head.encode() + body)
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(JSON_ANSWER))

    await ask()
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            await ask()
        assert gc.collect() < 50, "less than one object per request; a cycle would leave dozens"
    finally:
        gc.enable()
    writer.close()


async def test_a_deadline_ends_a_request_before_and_after_its_first_byte(door):
    late = await door.chat("hang", headers={"x-request-timeout-ms": "300"})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    stalled = await door.chat("stall", stream=True, headers={"x-request-timeout-ms": "300"})
    assert '"deadline_exceeded"' in stalled.text and "[DONE]" not in stalled.text
    assert door.receipt(late)["code"] == door.receipt(stalled)["code"] == "deadline_exceeded"
    in_time = await door.chat("hello", headers={"x-request-timeout-ms": "5000"})
    assert in_time.status_code == 200, "another client's short deadline does not take the target away"
    for wrong in ("0", "-1", "1.5", "soon", "999999999"):
        assert (await door.chat("hello", headers={"x-request-timeout-ms": wrong})).status_code == 400


async def test_retries_are_bounded_so_that_failing_targets_do_not_multiply_the_load(pair):
    for engine in pair.engines.values():
        engine._hello = engine._broken
    pair.state.fleet.failed = lambda *_: None
    for _ in range(60):
        await pair.chat("hello")
    tries = sum(len(engine.requests) for engine in pair.engines.values())
    assert tries <= 60 * 1.2 + 20, "60 requests; 20 % more, and three a second"


USAGE = {"prompt_tokens": 7000, "completion_tokens": 900, "total_tokens": 7900}
FOUND = [{"index": i, "document": {"text": "x" * 500}, "relevance_score": 0.1} for i in range(20)]
ANSWERS = {
    "ids of the prompt": {"choices": [], "usage": USAGE, "prompt_token_ids": list(range(7000))},
    "text of the prompt": {"choices": [], "usage": USAGE, "prompt_text": "word " * 7000},
    "a token that is the word": {"choices": [], "usage": USAGE, "prompt_logprobs": [{"1": {"decoded_token": "usage"}}]},
    "a user of that name": {"output": [], "usage": {"input_tokens": 7000, "output_tokens": 900}, "user": "usage"},
    "a user with a long name": {"output": [], "usage": {"input_tokens": 7000, "output_tokens": 900}, "user": "u" * 5000},
    "rerank": {"id": "r", "model": "m", "usage": USAGE, "results": FOUND},
}


@pytest.mark.parametrize("framing", ["whole", "chunks"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_usage_is_counted_wherever_an_answer_has_it(name, framing):
    body, engine = json.dumps(ANSWERS[name], separators=(",", ":")).encode(), SimulatedEngine()

    async def hello(_reader: Any, writer: Any) -> bool:
        if framing == "whole":
            writer.write(answer(body))
            return True
        await write_chunked(writer, body, 70)
        return True

    engine._hello = hello  # type: ignore[method-assign]
    keys = [{"id": "front", "sha256": digest(KEY), "daily_tokens": 10_000}]
    async with open_front_door({"a": "eu"}, engines={"a": engine}, keys=keys) as door:
        first = await door.chat("hello")
        assert first.content == body
        receipt = door.receipt(first)
        assert (receipt["prompt_tokens"], receipt["completion_tokens"]) == (7000, 900)
        assert (await door.chat("hello")).status_code == 200
        assert (await door.chat("hello")).status_code == 429, "what was used is charged"


async def test_requests_in_flight_together_never_share_the_id_a_client_chose(door):
    """Receipts and the audit log tell requests apart by it: one of them keeps it, the others get ids of their own."""
    given = {"x-request-id": "twice-the-same"}
    waiting = asyncio.create_task(door.chat("gated", headers=given))
    async with asyncio.timeout(10):
        while not any(engine.requests for engine in door.engines.values()):
            await asyncio.sleep(0.005)
    second = await door.chat("hello", headers=given)
    for engine in door.engines.values():
        engine.gate.release()
    answers = [await waiting, second, await door.chat("hello", headers=given)]
    assert [answer.status_code for answer in answers] == [200] * 3
    found = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(found)) == 3 and found[0] == "twice-the-same"
    assert [door.receipt(answer)["request_id"] for answer in answers] == found


async def test_the_id_of_a_request_that_was_refused_before_any_receipt_is_free_again(door):
    given = {"x-request-id": "to-be-repeated"}
    refused = await door.client.post("/v1/chat/completions", content=b"no json", headers=given)
    again = await door.chat("hello", headers=given)
    assert refused.status_code == 400 and again.status_code == 200
    assert refused.headers["x-request-id"] == again.headers["x-request-id"] == "to-be-repeated"


async def test_a_key_of_another_tenant_with_the_same_id_reads_and_rates_nothing(door):
    """One of the store can have a configured one's id, and a token's subject come with another tenant."""
    answered = await door.chat("hello")
    own = door.receipt(answered)
    for tenant, status in (("another", 404), (own["tenant"], 200)):

        async def told(request_id: str, tenant: str = tenant) -> dict[str, Any]:
            return {**own, "request_id": request_id, "tenant": tenant}

        door.state.find_elsewhere = told
        assert (await door.client.get("/tidegate/v1/receipts/of-another-router")).status_code == status
        rating = {"request_id": "of-another-router", "score": 1}
        assert (await door.client.post("/tidegate/v1/feedback", json=rating)).status_code == status


async def test_a_prompt_that_fits_no_context_is_told_so_and_not_to_come_again():
    async with open_front_door({"a": "eu"}) as door:
        (target,) = door.state.fleet.membership.targets
        door.state.take_reports([Report(replace(target, context_tokens=10))])
        answer = await door.chat("word " * 100)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert "maximum context length is 10 tokens" in answer.json()["error"]["message"] and "retry-after" not in answer.headers
        assert not door.engines["a"].requests


@pytest.mark.parametrize(("path", "name"), [("completions", "prompt"), ("chat/completions", "messages"), ("responses", "input")])
async def test_more_texts_than_anybody_asks_of_are_refused_and_token_ids_are_one_text(path, name):
    most, text = 65_536, {"role": "user", "content": "a"} if name == "messages" else "a"
    cases = [([text] * (most + 1), 400), ([7] * most + [text], 400), ([text] * most, 200), ([7] * (most + 1), 200)]
    async with open_front_door({"a": "eu"}) as door:
        for entries, status in cases[: 3 if name == "messages" else 4]:
            answer = await door.client.post(f"/v1/{path}", json={"model": "m", name: entries})
            assert answer.status_code == status
            if status == 400:
                assert (answer.json()["error"]["param"], "more than 65536" in answer.json()["error"]["message"]) == (name, True)
