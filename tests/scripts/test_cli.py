from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from tidegate import keys
from tidegate.cli import app
from tidegate.home import Home
from typer.testing import CliRunner

from router.secret_file import read_secret_file
from router.store.database import Database

runner = CliRunner()


@pytest.mark.parametrize(
    "command",
    [[], ["up"], ["down"], ["status"], ["chat"], ["explain"], ["doctor"], ["router"], ["keys"], ["keys", "create"]],
)
def test_every_command_has_help(command: list[str]) -> None:
    result = runner.invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_keys_create_shows_the_key_once(home: Home) -> None:
    result = runner.invoke(app, ["keys", "create", "clinic"])
    assert result.exit_code == 0
    assert "tg_" in result.output and "sha256: " in result.output
    again = runner.invoke(app, ["keys", "create", "clinic"])
    assert again.exit_code == 1
    assert "tg_" not in again.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_output_that_cannot_be_written_is_one_line_and_a_failure(home: Home) -> None:
    program = "import sys; from tidegate.cli import main; sys.argv = ['tidegate', 'keys', 'create', 'clinic']; main()"
    with Path("/dev/full").open("wb") as full:
        ran = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, env=_env(home))
    assert (ran.returncode, ran.stderr) == (1, "error: No space left on device\n")


def test_what_is_made_under_a_wide_umask_is_still_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Database(f"sqlite:///{tmp_path}/state/of/store.db").close()
        read_secret_file(tmp_path / "state" / "keys" / "pepper", make=True)
    finally:
        os.umask(before)
    made = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o077 for path in tmp_path.rglob("*")}
    assert {"state", "state/of", "state/of/store.db", "state/of/store.db.lock", "state/keys", "state/keys/pepper"} <= set(made)
    assert not any(made.values()), made


def _env(home: Home) -> dict[str, str]:
    return {**os.environ, "TIDEGATE_HOME": str(home.root), "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u:secret@h/x", "`mysql` is no store"),
        ("postgresql+asyncpg://u:secret@h/x", "`postgresql+asyncpg` is no store"),
        ("postgresql://u:secret@h:port/x", "no database URL"),
        ("x", "no database URL"),
        ("sqlite:////dev/null/store.db", "cannot be opened"),
    ],
)
def test_a_store_that_cannot_be_one_is_named_without_its_password(home: Home, config_file: Path, url: str, why: str) -> None:
    document = yaml.safe_load(config_file.read_text())
    document["applications"][0]["args"]["store"] = {"url": url}
    config_file.write_text(yaml.safe_dump(document))
    result = runner.invoke(app, ["keys", "list"])
    assert result.exit_code == 1
    assert why in result.output
    assert "secret" not in result.output


def test_down_and_status_where_nothing_runs(home: Home, config_file: Path) -> None:
    down = runner.invoke(app, ["down"])
    assert (down.exit_code, "nothing was running" in down.output) == (0, True)
    status = runner.invoke(app, ["status"])
    assert (status.exit_code, "nothing runs here" in status.output) == (1, True)


def test_another_user_is_not_told_that_nothing_runs_nor_to_remove_what_is_there(
    home: Home, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.state.mkdir(exist_ok=True)
    with monkeypatch.context() as another:
        another.setattr(os, "access", lambda *_: False)
        status = runner.invoke(app, ["status"])
    assert (status.exit_code, "nothing runs here" in status.output) == (1, False)
    assert "only the user whose" in status.output
    monkeypatch.setattr(os, "getuid", lambda: home.state.stat().st_uid + 1)
    up = runner.invoke(app, ["up"])
    assert isinstance(up.exception, PermissionError)
    assert "TIDEGATE_HOME" in str(up.exception) and "remove" not in str(up.exception)


def test_doctor_looks_at_rays_token_where_ray_is_started_by_hand(home: Home, config_file: Path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert "RAY_AUTH_MODE" in runner.invoke(app, ["doctor", "--zone", "local"]).output
    assert "RAY_AUTH_MODE" not in runner.invoke(app, ["doctor"]).output


def test_the_version_is_told() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"tidegate {version('tidegate')}\n")


@pytest.mark.parametrize("command", [["status"], ["explain", "hi"], ["chat", "hi"]])
def test_which_router_is_asked_follows_the_options(home: Home, config_file: Path, command: list[str]) -> None:
    keys.ensure_quickstart_key(home)
    ports = {"listen": 2, "admin": 3, "other": 4}  # nothing listens there
    document = yaml.safe_load(config_file.read_text())
    args = document["applications"][0]["args"]
    args["listen"], args["admin"] = {"port": ports["listen"]}, {"port": ports["admin"]}
    other = home.root / "other.yaml"
    other.write_text(yaml.safe_dump(document))
    asked, option = ("listen", "--port") if command[0] == "chat" else ("admin", "--admin-port")
    assert f"127.0.0.1:{ports[asked]}" in runner.invoke(app, [*command, "--config", str(other)]).output
    chosen = runner.invoke(app, [*command, "--config", str(other), option, str(ports["other"])])
    assert (chosen.exit_code, f"127.0.0.1:{ports['other']}" in chosen.output) == (1, True)
    missing = runner.invoke(app, [*command, "--config", str(home.root / "none.yaml")])
    assert (missing.exit_code, "none.yaml: No such file" in missing.output) == (1, True)


@pytest.mark.parametrize("command", ["chat", "explain"])
def test_talking_to_nobody_says_what_to_do(home: Home, config_file: Path, command: str) -> None:
    keys.ensure_quickstart_key(home)
    result = runner.invoke(app, [command, "hello"])
    assert result.exit_code == 1
    assert "tidegate up" in result.output


def test_up_refuses_a_bad_configuration_and_starts_nothing(home: Home, config_file: Path) -> None:
    config_file.write_text(config_file.read_text().replace("models:", "modells:"))
    result = runner.invoke(app, ["up"])
    assert result.exit_code == 1
    assert "did you mean `models`?" in result.output.replace("\n", " ")
    assert "nothing was started" in result.output
    assert not home.run_file.exists()
