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


@pytest.mark.parametrize(("left", "output"), [(0, ""), (2**40, "error: No space left on device (os error 28)")])
def test_a_step_that_failed_on_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left, output) -> None:
    monkeypatch.setattr(quickstart, "STATE", tmp_path)
    monkeypatch.setenv("TIDEGATE_VENV", str(tmp_path / "not" / "made" / "yet"))
    monkeypatch.setattr(
        quickstart.shutil, "disk_usage", lambda place: quickstart.shutil._ntuple_diskusage(2**40, 2**40 - left, left)
    )
    with pytest.raises(quickstart.StepFailed, match=r"Next step: free some space"):
        quickstart.run_step("installing", ["sh", "-c", f"echo '{output}'; exit 120"], "check the network")


def test_a_directory_that_holds_something_else_is_not_made_an_environment(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(quickstart, "STATE", tmp_path / "state")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(quickstart.StepFailed, match="would delete it"):
        quickstart.make_environment(tmp_path / "home", quickstart.Choice("cpu", model=False, dev=False))
    assert (tmp_path / "home" / "thesis.tex").exists()


@pytest.mark.parametrize(
    "script", ["exit 1", 'case "$*" in *version_info*) exit 1;; esac', "broken", None], ids=["no pip", "old", "broken", "gone"]
)
def test_an_environment_whose_python_will_not_do_is_made_anew(tmp_path: Path, script) -> None:
    python = tmp_path / "python"
    if script is not None:
        python.write_text("\0" if script == "broken" else f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
    assert not quickstart.works(python)
    assert quickstart.works(Path(sys.executable))


def test_a_checkout_with_an_umlaut_in_its_path_is_found_in_every_locale(tmp_path: Path) -> None:
    checkout, venv = tmp_path / "Prüfung", tmp_path / "venv"
    checkout.mkdir()
    (checkout / "found_here.py").write_text("")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "_tidegate.pth").write_text(f"{checkout}\n", encoding="utf-8")
    quickstart.write_paths_in_ascii(venv)
    for locale in ("C", "POSIX", "C.UTF-8"):
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": locale}
        subprocess.run([venv / "bin" / "python", "-c", "import found_here"], env=environment, check=True)


def test_what_is_written_lies_in_the_home_that_is_named(tmp_path: Path) -> None:
    """A checkout may be read-only; `TIDEGATE_VENV` names another place for the environment."""
    code = "import quickstart; print(quickstart.STATE)"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(quickstart.__file__).parent), "TIDEGATE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / ".tidegate")


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
