"""Every provider's dialect through the egress and over loopback: what leaves, what comes back, and what its failures become."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.egress.dialects.answer import ChunkWriter
from deployments.egress.dialects.aws import AwsKey, BadFrame, FrameReader, sign, write_frame
from deployments.egress.dialects.table import TRANSLATED
from deployments.egress.server import EgressServer
from router.compiled import compile_policy
from router.config import ConfigError
from router.residency.guard import PASS_HEADER, PASS_LIFETIME_S, Pass, derive_target_key, issue_pass
from tests.deployments import provider_fixtures as shapes
from tests.deployments.fake_provider import FakeProvider
from tests.router.builders import make_config, make_policy

SECRET = b"s" * 32
CHAT = "/v1/chat/completions"
PROVIDER = {
    "openai": {},
    "azure": {"sku": "DataZoneStandard", "api_version": "2025-01-01"},
    "anthropic": {"geo": "eu"},
    "bedrock": {"region": "eu-central-1"},
    "gemini": {"anywhere": True},
    "vertex": {"region": "europe-west4", "project": "p-1"},
}
CREDENTIAL = {"bedrock": "AKID:SECRETKEY:TOKEN"}
MODEL = {"bedrock": "eu.anthropic.claude-v1:0"}
PATHS = {
    "openai": CHAT,
    "azure": "/openai/deployments/m-1/chat/completions?api-version=2025-01-01",
    "anthropic": "/v1/messages",
    "bedrock": "/model/eu.anthropic.claude-v1%3A0/converse{stream}",
    "gemini": "/v1beta/models/m-1:{verb}",
    "vertex": "/v1/projects/p-1/locations/europe-west4/publishers/google/models/m-1:{verb}",
}
WHOLE = {
    "openai": shapes.openai,
    "azure": shapes.openai,
    "anthropic": shapes.anthropic,
    "bedrock": shapes.bedrock,
    "gemini": shapes.gemini,
    "vertex": shapes.gemini,
}
STREAM = {
    "openai": shapes.openai_stream,
    "azure": shapes.openai_stream,
    "anthropic": shapes.anthropic_stream,
    "bedrock": shapes.bedrock_stream,
    "gemini": shapes.gemini_stream,
    "vertex": shapes.gemini_stream,
}
ALL = pytest.mark.parametrize("dialect", sorted(PROVIDER))
FOREIGN = pytest.mark.parametrize("dialect", sorted(TRANSLATED))

TOOL = {
    "type": "function",
    "function": {
        "name": shapes.NAME,
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALLED = {"id": "call_1", "type": "function", "function": {"name": shapes.NAME, "arguments": '{"city": "Bonn"}'}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Look:"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "user", "content": "And tomorrow?"},
]


class Setup:
    def __init__(self, dialect: str, provider: FakeProvider, **changes: Any) -> None:
        self.model = MODEL.get(dialect, "m-1")
        target = {
            "id": "provider",
            "kind": "cloud",
            "url": provider.url,
            "zone": "cloud",
            "models": {"tiny": self.model},
            "dialect": dialect,
            "provider": {**PROVIDER[dialect], **changes},
        }
        config = make_config(targets=[target])
        credentials = {"provider": CREDENTIAL.get(dialect, "sk-cloud")}
        self.egress = EgressServer(config, compile_policy(config, Path()), SECRET, "egress-1", credentials)

    async def post(self, path: str = CHAT, **body: Any) -> httpx.Response:
        incarnation = "provider@egress-1"
        permission = Pass("r1", incarnation, "e1", "cloud+eu+us/cloud+eu+us/", time.time() + PASS_LIFETIME_S, "spiller")
        token = issue_pass(derive_target_key(SECRET, incarnation), permission, "POST", path)
        content = {"model": self.model, "messages": MESSAGES, "tools": [TOOL], **body}
        transport = httpx.ASGITransport(app=self.egress.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://egress") as client:
            headers = {"x-tidegate-target": "provider", PASS_HEADER: token}
            return await client.post(path, content=json.dumps(content), headers=headers)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    made = FakeProvider()
    yield made
    made.close()


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    lines = [part.removeprefix(b"data: ") for part in stream.split(b"\n\n") if part]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def joined(chunks: list[dict[str, Any]]) -> tuple[str, str, str, list[str]]:
    """Text, the call's name, its arguments, and finish reasons."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    functions = [call["function"] for delta in deltas for call in delta.get("tool_calls") or []]
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    names = "".join(function.get("name") or "" for function in functions)
    return text, names, "".join(function.get("arguments") or "" for function in functions), reasons


