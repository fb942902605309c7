"""Every check of the project, one after the other, with a summary at the end: `scripts/test [--fast]`.

Runs inside the environment that `scripts/quickstart --install-only --dev` made. `--fast` leaves out the live tests,
which start real Ray and vLLM processes. They run serially: two engines at once do not fit small machines.
`TIDEGATE_LONG_TESTS=1` adds LangChain's standard tests and LlamaIndex over the router (a few minutes more).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST_NOTHING_COLLECTED = 5

CHECKS: list[tuple[str, list[str]]] = [
    ("ruff check", [str(BIN / "ruff"), "check", "."]),
    ("ruff format", [str(BIN / "ruff"), "format", "--check", "."]),
    ("mypy", [str(BIN / "mypy")]),
    ("import contracts", [str(BIN / "lint-imports")]),
    ("unit tests", [sys.executable, "-m", "pytest", "-m", "not live"]),
    ("live tests", [sys.executable, "-m", "pytest", "-m", "live"]),
]


def child_environment() -> dict[str, str]:
    """The environment of the checks: a writable HOME, and compiled bytecode kept (a third of Ray's import time)."""
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    home = environment.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        fallback = ROOT / ".tidegate" / "home"
        fallback.mkdir(parents=True, exist_ok=True)
        environment["HOME"] = str(fallback)
    environment["PATH"] = f"{BIN}{os.pathsep}{environment.get('PATH', os.defpath)}"
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    return environment


def run_check(name: str, command: list[str]) -> tuple[bool, float]:
    """Run one check with its output on this terminal.

    Returns:
        Whether it passed, and the seconds it took.
    """
    print(f"\n== {name}: {' '.join(command[1:] if command[0] == sys.executable else command)}", flush=True)
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=child_environment(), check=False).returncode
    passed = code == 0 or (name == "live tests" and code == PYTEST_NOTHING_COLLECTED)
    return passed, time.monotonic() - started


def main(arguments: list[str]) -> int:
    """Run all checks; the exit status is 1 when any of them failed."""
    unknown = [argument for argument in arguments if argument != "--fast"]
    if unknown:
        print(f"scripts/test: unknown option {unknown[0]}; the only one is --fast", file=sys.stderr)
        return 2
    checks = [check for check in CHECKS if not ("--fast" in arguments and check[0] == "live tests")]
    results = [(name, *run_check(name, command)) for name, command in checks]
    print("\n== summary")
    for name, passed, seconds in results:
        print(f"  {'ok    ' if passed else 'FAILED'}  {name}  ({seconds:.0f} s)")
    failed = [name for name, passed, _ in results if not passed]
    print(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
