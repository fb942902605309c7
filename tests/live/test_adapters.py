"""Real vLLM with LoRA adapters, asked through a router: names, caches and metrics are what we take them for."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from cluster.vllm_metrics import parse_signals
from deployments.adapters import adapter_arguments
from deployments.vllm_command import build_argv
from router.config import ConfigError, Model
from tests.live import plain_stack
from tests.live.conformance_cases import ENGINE_MODEL
from tests.live.cut_model import cut_model
from tests.live.long import LONG
from tests.live.starting import Parented

pytestmark = [pytest.mark.live, LONG, pytest.mark.timeout(1200)]
ARGS = ["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "4", "--enable-prefix-caching"]
PROMPT = "The tide gate lets water pass in one direction only. " * 40


def write_adapter(folder: Path, model: Path, seed: int, width: int = 0) -> Path:
    """An adapter of random weights, strong enough to change every answer."""
    import torch
    from safetensors.torch import save_file

    about = json.loads((model / "config.json").read_text())
    hidden, rank = width or about["hidden_size"], 8
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(about["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, hidden, generator=draw)
        tensors[f"{name}.lora_B.weight"] = torch.randn(hidden, rank, generator=draw)
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 64, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "bias": "none", "base_model_name_or_path": "org/base"}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small model with two adapters."""
    folder = tmp_path_factory.mktemp("adapted")
    cut = cut_model(model_dir, folder / "cut")
    adapters = [{"id": name, "source": str(write_adapter(folder / name, cut, seed))} for seed, name in enumerate(("law", "med"))]
    return Model(id=ENGINE_MODEL, source=str(cut), args=ARGS, adapters=adapters, replicas=[{"zone": "local"}])


@pytest.fixture(scope="module")
def stack(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[plain_stack.Stack]:
    """The engine, without a guard, and a router that knows its adapters."""
    argv = build_argv(model, model.source, "127.0.0.1", 0, adapter_arguments(model, model.source))
    guard = argv.index("--middleware")
    argv = argv[:guard] + argv[guard + 2 :]
    argv[argv.index("--port") + 1] = "{port}"
    server = Parented(model.model_dump(), argv, tmp_path_factory.mktemp("logs"))
    try:
        with plain_stack.open_router(
            server, tmp_path_factory.mktemp("router"), dict.fromkeys(("law", "med"), ENGINE_MODEL)
        ) as up:
            yield up
    finally:
        server.kill()


def complete(client: httpx.Client, name: str, prompt: str = PROMPT, tokens: int = 8) -> httpx.Response:
    return client.post(
        "/v1/completions", json={"model": name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 1}
    )


def hits(stack: plain_stack.Stack) -> float:
    page = httpx.get(f"{stack.engine}/metrics", timeout=60, trust_env=False).text
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:prefix_cache_hits_total{"))


def test_the_engine_lists_what_the_router_lists(stack):
    cards = [stack.client(base).get("/v1/models").json()["data"] for base in (stack.engine, stack.router)]
    parents = [{card["id"]: card.get("parent") for card in listed if card["id"] in ("law", "med")} for listed in cards]
    assert parents[0] == parents[1] == {"law": ENGINE_MODEL, "med": ENGINE_MODEL}


def test_each_name_answers_in_its_own_way_and_the_same_through_the_router(stack):
    with stack.client(stack.router) as through, stack.client(stack.engine) as direct:
        answers = {}
        for name in (ENGINE_MODEL, "law", "med"):
            # Twice each: with its prefix cached a prompt is computed in another order, and rounds otherwise.
            routed, asked = ([complete(client, name) for _ in range(2)][1] for client in (through, direct))
            assert routed.status_code == 200 and routed.headers["x-tidegate-model"] == name
            choice = routed.json()["choices"][0]
            assert choice["text"] == asked.json()["choices"][0]["text"]
            # Random weights often end in the same babble; how sure they are of it differs.
            answers[name] = choice["text"], round(choice["logprobs"]["token_logprobs"][0], 2)
        assert len(set(answers.values())) == 3
        assert complete(through, "tax").status_code == 404


def test_what_one_name_has_cached_is_cold_for_another(stack):
    """What the router assumes when it keeps their prefixes apart."""
    fresh = "Ropes dry in the wind under quiet bells. " * 60
    with stack.client(stack.router) as client:
        seen = [hits(stack)]
        for name in ("law", "law", "med", ENGINE_MODEL):
            assert complete(client, name, fresh).status_code == 200
            seen.append(hits(stack))
    first, again, other, base = (later - earlier for earlier, later in pairwise(seen))
    assert first == other == base == 0 and again >= 128


def test_the_metrics_tell_whether_there_is_a_prefix_cache(stack):
    page = httpx.get(f"{stack.engine}/metrics", timeout=60, trust_env=False).content
    off = page.replace(b'enable_prefix_caching="True"', b'enable_prefix_caching="False"')
    assert parse_signals(page, 0.0).keeps_prefixes and off != page and not parse_signals(off, 0.0).keeps_prefixes


def test_the_metrics_tell_which_adapters_run(stack):
    def look() -> tuple[tuple[str, ...], int]:
        page = httpx.get(f"{stack.engine}/metrics", timeout=60, trust_env=False).content
        signals = parse_signals(page, time.time())
        return signals.adapters, signals.adapter_slots

    with concurrent.futures.ThreadPoolExecutor(1) as pool, stack.client(stack.router) as client:
        running = pool.submit(complete, client, "med", "A long story: ", 1500)
        seen = set()
        while not running.done():
            seen.add(look())
        assert running.result().status_code == 200
    assert (("med",), 2) in seen


def test_an_adapter_of_another_base_model_never_comes_to_vllm(model, tmp_path):
    wrong = write_adapter(tmp_path / "wrong", Path(model.source), 1, width=1024)
    changed = model.model_copy(update={"adapters": [model.adapters[0].model_copy(update={"source": str(wrong)})]})
    with pytest.raises(ConfigError, match="hidden size is 1024"):
        adapter_arguments(changed, model.source)
