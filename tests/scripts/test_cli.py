from __future__ import annotations

from pathlib import Path

import pytest
from tidegate import keys
from tidegate.cli import app
from tidegate.home import Home
from typer.testing import CliRunner

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


def test_down_and_status_where_nothing_runs(home: Home, config_file: Path) -> None:
    down = runner.invoke(app, ["down"])
    assert (down.exit_code, "nothing was running" in down.output) == (0, True)
    status = runner.invoke(app, ["status"])
    assert (status.exit_code, "nothing runs here" in status.output) == (1, True)


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
