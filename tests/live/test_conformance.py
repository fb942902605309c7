"""One real vLLM, asked directly and through the router: the same answers. And the client libraries people use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from router.placement.targets import Endpoint
from tests.deployments.processes import marked, wait_until
from tests.live.answers import folded, nearly, normalise
from tests.live.calling_engine import CallingEngine
from tests.live.conformance_cases import ENGINE_MODEL, FAMILIES, MORE, POOLING, SEED, Case, cases
from tests.live.conftest import Ahead
from tests.live.long import LONG
from tests.live.plain_stack import KEY, Stack, open_router
from tests.live.starting import install

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _dataplane import routers, slots

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
JSON = {"content-type": "application/json"}
SEEDS = [SEED, pytest.param(MORE, marks=LONG)]
CONTRACT = ("x-request-id", "x-tidegate-model", "x-tidegate-target", "x-tidegate-zone", "x-tidegate-reason")
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 5}
# The helpers that collect a stream refuse one that ended for length, so this one ends by itself.
FINISHED: dict[str, Any] = {**ASK, "max_tokens": 16, "extra_body": {"structured_outputs": {"choice": ["Paris"]}}}
FRAMEWORKS = ("langchain-tests", "langchain-openai", "llama-index-llms-openai-like", "pytest-asyncio")


@pytest.fixture(scope="module")
def stack(ahead: Ahead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The engine serves a few layers of the model: what is tested is the surface, and it answers several times faster."""
    with open_router(ahead.plain, tmp_path_factory.mktemp("conformance")) as stack:
        yield stack
    ahead.plain.kill()


