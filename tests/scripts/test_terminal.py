"""What commands do with the terminal: texts of others are shown and not obeyed, and whatever goes wrong is one line."""

from __future__ import annotations

import getpass
import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from tidegate.cli import app
from tidegate.home import Home
from tidegate.processes import Run
from tidegate.recorded import operator
from tidegate.render import print_how_to_call
from tidegate.terminal import Console
from typer.testing import CliRunner

RUNNER = CliRunner()
_HOSTILE = "\x1b]0;owned\x07\x9b31m\u202e"


def program(home: Home, code: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "TIDEGATE_HOME": str(home.root),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONIOENCODING": encoding,
    }
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def command(home: Home, *arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[str]:
    return program(home, f"import sys; from tidegate.cli import main; sys.argv[1:] = {list(arguments)!r}; main()", encoding)


def test_no_text_is_obeyed_by_the_terminal_and_json_stays_json() -> None:
    out = io.StringIO()
    Console(file=out, soft_wrap=True, markup=False).print(json.dumps({"tenant": f"a\tü{_HOSTILE}"}, ensure_ascii=False))
    assert json.loads(out.getvalue()) == {"tenant": f"a\tü{_HOSTILE}"}
    assert not set(out.getvalue()) & set(_HOSTILE[0] + "\x07\x9b\u202e")


@pytest.mark.parametrize("arguments", [["keys", "revoke"], ["keys", "create"], ["eval", "outcomes"], ["report", "cost", "--by"]])
def test_what_a_command_quotes_is_shown_with_its_control_characters_named(home, config_file, arguments) -> None:
    (home.keys).mkdir(parents=True)
    (home.keys / "quickstart.sha256").write_text("0" * 64)
    result = RUNNER.invoke(app, [*arguments, _HOSTILE])
    assert result.exit_code and "\\u001b]0;owned\\u0007\\u009b31m\\u202e" in result.output and "\x1b" not in result.output


def test_a_terminal_without_the_letters_of_a_name_is_told_of_them(home, config_file) -> None:
    (home.keys).mkdir(parents=True)
    (home.keys / "quickstart.sha256").write_text("0" * 64)
    assert command(home, "keys", "create", "k", "--stored", "--tenant", "Zürich").returncode == 0
    listed = command(home, "keys", "list", encoding="ascii")
    assert (listed.returncode, listed.stderr) == (0, "") and "Z\\xfcrich" in listed.stdout


def test_a_file_that_cannot_be_written_is_named(home) -> None:
    (home.root / ".tidegate").write_text("in the way")
    ran = command(home, "keys", "create", "clinic")
    assert (ran.returncode, ran.stderr) == (1, f"error: {home.keys}: Not a directory\n")


def test_what_is_shown_to_be_copied_into_a_shell_or_a_program_works_for_a_path_with_spaces(tmp_path) -> None:
    home, out = Home(tmp_path / "it's a home"), io.StringIO()
    home.keys.mkdir(parents=True)
    (home.keys / "quickstart.key").write_text("the-key\n")
    print_how_to_call(Console(file=out), home, Run("r", "serve_config.yaml", 8000, 8001))
    shell = re.search(r"curl .*-d '.*?'", out.getvalue(), re.DOTALL)
    told = f"curl() {{ printf '%s|' \"$@\"; }}; {shell[0]}"
    shown = subprocess.run(["/bin/sh", "-c", told], capture_output=True, text=True, check=True)
    assert "|Authorization: Bearer the-key|" in shown.stdout
    program = re.search(r"api_key=(open\(.*\)\.read\(\)\.strip\(\))", out.getvalue())
    assert eval(program[1]) == "the-key"


@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found"), OSError("No username set in the environment")])
def test_a_user_without_a_name_is_recorded_by_number(monkeypatch, error) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(getpass, "getuser", fail)
    assert operator() == f"uid {os.getuid()}"


def test_an_interruption_while_the_commands_are_imported_ends_without_a_traceback(home) -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
class Interrupted:
    def find_spec(self, name, *rest):
        if name == "tidegate.cli":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupted())
from tidegate.__main__ import main
main()
"""
    ran = program(home, code)
    assert (ran.returncode, ran.stderr) == (-signal.SIGINT, "")


def test_an_interruption_that_was_to_be_ignored_still_is(home) -> None:
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.argv[1:] = ["keys", "--help"]
from tidegate.__main__ import main
try:
    main()
finally:
    os.kill(os.getpid(), signal.SIGINT)
"""
    ran = program(home, code)
    assert (ran.returncode, ran.stderr) == (0, "")