@ALL
async def test_half_a_character_and_a_huge_number_are_no_fault_of_the_providers(dialect: str, provider: FakeProvider):
    """JSON allows both; an answer of 500 would have the router give the target a rest, for everybody."""
    provider.body = WHOLE[dialect]()
    answer = await Setup(dialect, provider).post(messages=[{"role": "user", "content": "half \ud800"}], seed=10**40)
    assert answer.status_code == 200, answer.text


@ALL
async def test_a_whole_answer(dialect: str, provider: FakeProvider):
    provider.body = WHOLE[dialect]()
    answer = await Setup(dialect, provider).post()
    assert answer.status_code == 200
    completion = ChatCompletion.model_validate_json(answer.content, strict=True)
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == shapes.TEXT
    [call] = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == shapes.NAME
    assert json.loads(call.function.arguments) == shapes.ARGUMENTS
    usage = completion.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (17, 7, 5)
    path, headers, sent = provider.requests[0]
    assert path == PATHS[dialect].format(stream="", verb="generateContent")
    assert "sk-cloud" in str(headers) or dialect == "bedrock"
    assert b"Be brief." in sent and b"And tomorrow?" in sent


@ALL
async def test_a_stream(dialect: str, provider: FakeProvider):
    provider.body = STREAM[dialect]()
    provider.headers = {"content-type": "text/event-stream"}
    answer = await Setup(dialect, provider).post(stream=True, stream_options={"include_usage": True})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b"data: [DONE]\n\n") and answer.content.count(b"[DONE]") == 1
    chunks = chunks_of(answer.content)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    text, name, arguments, reasons = joined(chunks)
    assert (text, name, json.loads(arguments), reasons) == (shapes.TEXT, shapes.NAME, shapes.ARGUMENTS, ["tool_calls"])
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["prompt_tokens"] == 17
    assert provider.requests[0][0] == PATHS[dialect].format(stream="-stream", verb="streamGenerateContent?alt=sse")


@FOREIGN
def test_a_stream_may_be_cut_anywhere(dialect: str):
    stream = STREAM[dialect]()
    spec = make_config(targets=[target_of(dialect)]).targets[0]
    wholes = set()
    for size in (1, 2, 3, 7, 64, len(stream)):
        writer = ChunkWriter(1, "m", True)
        reader = TRANSLATED[dialect].stream(writer, spec)
        wholes.add(b"".join([*(reader.feed(stream[i : i + size]) for i in range(0, len(stream), size)), reader.finish()]))
    assert len(wholes) == 1 and wholes.pop().endswith(b"data: [DONE]\n\n")


@FOREIGN
def test_a_stream_that_ends_anywhere_else_is_never_taken_for_whole(dialect: str):
    stream = STREAM[dialect]()
    spec = make_config(targets=[target_of(dialect)]).targets[0]
    whole = 0
    for cut in range(len(stream)):
        writer = ChunkWriter(1, "m", False)
        reader = TRANSLATED[dialect].stream(writer, spec)
        out = reader.feed(stream[:cut]) + reader.finish()
        whole += out.endswith(b"[DONE]\n\n")
        assert out.endswith(b"[DONE]\n\n") or (writer.failure is not None and b'"error"' in out)
    # The last empty line, or the usage that follows the stop, may be missing from an answer that is complete.
    last = len(stream) - stream.rfind(b"data:") if dialect != "bedrock" else 200
    assert whole <= last