@pytest.fixture(scope="module")
def pooling_stack(ahead: Ahead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An engine that makes vectors, and a router in front of it."""
    with open_router(ahead.pooling, tmp_path_factory.mktemp("pooling"), task="pooling") as stack:
        yield stack
    ahead.pooling.kill()


# --- the same answers ------------------------------------------------------------------------------------------------


def ask_both(direct: httpx.Client, routed: httpx.Client, case: Case) -> list[tuple[int, str, str]]:
    """Status, content type and normalised body: of the engine itself, and through the router."""
    answers = [
        direct.post(case.path, content=case.encode(ENGINE_MODEL), headers=JSON),
        routed.post(case.path, content=case.encode(case.routed_model), headers=JSON),
    ]
    assert all(name in answers[1].headers for name in CONTRACT)
    return [(answer.status_code, answer.headers["content-type"], normalise(answer.text)) for answer in answers]


def differences(stack: Stack, family: str, seed: int) -> list[str]:
    """The requests of a family that get another answer through the router."""
    found: list[str] = []
    with stack.client(stack.engine) as direct, stack.client(stack.router) as routed:
        for case in cases(family, seed):
            own, through = ask_both(direct, routed, case)
            assert (own[0] == 200) == ("refused" not in family), f"{case.path} {case.body}: {own}"
            if own == through:
                continue
            streamed = own[1].startswith("text/event-stream")
            same = folded(own[2]) == folded(through[2]) if streamed else nearly(own[2], through[2])
            if own[:2] != through[:2] or not same:
                found.append(f"{case.path} {case.body}\n  direct: {own}\n  routed: {through}")
    return found


def test_there_are_enough_of_them():
    every = [case for family in (*FAMILIES, *POOLING) for case in cases(family)]
    assert len(every) >= 290
    more = [case for family in (*FAMILIES, *POOLING) for case in cases(family, MORE) if case not in every]
    assert len(every) + len(more) >= 500
    assert {case.path for case in every} == set(Endpoint) - {Endpoint.TRANSCRIPTIONS}, "a model that hears is not to be had here"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", POOLING)
def test_vectors_scores_and_ranks_through_the_router_are_the_engines_own(pooling_stack: Stack, family: str, seed: int):
    assert differences(pooling_stack, family, seed) == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_through_the_router_is_the_engines_own(stack: Stack, family: str, seed: int):
    assert differences(stack, family, seed) == []


def test_what_the_router_decides_itself_comes_in_the_same_envelope(stack: Stack):
    chat = "/v1/chat/completions"
    twice = b'{"model": "smollm2", "model": "x", "messages": []}'
    deep = b'{"model": "smollm2", "messages": ' + b"[" * 100 + b"]" * 100 + b"}"
    with stack.client(stack.router) as routed:
        refused = [
            (routed.post(chat, json={**ASK, "model": "gpt-9"}), 404, "model_not_found"),
            (routed.post(chat, json=ASK), 400, "invalid_request"),
            (routed.post(chat, content=b"{", headers=JSON), 400, "invalid_request"),
            (routed.post(chat, content=twice, headers=JSON), 400, "invalid_request"),
            (routed.post(chat, content=deep, headers=JSON), 400, "invalid_request"),
            (routed.post(chat, content=b'{"model": "smollm2", "top_p": NaN}', headers=JSON), 400, "invalid_request"),
            (routed.get(chat), 405, "invalid_request"),
            (routed.post("/v1/embeddings", json={"model": ENGINE_MODEL, "input": "x"}), 404, "model_not_found"),
            (routed.post("/v1/no-such-thing", json={}), 404, "invalid_request"),
            (
                routed.post(chat, json={**ASK, "model": ENGINE_MODEL}, headers={"authorization": "Bearer x"}),
                401,
                "invalid_api_key",
            ),
        ]
        for response, status, code in refused:
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (status, code)
            assert set(error) == {"message", "type", "param", "code"} and all(name in response.headers for name in CONTRACT)
        assert {"auto", "small", ENGINE_MODEL} <= {card["id"] for card in routed.get("/v1/models").json()["data"]}


async def test_a_client_that_leaves_frees_vllms_slot_whatever_it_asked_for(stack: Stack):
    result = await slots.run(urlsplit(stack.engine).port, {slots.ROUTED: urlsplit(stack.router).port}, ENGINE_MODEL, 1, KEY)
    print(f"slots free after {result.over_all_ms(slots.ROUTED)} ms (p50, p99, of)")
    assert result.violations == [] and len(result.delays[slots.ROUTED]) == 8
    assert await routers.Router(urlsplit(stack.router).port, 0, 0).settles(), "nothing of them is left in the router's books"


# --- client libraries ------------------------------------------------------------------------------------------------


def test_the_openai_sdk_at_its_strictest(stack: Stack):
    client = openai.OpenAI(base_url=f"{stack.router}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True)
    chat = client.chat.completions
    answer = chat.create(model="auto", **ASK, logprobs=True, top_logprobs=2)
    text = answer.choices[0].message.content
    assert answer.usage and answer.usage.completion_tokens == 5 and answer.choices[0].logprobs
    parts = list(chat.create(model="auto", **ASK, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == text
    assert parts[-1].usage == answer.usage.model_copy(update=parts[-1].usage.model_dump(exclude_unset=True))
    assert all(part.choices for part in chat.create(model="auto", **ASK, stream=True))
    with chat.stream(model="small", **FINISHED) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content == "Paris"
    assert kinds[-1] == "content.done" and "content.delta" in kinds
    raw = chat.with_raw_response.create(model=ENGINE_MODEL, **ASK)
    assert raw.headers["x-tidegate-target"] == "plain" and raw.parse().choices[0].message.content == text
    assert raw.request_id == raw.headers["x-request-id"]
    completion = client.completions.create(model=ENGINE_MODEL, prompt=["a", "b"], temperature=0, max_tokens=3, logprobs=1)
    assert len(completion.choices) == 2
    response = client.responses.create(model="auto", input="Hello", instructions="Be brief.", max_output_tokens=5)
    assert response.usage and response.usage.output_tokens == 5
    assert ENGINE_MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve("auto").id == "auto"


class _Person(BaseModel):
    name: str


async def test_the_async_openai_sdk_at_its_strictest(stack: Stack):
    options: Any = {"base_url": f"{stack.router}/v1", "api_key": KEY, "max_retries": 0, "_strict_response_validation": True}
    async with openai.AsyncOpenAI(**options) as client:
        chat = client.chat.completions
        answers = await asyncio.gather(*(chat.create(model="auto", **ASK) for _ in range(4)))
        assert all(answer.choices[0].finish_reason == "length" for answer in answers)
        async with await chat.create(model="auto", **ASK, stream=True) as parts:
            assert len([part async for part in parts]) >= 5
        async with chat.stream(model="auto", **FINISHED) as stream:
            assert (await stream.get_final_completion()).choices[0].message.content == "Paris"
        async with client.responses.stream(model="auto", input="Hello", max_output_tokens=5) as events:
            assert [event.type async for event in events][-1] in ("response.completed", "response.incomplete")
        with pytest.raises(openai.LengthFinishReasonError):
            await chat.parse(model="auto", **ASK, response_format=_Person)


def test_the_anthropic_sdk(stack: Stack):
    client = anthropic.Anthropic(base_url=stack.router, api_key=KEY, max_retries=0, _strict_response_validation=True)
    ask: Any = {
        "model": "auto",
        "system": "Be brief.",
        "messages": ASK["messages"],
        "max_tokens": 5,
        "extra_body": {"temperature": 0},
    }
    answer = client.messages.create(**ask)
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 5
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == answer.content[0].text
        assert stream.get_final_message().usage.output_tokens == 5
    counted = client.messages.count_tokens(model="auto", messages=ASK["messages"], system="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**{**ask, "max_tokens": 5000})
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ask, "model": "gpt-9"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="nobody").messages.create(**ask)


@pytest.fixture(scope="module")
def client_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the frameworks in it, which need another `openai` than the project's."""
    folder = tmp_path_factory.mktemp("clients") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    if failed := install(folder, *FRAMEWORKS, python=python):
        pytest.skip(f"{', '.join(FRAMEWORKS)} cannot be installed here: {failed}")
    return python


def run_client(stack: Stack, python: Path | str, *arguments: str, path: str = "") -> str:
    """Run a program of `clients` against the router; its output, once it ended with 0."""
    names = {"TIDEGATE_URL": f"{stack.router}/v1", "TIDEGATE_KEY": KEY, "PYTHONPATH": path}
    done = subprocess.run(
        [python, *arguments], env={**os.environ, **names}, cwd=HERE / "clients", capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_openai_sdk_of_the_major_version_before(stack: Stack, openai_2: Path):
    assert run_client(stack, sys.executable, "openai_2.py", path=str(openai_2)).startswith("openai 2.")


@LONG
def test_llama_index(stack: Stack, client_python: Path):
    assert "llama-index ok" in run_client(stack, client_python, "llama_index_smoke.py")


@LONG
def test_the_standard_tests_of_langchain(stack: Stack, client_python: Path):
    print(run_client(stack, client_python, "-m", "pytest", "langchain_suite.py"))


@LONG
def test_the_standard_tests_of_langchain_over_an_engine_that_calls_tools(
    client_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = CallingEngine()
    monkeypatch.setenv("TIDEGATE_WHOLE_JSON", "1")
    try:
        with open_router(engine, tmp_path) as stack:
            said = run_client(stack, client_python, "-m", "pytest", "langchain_suite.py")
    finally:
        engine.stop()
    print(said)
    assert " passed" in said and "xfailed" not in said


def test_last_nothing_of_the_prompts_is_in_the_routers_log(stack: Stack):
    assert "capital" not in stack.log.read_text(encoding="utf-8")


def test_last_of_all_a_killed_parent_leaves_nothing(stack: Stack):
    server = stack.server
    assert len(marked(server.mark)) >= 4  # parent, leash, API server, engine core
    server.kill()
    assert wait_until(lambda: marked(server.mark) == [], 60), marked(server.mark)
