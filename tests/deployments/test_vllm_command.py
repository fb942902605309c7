from pathlib import Path

import pytest

from deployments.vllm_command import build_argv, build_env, check_model, guard_env, option, resolve_source, slots_of
from router.config import ConfigError, Model
from router.residency.guard import ENV_INCARNATION, ENV_KEY, ENV_PLACE, Place

GUARD_ENV = guard_env(b"k" * 32, "inc", Place(("eu",), ("eu",), ("baa",)), Path("/run/policy.json"))


def model(*args, env=None, source="org/name"):
    return Model(id="m", source=source, args=list(args), env=env or {}, replicas=[{"zone": "eu"}])


@pytest.mark.parametrize(
    "argument",
    [
        "--port",
        "--port=1",
        "--host=0.0.0.0",
        "--hos",
        "--uds=/tmp/x",
        "--middleware=a.B",
        "--middle",
        "--api-key=x",
        "--api_key",
        "--served-model-name",
        "--served_model_name=x",
        "--ssl-keyfile",
        "--ssl-k=x",
        "--enable-log-requests",
        "--enable_log_req",
        "--no-enable-log-requests",
        "--enable-log-outputs",
        "--root-path=/x",
        "--config=x.yaml",
        "--grpc",
        "--model",
        "--tool-server=demo",
        "--tool_serv",
    ],
)
def test_what_is_ours_is_refused_by_name(argument):
    with pytest.raises(ConfigError) as caught:
        check_model(model("--max-model-len", "2048", argument))
    assert f"`{argument}`" in str(caught.value) and "`m`" in str(caught.value)


def test_a_value_that_looks_like_a_model_is_refused():
    with pytest.raises(ConfigError, match="`org/other` is no option"):
        check_model(model("org/other"))


@pytest.mark.parametrize("name", [*GUARD_ENV, "VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND"])
def test_variables_that_would_open_the_guard_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        check_model(model(env={name: "1"}))


def test_the_users_arguments_pass_as_they_are():
    args = [
        "--max-model-len",
        "2048",
        "--hf-overrides",
        '{"a": 1}',
        "-tp",
        "2",
        "--enable-prefix-caching",
        "--max-logprobs=5",
        "--tool-call-parser=hermes",
    ]
    check_model(model(*args))
    argv = build_argv(model(*args), "/models/m", "10.0.0.1", 31000)
    assert argv[argv.index("--host") - len(args) : argv.index("--host")] == args
    assert argv[argv.index("--host") + 1] == "10.0.0.1" and argv[argv.index("--port") + 1] == "31000"
    assert argv[argv.index("--middleware") + 1] == "router.residency.engine_guard.EngineGuard"
    assert "--disable-uvicorn-access-log" in argv


@pytest.mark.parametrize("knows", [True, False])
def test_the_queue_of_an_engine_is_bounded_where_it_can_be_and_the_user_has_the_last_word(monkeypatch, tmp_path, knows):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/arg_utils.py").write_text('"--max-num-queued-reqs"' if knows else "")
    monkeypatch.setattr("deployments.vllm_command._vllm_folders", lambda: [tmp_path])
    assert option(build_argv(model(), "/m", "h", 1), "max-num-queued-reqs") == ("4096" if knows else None)
    argv = build_argv(model("--max-num-queued-reqs", "9"), "/m", "h", 1)
    assert option(argv, "max-num-queued-reqs") == "9"


@pytest.mark.parametrize(
    ("events", "fine"),
    [
        ('{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"ipc:///tmp/x"}', True),
        ('{"enable_kv_cache_events":false}', True),
        ('{"enable_kv_cache_events":true}', False),
        ('{"enable_kv_cache_events":true,"endpoint":"tcp://*:5557"}', False),
        ('{"enable_kv_cache_events":true,"endpoint":"ipc:///x","replay_endpoint":"tcp://*:5558"}', False),
        ("[]", False),
        ("{", False),
    ],
)
def test_kv_events_stay_on_the_machine(events, fine):
    for args in (["--kv-events-config", events], [f"--kv_events_config={events}"]):
        if fine:
            check_model(model(*args))
        else:
            with pytest.raises(ConfigError, match="kv-events-config"):
                check_model(model(*args))


