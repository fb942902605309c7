"""The agent's place beside an engine: sockets, what vLLM and the agent are told, and a process that is kept."""

import asyncio
import json
import stat
from pathlib import Path

import psutil
import pytest

from deployments.kv_agent import KvAgent, chunk_key_of, make_sockets, plan_agent, remove_sockets
from deployments.vllm_command import build_argv
from deployments.vllm_options import check_model
from router.config import Model
from router.residency.guard import Place
from tests.cluster.tokenizers_for_tests import byte_level

PLACE = Place(("local",), ("local",))


def a_model(*args: str, **more) -> Model:
    return Model(**{"id": "m", "source": "/models/m", "args": list(args), "replicas": [{"zone": "local"}], **more})


def the_option(arguments, name: str) -> str:
    return arguments[list(arguments).index(name) + 1]


def test_events_go_through_sockets_nobody_else_can_reach():
    model = a_model()
    sockets = make_sockets(model)
    try:
        assert sockets is not None
        folder = Path(sockets.folder)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        config = json.loads(the_option(sockets.arguments, "--kv-events-config"))
        assert config["enable_kv_cache_events"] is True and config["publisher"] == "zmq"
        assert (config["endpoint"], config["replay_endpoint"]) == (sockets.events[0], sockets.replays[0])
        assert all(address.startswith(f"ipc://{folder}/") for address in (*sockets.events, *sockets.replays))
        assert len(sockets.events[0]) < 100  # a unix socket's path has an end
        # What is ours has to be what a user would have to write: it passes the same check.
        check_model(a_model(*sockets.arguments))
        argv = build_argv(model, "/models/m", "127.0.0.1", 1, sockets.arguments)
        assert "--enable-prompt-tokens-details" in argv
    finally:
        remove_sockets(sockets)
    assert not folder.exists()


def test_every_rank_has_its_own():
    sockets = make_sockets(a_model("--data-parallel-size", "3"))
    try:
        assert sockets is not None
        base = sockets.events[0]
        assert sockets.events == (base, base + "_dp1", base + "_dp2")
        assert "inproc" in base  # without it vLLM knows no address for the other ranks
        assert len(set(sockets.replays)) == 3
    finally:
        remove_sockets(sockets)


@pytest.mark.parametrize(
    "model",
    [a_model(task="pooling"), a_model("--no-enable-prefix-caching"), a_model("--kv-events-config", '{"publisher": "null"}')],
)
def test_engines_without_a_cache_to_tell_have_no_agent(model):
    assert make_sockets(model) is None


def test_the_users_own_sockets_are_used():
    mine = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": "ipc:///run/x", "replay_endpoint": "ipc:///run/y"}
    sockets = make_sockets(a_model("--kv-events-config", json.dumps(mine)))
    assert sockets is not None
    assert (sockets.events, sockets.replays, sockets.folder) == (("ipc:///run/x",), ("ipc:///run/y",), "")
    assert "--kv-events-config" not in sockets.arguments


def a_plan(folder: Path, *args: str):
    byte_level(folder / "tokenizer.json")
    model = a_model(*args)
    sockets = make_sockets(a_model())
    remove_sockets(sockets)  # nobody publishes in these tests
    return plan_agent(
        model,
        str(folder),
        sockets,
        host="127.0.0.1",
        incarnation="i",
        place=PLACE,
        guard_key=b"g" * 32,
        chunk_key=chunk_key_of(b"s" * 32, model),
    )


def test_the_agent_hears_of_arguments_that_change_prompts(tmp_path):
    arguments = ["--chat-template=/t.jinja", "--chat-template-content-format", "openai", "--tokenizer_mode", "mistral"]
    arguments += ["--default-chat-template-kwargs", '{"enable_thinking": false}', "--exclude-tools-when-tool-choice-none"]
    options = a_plan(tmp_path, *arguments).options
    assert options.chat_template == "/t.jinja"
    assert options.chat_template_content_format == "openai"
    assert options.tokenizer_mode == "mistral"
    assert options.default_chat_template_kwargs == {"enable_thinking": False}
    assert options.exclude_tools_when_tool_choice_none


async def test_it_is_started_again_and_ends_with_its_keeper(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMEBODYS_SECRET", "hunter2")
    agent = KvAgent(a_plan(tmp_path))
    await agent.start()
    first = psutil.Process(agent.pid)
    assert agent.port > 0
    assert "SOMEBODYS_SECRET" not in first.environ()
    assert all("6767" not in part for part in first.cmdline())  # keys are in no argument
    first.kill()
    for _ in range(600):
        await asyncio.sleep(0.05)
        if agent.pid not in (0, first.pid) and agent.port:
            break
    second = psutil.Process(agent.pid)
    assert second.pid != first.pid and agent.port > 0
    await agent.stop()
    assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE
    assert (agent.pid, agent.port) == (0, 0)


async def test_an_agent_that_cannot_start_takes_no_engine_down(tmp_path, monkeypatch):
    agent = KvAgent(a_plan(tmp_path))
    monkeypatch.setattr("sys.executable", "/bin/false")
    await agent.start()
    assert agent.port == 0
    await agent.stop()
