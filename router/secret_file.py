"""Secrets of 32 bytes in files of their own, as 64 hex digits, readable by their owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

SECRET_BYTES = 32


def make_private_directory(path: Path) -> None:
    """Make a directory, and those above it that are missing, for their owner only, whatever the umask is.

    `Path.mkdir` gives its mode to the last one alone: whoever may write above it may put another in its place.

    Raises:
        OSError: it cannot be made.
    """
    if path.is_dir():
        return
    for directory in (*reversed(path.parents), path):
        if not directory.exists():
            directory.mkdir(mode=0o700, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def read_secret_file(path: Path, *, make: bool) -> bytes:
    """The secret in a file; with `make`, a missing one is made.

    Raises:
        OSError: it cannot be read or made.
        ValueError: the file holds something else.
    """
    if make:
        make_private_directory(path.parent)
        _make(path)
    return parse_secret(path.read_text(encoding="ascii"))


def parse_secret(text: str) -> bytes:
    """The secret that 64 hex digits stand for.

    Raises:
        ValueError: the text is something else.
    """
    secret = bytes.fromhex(text.strip())
    if len(secret) != SECRET_BYTES:
        raise ValueError("not 64 hex digits")
    return secret


def _make(path: Path) -> None:
    """Write a fresh secret where there is no file; complete or not at all, and the first of two processes wins."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(os.urandom(SECRET_BYTES).hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        temporary.unlink(missing_ok=True)