@pytest.mark.parametrize(
    "name", ["--logging-config", "--logging_conf", "--logging-config.pylogging_config_file", "--logg.log_level"]
)
def test_no_way_of_giving_a_log_configuration_switches_logs_of_requests_on(name):
    with pytest.raises(ConfigError, match="logs of requests"):
        check_model(model(name, "x"))
    check_model(model("--log-level", "WARNING", "--model-loader-extra-config.a", "1"))


@pytest.mark.parametrize(
    "args",
    [
        ("--kv-events-config.endpoint", "tcp://*:1"),
        ("--kv-events-conf", '{"publisher":"zmq","endpoint":"tcp://*:1"}'),
        ('--kv_e={"publisher":"zmq","endpoint":"tcp://*:1"}',),
        ("--kv-ev.endpoint", "tcp://*:1"),
        ("--kv_events.endpoint=tcp://*:1",),
    ],
)
def test_kv_events_under_a_shortened_name_do_not_go_unchecked(args):
    with pytest.raises(ConfigError, match="in full and as one JSON object"):
        check_model(model(*args))
    check_model(model("--kv-transfer-config", "{}", "--kv-cache-dtype", "fp8"))


def test_slots():
    assert slots_of(["--max-num-seqs", "16"]) == 16
    assert slots_of(["--max-num-seqs=8", "--max_num_seqs=32"]) == 32
    assert slots_of(["--max-num-seqs"]) == slots_of(["--max-num-seqs", "auto"]) == slots_of([]) == 0
    assert option(["-tp", "2"], "tensor-parallel-size", "-tp") == "2"


def test_environment():
    inherited = {
        "PATH": "/bin",
        "CLUSTER_SECRET": "x",
        "OPENAI_API_KEY": "y",
        "VLLM_API_KEY": "z",
        "OMP_NUM_THREADS": "1",
    }
    env = build_env(
        model(env={"VLLM_CPU_KVCACHE_SPACE": "4", "PYTHONPATH": "/own"}),
        "/models/m",
        GUARD_ENV,
        cpus=2,
        gpus=0,
        withhold=frozenset({"CLUSTER_SECRET", "OPENAI_API_KEY"}),
        inherited=inherited,
    )
    assert not {"CLUSTER_SECRET", "OPENAI_API_KEY", "VLLM_API_KEY"} & set(env)
    assert (env["PATH"], env["VLLM_NO_USAGE_STATS"], env["DO_NOT_TRACK"], env["HF_HUB_OFFLINE"]) == (
        "/bin",
        "1",
        "1",
        "1",
    )
    assert (env["VLLM_CPU_KVCACHE_SPACE"], env["VLLM_CPU_OMP_THREADS_BIND"], env["OMP_NUM_THREADS"]) == (
        "4",
        "nobind",
        "2",
    )
    assert env["PYTHONPATH"].endswith(":/own")
    assert (env[ENV_KEY], env[ENV_INCARNATION], env[ENV_PLACE]) == ((b"k" * 32).hex(), "inc", "eu/eu/baa")
    on_gpu = build_env(model(), "org/name", GUARD_ENV, cpus=2, gpus=1, inherited=inherited)
    assert "VLLM_CPU_KVCACHE_SPACE" not in on_gpu and "HF_HUB_OFFLINE" not in on_gpu


def test_sources(tmp_path):
    (tmp_path / "models" / "m").mkdir(parents=True)
    assert resolve_source("models/m", tmp_path) == str(tmp_path / "models" / "m")
    assert resolve_source(str(tmp_path / "models" / "m"), tmp_path) == str(tmp_path / "models" / "m")
    assert resolve_source("Qwen/Qwen3-0.6B", tmp_path) == "Qwen/Qwen3-0.6B"
    for wrong in ("/nowhere/m", "./m", "../nothing", ".tidegate/models/m", "models/other", "~/no-such-model-here"):
        with pytest.raises(ConfigError, match="there is no model at"):
            resolve_source(wrong, tmp_path)
