"""The peers come from PyPI into virtual environments of the bench's own, under `.bench/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


class Missing(RuntimeError):
    """A system cannot be had on this machine. The text says why, and what would help."""


def _uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _has(venv: Path, requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    name = name.partition("[")[0].replace("-", "_")
    return any(venv.glob(f"lib/python*/site-packages/{name}-{version or '*'}.dist-info"))


def ensure(venv: Path, requirement: str, limit_s: float = 300) -> Path:
    """Have a package in a virtual environment; make and fill it where needed.

    Returns:
        The environment's Python.

    Raises:
        Missing: it cannot be installed.
    """
    python = venv / "bin" / "python"
    uv = _uv()
    if not python.exists():
        making = [uv, "venv", "-q", "-p", sys.executable] if uv else [sys.executable, "-m", "venv"]
        _run([*making, str(venv)], limit_s, requirement)
    if not _has(venv, requirement):
        by_uv = [uv or "", "pip", "install", "-q", "-p", str(python)]
        adding = by_uv if uv else [str(python), "-m", "pip", "install", "-q"]
        _run([*adding, requirement], limit_s, requirement)
    return python


def _run(argv: list[str], limit_s: float, requirement: str) -> None:
    env = {**os.environ, "VIRTUAL_ENV": ""}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, check=False, env=env)
    except subprocess.TimeoutExpired:
        raise Missing(f"{requirement} was not installed within {limit_s:.0f} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Missing(f"{requirement} cannot be installed: {said[-1].strip()}")