def target_of(dialect: str, **changes: Any) -> dict[str, Any]:
    options = {**PROVIDER[dialect], **changes.pop("provider", {})}
    base = {
        "id": "p",
        "kind": "cloud",
        "url": "http://127.0.0.1:1",
        "zone": "cloud",
        "models": {"tiny": MODEL.get(dialect, "m-1")},
    }
    return {**base, "dialect": dialect, "provider": options, **changes}


@ALL
async def test_only_listed_fields_leave_and_users_only_as_a_hash(dialect: str, provider: FakeProvider):
    provider.body = WHOLE[dialect]()
    setup = Setup(dialect, provider)
    extra = {"metadata": {"k": "CANARY"}, "cache_salt": "CANARY", "service_tier": "CANARY", "safety_identifier": "CANARY"}
    answer = await setup.post(user="alice@CANARY", seed=3, temperature=0.5, max_tokens=9, **extra)
    assert answer.status_code == 200
    path, headers, sent = provider.requests[0]
    assert b"CANARY" not in sent and "CANARY" not in path + str(headers)


@ALL
@pytest.mark.parametrize(
    ("status", "ours"),
    [(400, 400), (401, 502), (403, 502), (404, 502), (413, 413), (429, 429), (500, 502), (503, 503), (529, 503), (504, 504)],
)
async def test_failures_are_mapped_and_quote_nothing(dialect: str, status: int, ours: int, provider: FakeProvider, caplog: Any):
    caplog.set_level(logging.DEBUG)
    provider.status = status
    provider.headers = {"retry-after": "7"}
    provider.body = json.dumps({"error": {"message": "SECRET PROMPT", "type": "SECRET PROMPT", "code": "SECRET PROMPT"}}).encode()
    answer = await Setup(dialect, provider).post()
    assert answer.status_code == ours
    assert answer.json()["error"]["code"] in {"invalid_request", "rate_limited", "upstream_error", "overloaded"}
    assert ("retry-after" in answer.headers) == (ours in (429, 503))
    assert "SECRET PROMPT" not in answer.text + caplog.text


@pytest.mark.parametrize(
    ("dialect", "status", "headers", "error", "ours"),
    [
        ("anthropic", 500, {}, {"type": "overloaded_error", "message": "x"}, 503),
        ("anthropic", 400, {}, {"type": "rate_limit_error", "message": "x"}, 429),
        ("bedrock", 400, {"x-amzn-errortype": "ThrottlingException:http://x"}, {}, 429),
        ("bedrock", 424, {"x-amzn-errortype": "ModelErrorException"}, {}, 502),
        ("gemini", 400, {}, {"status": "RESOURCE_EXHAUSTED"}, 429),
        ("vertex", 500, {}, {"status": "UNAVAILABLE"}, 503),
    ],
)
async def test_the_providers_own_word_goes_before_the_status(
    dialect: str, status: int, headers: dict[str, str], error: dict[str, str], ours: int, provider: FakeProvider
):
    provider.status, provider.headers, provider.body = status, headers, json.dumps({"error": error}).encode()
    assert (await Setup(dialect, provider).post()).status_code == ours


@pytest.mark.parametrize(
    ("dialect", "word", "said"),
    [
        ("anthropic", "overloaded_error", "overloaded"),
        ("bedrock", "throttlingException", "rate_limited"),
        ("bedrock", "modelStreamErrorException", "upstream_error"),
        ("gemini", "UNAVAILABLE", "overloaded"),
    ],
)
async def test_an_error_in_the_middle_of_a_stream(dialect: str, word: str, said: str, provider: FakeProvider):
    provider.body = STREAM[dialect](error=word)  # type: ignore[operator]
    answer = await Setup(dialect, provider).post(stream=True)
    assert b"[DONE]" not in answer.content and b"SECRET PROMPT" not in answer.content
    assert chunks_of(answer.content)[-1]["error"]["code"] == said
    assert joined(chunks_of(answer.content)[:-1])[0] == shapes.TEXT


