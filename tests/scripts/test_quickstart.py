from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import quickstart


def test_own_switches_are_taken_and_the_rest_is_passed_on(tmp_path: Path) -> None:
    options = quickstart.parse_arguments(["--dev", "--port", "9000", "--zone=eu"])
    assert (options.dev, options.default_model) == (True, True)
    assert options.passed_on == ["--port", "9000", "--zone=eu"]
    assert not quickstart.parse_arguments(["--model", "org/m"]).default_model
    config = tmp_path / "c.yaml"
    config.write_text("source: /srv/model")
    assert not quickstart.parse_arguments([f"--config={config}"]).default_model
    config.write_text("source: .tidegate/models/SmolLM2-135M-Instruct")
    assert quickstart.parse_arguments(["--config", str(config)]).default_model


def test_only_a_finished_environment_that_fits_counts(tmp_path: Path) -> None:
    cpu = quickstart.Choice("cpu", model=True, dev=False)
    assert not quickstart.is_satisfied(quickstart.read_stamp(tmp_path), cpu)
    stamp = {"fingerprint": quickstart.fingerprint(), "engine": "cpu", "model": True, "dev": False}
    (tmp_path / quickstart.STAMP_NAME).write_text(json.dumps(stamp))
    assert quickstart.is_satisfied(quickstart.read_stamp(tmp_path), cpu)
    assert quickstart.is_satisfied(stamp, quickstart.Choice("cpu", model=False, dev=False))
    assert not quickstart.is_satisfied(stamp, quickstart.Choice("cpu", model=True, dev=True))
    assert not quickstart.is_satisfied(stamp, quickstart.Choice("gpu", model=True, dev=False))
    assert not quickstart.is_satisfied({**stamp, "fingerprint": "old"}, cpu)
    (tmp_path / quickstart.STAMP_NAME).write_text("{")
    assert quickstart.read_stamp(tmp_path) == {}


def test_a_failed_step_shows_its_last_lines_and_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "STATE", tmp_path)
    with pytest.raises(quickstart.StepFailed, match=r"(?s)no such package.*Next step: check the network"):
        quickstart.run_step("installing", ["sh", "-c", "echo no such package; exit 3"], "check the network")


def test_an_unusable_home_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "STATE", tmp_path)
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    environment = quickstart.child_environment()
    assert environment["HOME"] == str(tmp_path / "home")
    assert environment["UV_CACHE_DIR"] == str(tmp_path / "uv-cache")


def test_an_old_python_is_refused_in_words(tmp_path: Path) -> None:
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    fake.chmod(0o755)
    script = Path(quickstart.__file__).with_name("quickstart")
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    done = subprocess.run(["/bin/sh", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13; found: Python 3.9.2" in done.stderr
    assert sys.version_info >= (3, 11)


def test_a_signal_while_a_step_is_started_waits_until_it_can_be_ended() -> None:
    interruptions = quickstart.Interruptions()
    done = []
    with pytest.raises(KeyboardInterrupt), interruptions.held():
        interruptions.receive(2, None)
        done.append("started")
    assert done == ["started"]
    with pytest.raises(KeyboardInterrupt):
        interruptions.receive(2, None)
