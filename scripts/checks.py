"""Every check of the project, with a summary and what took how long at the end: `scripts/test [--fast]`.

Runs inside the environment that `scripts/quickstart --install-only --dev` made. The static checks run side by side, the unit
tests on two processes. `--fast` leaves out the live tests, which start real Ray and vLLM processes: those run one after the
other, with at most three engines up, but their servers start together. `TIDEGATE_LONG_TESTS=1` adds the suites of
the prefix index and of continuation, which start engines of their own, more requests for the comparison with vLLM,
LangChain's standard tests and LlamaIndex over the router (a few minutes more).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST_NOTHING_COLLECTED = 5

BUDGET_S = 600
"""What a whole run should take at most on an idle machine of two cores, the installation done; more gets a remark."""

Check = tuple[str, list[str]]
STATIC: list[Check] = [
    ("ruff check", [str(BIN / "ruff"), "check", "."]),
    ("ruff format", [str(BIN / "ruff"), "format", "--check", "."]),
    ("mypy", [str(BIN / "mypy")]),
    ("import contracts", [str(BIN / "lint-imports")]),
]
PYTEST = [sys.executable, "-m", "pytest"]
# What starts and kills processes, or counts those of the machine, stays on one worker: loadfile keeps a file together.
UNIT: Check = ("unit tests", [*PYTEST, "-m", "not live", "-n", "2", "--dist", "loadfile", "--durations", "10"])
LIVE: Check = ("live tests", [*PYTEST, "-m", "live", "--durations", "20"])


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


def show_start(name: str, command: list[str]) -> None:
    """Say what runs now."""
    print(f"\n== {name}: {' '.join(command[1:] if command[0] == sys.executable else command)}", flush=True)


def run_check(check: Check) -> tuple[str, bool, float]:
    """Run one check with its output on this terminal: its name, whether it passed, and the seconds it took."""
    name, command = check
    show_start(name, command)
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT, env=child_environment(), check=False).returncode
    passed = code == 0 or (name == LIVE[0] and code == PYTEST_NOTHING_COLLECTED)
    return name, passed, time.monotonic() - started


def run_together(checks: list[Check]) -> list[tuple[str, bool, float]]:
    """Run checks side by side; the output of each is shown in one piece, in their order."""

    def run(check: Check) -> tuple[str, bool, float]:
        started = time.monotonic()
        done = subprocess.run(
            check[1], cwd=ROOT, env=child_environment(), check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        outputs[check[0]] = done.stdout
        return check[0], done.returncode == 0, time.monotonic() - started

    outputs: dict[str, bytes] = {}
    with ThreadPoolExecutor(len(checks)) as pool:
        running = [pool.submit(run, check) for check in checks]
        results = []
        for check, future in zip(checks, running, strict=True):
            results.append(future.result())
            show_start(*check)
            print(outputs[check[0]].decode(errors="replace"), end="", flush=True)
    return results


def main(arguments: list[str]) -> int:
    """Run all checks; the exit status is 1 when any of them failed."""
    unknown = [argument for argument in arguments if argument != "--fast"]
    if unknown:
        print(f"scripts/test: unknown option {unknown[0]}; the only one is --fast", file=sys.stderr)
        return 2
    started = time.monotonic()
    results = run_together(STATIC)
    results += [run_check(check) for check in ([UNIT] if "--fast" in arguments else [UNIT, LIVE])]
    took = time.monotonic() - started
    print("\n== summary")
    for name, passed, seconds in results:
        print(f"  {'ok    ' if passed else 'FAILED'}  {name}  ({seconds:.0f} s)")
    if took > BUDGET_S:
        print(f"  note: {took:.0f} s in all, more than the {BUDGET_S} s meant for it: a busy machine, or tests that have grown")
    failed = [name for name, passed, _ in results if not passed]
    print(f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}" if failed else "all checks passed", end="")
    print(f"  ({took:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