async def test_an_error_before_the_first_token_has_a_status(provider: FakeProvider):
    provider.body = shapes.events({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, named=True)
    assert (await Setup("anthropic", provider).post(stream=True)).status_code == 503


@ALL
async def test_a_connection_that_breaks_is_no_success(dialect: str, provider: FakeProvider):
    provider.body = WHOLE[dialect]()
    provider.cut = 50
    setup = Setup(dialect, provider)
    if dialect in TRANSLATED:
        assert (await setup.post()).status_code == 502
    provider.body, provider.cut = STREAM[dialect](), 700
    try:
        answer = await setup.post(stream=True)
    except httpx.HTTPError:
        return
    assert b"[DONE]" not in answer.content


@FOREIGN
@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"not json", b'{"x":1}', b"\xff\xfe", b'{"content":1,"type":"message","output":2}']
)
async def test_rubbish_is_a_bad_gateway(dialect: str, body: bytes, provider: FakeProvider):
    provider.body = body
    setup = Setup(dialect, provider, **({"geo": None, "anywhere": True} if dialect == "anthropic" else {}))
    assert (await setup.post()).status_code == 502
    answer = await setup.post(stream=True)
    assert answer.status_code == 502 or b"[DONE]" not in answer.content


# ---- where Anthropic says that it was


async def test_the_place_of_inference_is_asked_for_and_its_echo_checked(provider: FakeProvider):
    provider.body = shapes.anthropic("eu")
    setup = Setup("anthropic", provider)
    assert (await setup.post()).status_code == 200
    assert json.loads(provider.requests[0][2])["inference_geo"] == "eu"


@pytest.mark.parametrize("said", ["us", "global", None])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_contradiction_gives_no_byte_of_the_answer_and_shuts_the_target(
    said: str | None, stream: bool, provider: FakeProvider
):
    provider.body = shapes.anthropic_stream(said) if stream else shapes.anthropic(said)
    setup = Setup("anthropic", provider)
    answer = await setup.post(stream=stream)
    assert answer.status_code == 502 and shapes.TEXT[:5] not in answer.text
    provider.body = shapes.anthropic("eu")
    assert (await setup.post()).status_code == 502
    assert len(provider.requests) == 1


# ---- what each provider is sent


def sent(dialect: str, **body: Any) -> dict[str, Any]:
    from deployments.egress.dialects.chat import read_chat

    spec = make_config(targets=[target_of(dialect)]).targets[0]
    outgoing = TRANSLATED[dialect].request(read_chat({"model": "m-1", "messages": MESSAGES, "tools": [TOOL], **body}), spec)
    result: dict[str, Any] = json.loads(outgoing.body)
    return result


def test_what_anthropic_is_sent():
    body = sent("anthropic", max_tokens=5, temperature=1.5, stop="END", parallel_tool_calls=False, tool_choice="required")
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    assert body == {
        "model": "m-1",
        "max_tokens": 5,
        "system": "Be brief.",
        "temperature": 1.0,
        "stop_sequences": ["END"],
        "inference_geo": "eu",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "text", "text": "Look:"}, picture]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "call_1", "name": shapes.NAME, "input": {"city": "Bonn"}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"},
                    {"type": "text", "text": "And tomorrow?"},
                ],
            },
        ],
        "tools": [{"name": shapes.NAME, "description": "d", "input_schema": TOOL["function"]["parameters"]}],  # type: ignore[index]
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    assert sent("anthropic", tool_choice="none")["tool_choice"] == {"type": "none"}
    assert sent("anthropic", tool_choice={"type": "function", "function": {"name": "f"}})["tool_choice"] == {
        "type": "tool",
        "name": "f",
    }


