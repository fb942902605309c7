import subprocess
import sys
from pathlib import Path

import pytest

from deployments.vllm_command import build_argv, build_env, guard_env, resolve_source, slots_of
from deployments.vllm_options import check_model, option
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
        "--log-error-stack",
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


@pytest.mark.parametrize(
    "argument",
    ["--data-parallel-address=10.0.0.2", "--data_parallel_rpc_port", "--data-parallel-hybrid-lb", "--data-parallel-size-local=1",
     "--nnodes", "--nnod=2", "--node-rank", "--master-addr", "--master-po=1", "-n", "-n2", "-n=2",
     "-r", "-dpa", "-dpl=1", "-dpm"],
)  # fmt: skip
def test_no_part_of_an_engine_stands_on_another_node(argument):
    with pytest.raises(ConfigError, match="its own node"):
        check_model(model("--data-parallel-size", "2", argument, "1"))
    for name in ("VLLM_DP_SIZE", "VLLM_DP_MASTER_IP"):
        with pytest.raises(ConfigError, match=name):
            check_model(model(env={name: "2"}))
        assert name not in build_env(model(), "x", {}, cpus=1, gpus=1, inherited={name: "2"})


@pytest.mark.parametrize(
    ("args", "fine"),
    [
        (["--distributed-executor-backend", "mp"], True),
        (["--distributed-executor-backend", "ray"], False),
        (["--distributed_exec=RAY"], False),
        (["--data-parallel-backend=ray"], False),
        (["-dpb", "ray"], False),
        (["-dpb", "mp", "-dp", "2", "-tp=2"], True),
        (["--kv-offloading-size", "8", "--kv-offloading-backend", "native"], True),
        (["--kv-offloading-backend", "lmcache"], False),
        (["--uvicorn-log-level", "info"], True),
        (["--uvicorn-log", "trace"], False),
        (["--log-level", "INFO"], True),
        (["--log-level=debug"], False),
        (["--log-l", "NOTSET"], False),
    ],
)
def test_an_option_that_may_have_most_values_is_refused_with_the_others(args, fine):
    if fine:
        check_model(model(*args))
    else:
        with pytest.raises(ConfigError, match="cannot be `"):
            check_model(model(*args))


def test_a_log_level_at_which_whole_requests_are_logged_is_refused_and_not_inherited():
    with pytest.raises(ConfigError, match="whole requests"):
        check_model(model(env={"VLLM_LOGGING_LEVEL": "debug"}))
    check_model(model(env={"VLLM_LOGGING_LEVEL": "warning"}))
    for level, kept in (("DEBUG", False), ("5", False), ("INFO", True)):
        env = build_env(model(), "x", {}, cpus=1, gpus=1, inherited={"VLLM_LOGGING_LEVEL": level})
        assert ("VLLM_LOGGING_LEVEL" in env) is kept


@pytest.mark.parametrize(
    ("option_name", "value", "fine"),
    [
        ("--kv-transfer-config", '{"kv_connector":"OffloadingConnector","kv_role":"kv_both"}', True),
        ("--kv-transfer-config", '{"kv_connector":"SimpleCPUOffloadConnector","kv_connector_extra_config":{"a":1}}', True),
        ("--kv-transfer-config", '{"kv_connector":"NixlConnector","kv_role":"kv_both"}', False),
        ("--kv-transfer-config", '{"kv_connector":"LMCacheConnectorV1"}', False),
        ("--kv-transfer-config", '{"kv_connector":"OffloadingConnector","kv_connector_module_path":"my.code"}', False),
        (
            "--kv-transfer-config",
            '{"kv_connector":"OffloadingConnector","kv_connector_extra_config":{"spec_name":"TieringOffloadingSpec"}}',
            False,
        ),
        ("--kv-transfer-config", "[]", False),
        ("--kv-transfer-conf", '{"kv_connector":"OffloadingConnector"}', False),
        ("--kv-transfer-config.kv_connector", "NixlConnector", False),
        ("--ec-transfer-config", '{"ec_connector":"ECCPUConnector"}', True),
        ("--ec-transfer-config", '{"ec_connector":"ECMooncakeConnector"}', False),
    ],
)
def test_what_was_computed_of_prompts_stays_on_the_engines_node(option_name, value, fine):
    for args in ([option_name, value], [f"{option_name.replace('-', '_').replace('__', '--')}={value}"]):
        if fine:
            check_model(model(*args))
        else:
            with pytest.raises(ConfigError, match=r"(kv|ec)-transfer-config"):
                check_model(model(*args))


def test_a_value_that_looks_like_a_model_is_refused():
    with pytest.raises(ConfigError, match="`org/other` is no option"):
        check_model(model("org/other"))


@pytest.mark.parametrize(
    "name", [*GUARD_ENV, "VLLM_API_KEY", "VLLM_USE_RUST_FRONTEND", "VLLM_MEDIA_CACHE", "VLLM_V1_USE_OUTLINES_CACHE"]
)
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
    assert env["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
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


LOADING = """
import importlib.metadata, logging, multiprocessing
def child():
    for plugin in importlib.metadata.entry_points(group="vllm.general_plugins", name="tidegate"):
        plugin.load()()
    logging.getLogger("vllm.logging_utils.dump_input").error("Dumping %s", "stop='Jane'")
    logging.getLogger("vllm.v1.engine.core").error("%s failed", "step")
process = multiprocessing.get_context("fork").Process(target=child)
process.start(); process.join()
"""


@pytest.mark.parametrize("chosen", [{}, {"VLLM_PLUGINS": "mine"}])
def test_the_processes_of_an_engine_load_what_keeps_texts_out_of_its_log(chosen, capfd):
    env = build_env(model(env=chosen), "x", {}, cpus=1, gpus=1)
    assert "tidegate" in env.get("VLLM_PLUGINS", "tidegate").split(",")
    subprocess.run([sys.executable, "-c", LOADING], env=env, check=True)
    assert capfd.readouterr().err == "Dumping <str>\nstep failed\n"
