"""The parts of `up` that need no Ray: what it makes of Serve's state, of logs, and of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tidegate import models, ray_node
from tidegate.home import Home, child_environment
from tidegate.waiting import latest_line, newest_log

TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:tidegate:R.initialize_and_get_metadata()\x1b[39m (pid=7, ip=192.0.2.2)
  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "engine.py", line 8, in __init__
deployments.engine_errors.EngineStartError: the engine of `m` ended with exit code 2. vLLM does not accept: --oops.
The end of its log (/x.log):
  | entry.py: error: unrecognized arguments: --oops"""


def application(status: str, **deployments: Any) -> dict[str, Any]:
    return {"tidegate": {"status": status, "message": "", "deployments": deployments}}


def test_the_first_failed_replica_is_a_failure_and_only_its_reason_is_shown() -> None:
    engine = {"status": "UPDATING", "message": TRACEBACK, "replicas": {"STARTING": 1}}
    state = ray_node.read_state(application("DEPLOYING", engine=engine))
    assert state.failure.startswith("engine: deployments.engine_errors.EngineStartError: the engine of `m`")
    assert "unrecognized arguments: --oops" in state.failure
    assert "Traceback" not in state.failure


def test_a_port_taken_in_that_moment_is_tried_again() -> None:
    message = TRACEBACK.replace("vLLM does not accept", "Another process took the port")
    engine = {"status": "UPDATING", "message": message, "replicas": {"STARTING": 1}}
    assert ray_node.read_state(application("DEPLOYING", engine=engine)).failure == ""
    assert ray_node.read_state(application("DEPLOY_FAILED", engine={**engine, "status": "DEPLOY_FAILED"})).failure


def test_while_starting_it_says_what_is_waited_for() -> None:
    healthy = {"status": "HEALTHY", "message": "", "replicas": {"RUNNING": 1}}
    engine = {"status": "UPDATING", "message": "", "replicas": {"STARTING": 2}}
    state = ray_node.read_state(application("DEPLOYING", router=healthy, engine=engine))
    assert (state.waiting_for, state.failure) == ("engine (2 starting)", "")


def test_an_application_that_cannot_be_built_is_a_failure() -> None:
    built = {"tidegate": {"status": "DEPLOY_FAILED", "message": "Traceback\nrouter.config.ConfigError: bad", "deployments": {}}}
    assert ray_node.read_state(built).failure == "router.config.ConfigError: bad"
    assert ray_node.read_state(json.loads("{}")).failure == ""


def test_the_latest_line_has_no_colours_stamps_or_blank_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("first\n\x1b[36m(EngineCore pid=12)\x1b[0m INFO 11-22 00:36:18 [core.py:113] Loading weights\n\n")
    assert newest_log(tmp_path) == log
    assert latest_line(log) == "Loading weights"
    assert latest_line(tmp_path / "none.log") == ""


def test_free_ports_are_different() -> None:
    ports = ray_node.free_ports(3)
    assert len(set(ports)) == 3


def test_rays_directory_is_short_enough_for_its_sockets(tmp_path: Path) -> None:
    for root in (Path("/srv/t"), Path("/a" * 120)):
        socket = Home(root).ray_directory / "session_2026-11-22_00-35-50_707921_1234567" / "sockets" / "plasma_store"
        assert len(str(socket)) <= 107


def test_rays_directory_has_only_letters_that_ray_takes() -> None:
    assert str(Home(Path("/srv/Prüfstand")).ray_directory).isascii()


def test_what_is_started_gets_the_run_id_a_token_and_a_home_that_can_be_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:6379")
    environment = child_environment(home, "r-1")
    assert environment["TIDEGATE_RUN_ID"] == "r-1"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_ADDRESS" not in environment
    assert Path(environment["HOME"]).is_relative_to(home.state)


def test_a_missing_default_model_says_how_to_get_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    assert models.is_default(models.DEFAULT_SOURCE, home.root)
    with pytest.raises(models.ModelError, match="scripts/quickstart"):
        models.prepare_default_model(home.root)


def test_a_half_made_model_is_not_taken_for_a_model(home: Home) -> None:
    (home.root / models.DEFAULT_SOURCE).mkdir(parents=True)
    assert not models.is_prepared(home.root)