def test_what_bedrock_is_sent():
    body = sent("bedrock", max_tokens=5, top_p=0.5, stop=["END"], tool_choice="required")
    assert body["system"] == [{"text": "Be brief."}]
    assert body["inferenceConfig"] == {"maxTokens": 5, "topP": 0.5, "stopSequences": ["END"]}
    assert body["messages"][0]["content"][2] == {"image": {"format": "png", "source": {"bytes": "aGk="}}}
    assert body["messages"][1]["content"] == [
        {"toolUse": {"toolUseId": "call_1", "name": shapes.NAME, "input": {"city": "Bonn"}}}
    ]
    assert body["messages"][2]["content"][0] == {"toolResult": {"toolUseId": "call_1", "content": [{"text": "rain"}]}}
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert body["toolConfig"]["toolChoice"] == {"any": {}}
    assert body["toolConfig"]["tools"][0]["toolSpec"]["inputSchema"] == {"json": TOOL["function"]["parameters"]}  # type: ignore[index]


def test_what_gemini_is_sent():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    body = sent("gemini", max_tokens=5, seed=1, response_format=form, tool_choice={"type": "function", "function": {"name": "f"}})
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    assert body["generationConfig"] == {
        "maxOutputTokens": 5,
        "seed": 1,
        "responseMimeType": "application/json",
        "responseJsonSchema": schema,
    }
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    assert body["contents"][0]["parts"][2] == {"inlineData": {"mimeType": "image/png", "data": "aGk="}}
    assert body["contents"][2]["parts"][0] == {"functionResponse": {"name": shapes.NAME, "response": {"result": "rain"}}}
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}}


async def test_geminis_signature_comes_back_with_the_call(provider: FakeProvider):
    provider.body = shapes.gemini()
    made = (await Setup("gemini", provider).post()).json()["choices"][0]["message"]
    messages = [
        {"role": "user", "content": "x"},
        made,
        {"role": "tool", "tool_call_id": made["tool_calls"][0]["id"], "content": "y"},
    ]
    part = sent("gemini", messages=messages)["contents"][1]["parts"][1]
    assert part == {"functionCall": {"name": shapes.NAME, "args": shapes.ARGUMENTS}, "thoughtSignature": "c2ln"}


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"logprobs": True},
        {"messages": []},
        {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{CANARY"}}]}]},
        {"tools": [{"type": "CANARY"}]},
        {"tool_choice": "CANARY"},
        {"temperature": "CANARY"},
    ],
)
@FOREIGN
async def test_what_cannot_be_translated_is_refused_here(dialect: str, body: dict[str, Any], provider: FakeProvider):
    answer = await Setup(dialect, provider).post(**body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "CANARY" not in answer.text and provider.requests == []


async def test_fields_a_model_does_not_take_are_dropped(provider: FakeProvider):
    provider.body = shapes.anthropic()
    await Setup("anthropic", provider, drop=["temperature"]).post(temperature=0.3)
    assert "temperature" not in json.loads(provider.requests[0][2])


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("refusal", "content_filter"), ("max_tokens", "length"), ("stop_sequence", "stop"), ("new_one", "stop")],
)
async def test_why_anthropic_stopped(reason: str, finish: str, provider: FakeProvider):
    provider.body = json.dumps({**json.loads(shapes.anthropic()), "stop_reason": reason}).encode()
    assert (await Setup("anthropic", provider).post()).json()["choices"][0]["finish_reason"] == finish


async def test_a_prompt_gemini_blocks_is_a_content_filter(provider: FakeProvider):
    provider.body = json.dumps({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 4}}).encode()
    assert (await Setup("gemini", provider).post()).json()["choices"][0]["finish_reason"] == "content_filter"


# ---- Amazon's own


