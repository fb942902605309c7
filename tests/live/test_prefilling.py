"""Two real vLLM with NIXL between them, the halves of a pair: the second computes nothing of a prompt, and answers the same."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live import plain_stack
from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.cut_model import cut_model
from tests.live.long import LONG
from tests.live.starting import Parented, install

pytestmark = [pytest.mark.live, LONG, pytest.mark.timeout(1200)]
NIXL = ("--no-deps", "nixl==1.5.1", "nixl-cu12==1.5.1")
ARGS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "4")
HAND_OVER = ("--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}')
TEXT = "The tide gate lets water pass in one direction only. " * 40


@contextlib.contextmanager
def engine(model: Path, logs: Path, patch: pytest.MonkeyPatch) -> Iterator[Parented]:
    patch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", str(plain_stack.free_port()))
    server = plain_stack.begin_engine(model, logs, (*ARGS, *HAND_OVER))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def stacks(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[plain_stack.Stack, str]]:
    """A router over a pair, and the address of the half for prompts."""
    folder = tmp_path_factory.mktemp("pair")
    if why := install(folder / "nixl", *NIXL):
        pytest.skip(f"nixl cannot be had: {why}")
    model = cut_model(model_dir, folder / "cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder / "nixl")])
        patch.setenv("VLLM_NIXL_SIDE_CHANNEL_HOST", "127.0.0.1")
        patch.setenv("UCX_NET_DEVICES", os.environ.get("UCX_NET_DEVICES", "all"))
        with engine(model, folder, patch) as first, engine(model, folder, patch) as second:
            half = f"http://127.0.0.1:{first.wait()}"
            with plain_stack.open_router(second, folder, prefill={"url": half, "min_tokens": 100}) as stack:
                yield stack, half


def prompt_tokens_by_source(engine: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{engine}/metrics", trust_env=False).text)
    samples = [sample for family in families for sample in family.samples]
    return {s.labels["source"]: s.value for s in samples if s.name == "vllm:prompt_tokens_by_source_total"}


def ask(client: httpx.Client, text: str, **more: object) -> httpx.Response:
    body = {"model": ENGINE_MODEL, "prompt": text, "max_tokens": 12, "temperature": 0, **more}
    return client.post("/v1/completions", json=body)


def test_the_answering_half_computes_nothing_of_a_long_prompt(stacks: tuple[plain_stack.Stack, str]) -> None:
    stack, half = stacks
    with stack.client(stack.router) as through, stack.client(half) as alone:
        for number in range(3):
            text = f"{number}. {TEXT}"
            answered, expected = ask(through, text), ask(alone, text)
            assert answered.status_code == 200, answered.text
            assert "computed by the other half" in answered.headers["x-tidegate-reason"]
            assert answered.json()["choices"][0]["text"] == expected.json()["choices"][0]["text"]
            assert answered.json()["usage"]["prompt_tokens"] == expected.json()["usage"]["prompt_tokens"]
        streamed = ask(through, f"4. {TEXT}", stream=True)
        assert streamed.text.rstrip().endswith("data: [DONE]") and "other half" in streamed.headers["x-tidegate-reason"]
    sources = prompt_tokens_by_source(stack.engine)
    assert sources["local_compute"] == 0 and sources["external_kv_transfer"] > 1000


def test_a_short_prompt_is_computed_where_it_is_answered(stacks: tuple[plain_stack.Stack, str]) -> None:
    stack, half = stacks
    before = prompt_tokens_by_source(half)
    with stack.client(stack.router) as through:
        assert ask(through, "The tide").status_code == 200
    assert prompt_tokens_by_source(half) == before
    assert prompt_tokens_by_source(stack.engine)["local_compute"] > 0
