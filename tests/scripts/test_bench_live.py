"""The live bench counts what clients saw, tells whether the machine was its own, and starts peers with what they need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from _datapath import mock_engine
from _live import cli, systems
from _live.conversations import Seen, Shape, converse
from _live.engines import LiveEngine, engine_arguments
from _throughput import stack

SHAPE = Shape(sessions=3, turns=2, houses=2, house_words=5, turn_words=3, tokens=8, pause_s=0.0)


async def test_every_turn_is_seen_once_and_counted_by_the_engines_usage():
    port = stack.free_port()
    servers = await mock_engine.serve([port], "mock")
    try:
        seen = await converse(f"http://127.0.0.1:{port}", "k", "mock", SHAPE, 0)
    finally:
        for server in servers:
            server.close()
    assert (len(seen.first_turns), len(seen.later_turns), seen.errors) == (3, 3, {})
    assert seen.tokens == 6 * (mock_engine.CHUNKS - 2) and all(second > 0 for second in seen.first_turns)


async def test_a_router_that_is_not_there_is_an_error_and_not_a_fast_one():
    seen = await converse(f"http://127.0.0.1:{stack.free_port()}", "k", "mock", SHAPE, 0)
    assert seen.errors == {"ConnectError": 3} and not seen.first_turns


def test_figures_are_over_all_turns_of_all_rounds_and_keep_the_worst_disturbance():
    takes = [
        cli.Take(Seen([0.4], [0.1, 0.2], tokens=30, seconds=2.0), 0.5, 0.01),
        cli.Take(Seen([0.6], [0.3, 0.4], tokens=30, seconds=1.0, errors={"status 503": 1}), 0.7, 0.3),
    ]
    row = cli._figures("x", takes)
    assert (row["ttft_p50_ms"], row["ttft_p90_ms"], row["later_turns_p50_ms_of_rounds"]) == (400.0, 600.0, [150.0, 350.0])
    assert (row["hit_rate"], row["tokens_s"], row["errors"], row["rounds"], row["others_cpu"]) == (0.6, 20.0, 1, 2, 0.3)
    empty = cli._figures("x", [cli.Take(Seen(errors={"ConnectError": 3}), 0.0, 0.0)])
    assert empty["ttft_p50_ms"] is None and empty["errors"] == 3


def test_what_others_compute_is_what_is_left_of_the_machines_time(monkeypatch):
    times = {"all": 100.0, "own": 5.0, "wall": 50.0}
    monkeypatch.setattr(cli, "_busy_s", lambda: times["all"])
    monkeypatch.setattr(cli, "_own_s", lambda: times["own"])
    monkeypatch.setattr(cli.time, "monotonic", lambda: times["wall"])
    monkeypatch.setattr(cli.psutil, "cpu_count", lambda: 2)
    clock = cli._Clock()
    times |= {"all": 110.0, "own": 9.0, "wall": 60.0}
    assert clock.others() == pytest.approx(0.3)
    times |= {"own": 30.0}
    assert clock.others() == 0.0


def test_kv_aware_is_told_where_each_engine_publishes(monkeypatch, tmp_path):
    monkeypatch.setattr(systems, "ensure", lambda *_: Path("python"))
    engines = [
        LiveEngine("http://127.0.0.1:1", "tcp://127.0.0.1:11", 32),
        LiveEngine("http://127.0.0.1:2", "tcp://127.0.0.1:12", 32),
    ]
    command = systems.PEERS["vllm-router/kv_aware"](engines, 9, tmp_path)
    sources = [command[place + 1] for place, word in enumerate(command) if word == "--kv-event-source"]
    assert sources == ["http://127.0.0.1:1=tcp://127.0.0.1:11", "http://127.0.0.1:2=tcp://127.0.0.1:12"]
    assert command[command.index("--kv-event-block-size") + 1] == "32"
    assert "--kv-event-source" not in systems.PEERS["vllm-router/cache_aware"](engines, 9, tmp_path)


def test_an_unknown_system_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--systems", "tidegate,nginx"])
    assert "unknown nginx" in capsys.readouterr().err


def test_engines_on_one_card_share_its_memory_and_what_is_given_comes_last():
    assert engine_arguments(2, "", None, None, gpu=False) == []
    assert engine_arguments(4, "", "dummy", None, gpu=True) == ["--load-format", "dummy", "--gpu-memory-utilization", "0.225"]
    given = engine_arguments(2, "--max-model-len 8192 --hf-overrides '{\"a\": 1}'", None, 0.3, gpu=True)
    assert given == ["--gpu-memory-utilization", "0.3", "--max-model-len", "8192", "--hf-overrides", '{"a": 1}']


@pytest.mark.parametrize(
    ("gpu", "memory", "words"), [(True, 0.6, "do not fit"), (True, 0.0, "do not fit"), (False, 0.3, "no GPU")]
)
def test_shares_that_no_card_has_are_refused(gpu, memory, words):
    with pytest.raises(ValueError, match=words):
        engine_arguments(2, "", None, memory, gpu=gpu)


def test_a_quotation_without_its_end_is_a_line_and_no_traceback(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--engine-args", "--x 'y"])
    assert "quotation" in capsys.readouterr().err


@pytest.mark.parametrize(("visible", "gpu"), [("", False), ("0", True)])
def test_an_engine_gets_its_arguments_after_ours_and_no_guard(visible, gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert stack.on_gpu() is gpu
    argv, env = stack.engine_command(tmp_path, 8, 3, 1234, prefix_cache=True, more=["--max-model-len", "8192"])
    assert "--middleware" not in argv and argv[argv.index("--port") + 1] == "1234"
    ours, theirs = (place for place, word in enumerate(argv) if word == "--max-model-len")
    assert (argv[ours + 1], argv[theirs + 1]) == ("2048", "8192")
    assert env["VLLM_SERVER_DEV_MODE"] == "1" and ("OMP_NUM_THREADS" in env) is not gpu