def test_the_signature_is_the_one_in_amazons_documentation():
    key = AwsKey("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    url = "https://iam.amazonaws.com/?Action=ListUsers&Version=2010-05-08"
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
    signed = sign(key, "GET", url, headers, b"", "us-east-1", "iam", 1440938160.0)
    assert signed["x-amz-date"] == "20150830T123600Z"
    assert signed["authorization"].endswith("Signature=5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7")
    assert "wJal" not in repr(key)


async def test_a_temporary_key_and_an_api_key(provider: FakeProvider):
    provider.body = shapes.bedrock()
    await Setup("bedrock", provider).post()
    headers = provider.requests[0][1]
    assert headers["x-amz-security-token"] == "TOKEN" and "/eu-central-1/bedrock/aws4_request" in headers["authorization"]
    assert "SECRETKEY" not in str(headers)


def test_a_damaged_frame_is_refused():
    frame = write_frame({":event-type": "x", ":message-type": "event"}, b'{"a":1}')
    assert FrameReader().feed(frame)[0].payload == b'{"a":1}'
    for i in range(len(frame)):
        damaged = frame[:i] + bytes([frame[i] ^ 1]) + frame[i + 1 :]
        try:
            assert FrameReader().feed(damaged) == []
        except BadFrame:
            continue


# ---- configuration


@pytest.mark.parametrize(
    ("dialect", "changes", "said"),
    [
        ("bedrock", {"provider": {"region": None}}, "provider.region"),
        ("bedrock", {"models": {"tiny": "global.anthropic.claude"}}, "global inference profile"),
        ("bedrock", {"models": {"tiny": "us.anthropic.claude"}}, "geography `us`"),
        ("bedrock", {"url": "https://bedrock-runtime.us-east-1.amazonaws.com"}, "not the region of the host"),
        ("azure", {"provider": {"sku": None}}, "provider.sku"),
        ("azure", {"provider": {"sku": "Cheap"}}, "unknown deployment type"),
        ("azure", {"provider": {"sku": "GlobalStandard"}}, "any region"),
        ("azure", {"url": "https://api.openai.com"}, "no host of Azure"),
        ("openai", {"url": "https://api.openai.com", "provider": {"region": "eu"}}, "eu.api.openai.com"),
        ("vertex", {"provider": {"region": "global"}}, "global endpoint"),
        ("vertex", {"url": "https://aiplatform.googleapis.com"}, "global endpoint"),
        ("vertex", {"url": "https://us-east1-aiplatform.googleapis.com"}, "not the region of the host"),
        ("vertex", {"provider": {"project": None}}, "provider.project"),
        ("gemini", {"provider": {"anywhere": False}}, "no regions"),
        ("anthropic", {"provider": {"geo": None}}, "provider.geo"),
        ("anthropic", {"provider": {"geo": "global"}}, "provider.geo"),
        ("anthropic", {"task": "pooling"}, "chat only"),
        ("anthropic", {"kind": "server", "vouched": True}, "dialect"),
    ],
)
def test_a_target_that_contradicts_itself_is_refused_at_load(dialect: str, changes: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        make_config(targets=[target_of(dialect, **changes)])


@ALL
def test_a_target_that_says_enough_is_taken(dialect: str):
    hosts = {
        "openai": "https://api.openai.com",
        "azure": "https://x.openai.azure.com",
        "anthropic": "https://api.anthropic.com",
        "bedrock": "https://bedrock-runtime.eu-central-1.amazonaws.com",
        "gemini": "https://generativelanguage.googleapis.com",
        "vertex": "https://europe-west4-aiplatform.googleapis.com",
    }
    policy = make_policy(targets=[target_of(dialect, url=hosts[dialect])])
    [site] = [site for site in policy.sites if site.external]
    assert (CHAT in site.endpoints) and (("/v1/completions" in site.endpoints) == (dialect in ("openai", "azure")))
