"""Client keys: `tg_<64 hex digits>_<8 hex digits>`, 256 random bits and a checksum.

The checksum tells a mistyped or cut-off key from a revoked one without asking the router, and lets a secret scanner
recognise keys by their form. Only the SHA-256 of a key is ever configured.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path

from tidegate.home import Home, write_private

QUICKSTART = "quickstart"
_KEY = re.compile(r"tg_([0-9a-f]{64})_([0-9a-f]{8})\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class KeyFileError(Exception):
    """A key cannot be made or read; the text says what to do."""


@dataclass(frozen=True)
class NewKey:
    """A key just made; `plain` exists nowhere else."""

    name: str
    plain: str
    sha256: str
    digest_file: Path


def generate_key() -> str:
    """A new key with 256 random bits."""
    body = secrets.token_hex(32)
    return f"tg_{body}_{_checksum(body)}"


def is_well_formed(key: str) -> bool:
    """Whether the text has the form of a key and its checksum fits."""
    match = _KEY.match(key)
    return match is not None and match.group(2) == _checksum(match.group(1))


def digest_of(key: str) -> str:
    """The SHA-256 of a key in hex, as the configuration wants it."""
    return hashlib.sha256(key.encode()).hexdigest()


def create_key(home: Home, name: str) -> NewKey:
    """Make a key and write its digest to `.tidegate/keys/NAME.sha256`.

    Raises:
        KeyFileError: the name cannot be used, or there is a key of that name already.
    """
    if not _NAME.match(name):
        raise KeyFileError(f"`{name}`: use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit")
    digest_file = home.keys / f"{name}.sha256"
    if digest_file.exists():
        raise KeyFileError(f"{digest_file} exists already. Choose another name, or remove that file to revoke the key")
    plain = generate_key()
    write_private(digest_file, f"{digest_of(plain)}  {name}\n")
    return NewKey(name, plain, digest_of(plain), digest_file)


def ensure_quickstart_key(home: Home) -> Path:
    """The file with the plain quickstart key (mode 0600), made together with its digest when either is missing.

    Raises:
        KeyFileError: the file does not hold a key.
    """
    plain_file, digest_file = home.keys / f"{QUICKSTART}.key", home.keys / f"{QUICKSTART}.sha256"
    if not plain_file.exists():
        write_private(plain_file, generate_key() + "\n")
        digest_file.unlink(missing_ok=True)
    digest = digest_of(read_key(plain_file))
    if not digest_file.exists() or digest_file.read_text(encoding="utf-8").split()[:1] != [digest]:
        write_private(digest_file, f"{digest}  {QUICKSTART}\n")
    return plain_file


def read_key(path: Path) -> str:
    """The plain key in a file.

    Raises:
        KeyFileError: it cannot be read, or is not a whole key.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise KeyFileError(f"cannot read the key in {path}: {error.strerror}. `tidegate up` makes one") from None
    except UnicodeDecodeError:
        key = ""
    if not is_well_formed(key):
        raise KeyFileError(f"{path} does not hold a whole key (wrong checksum). Remove it and `tidegate up` makes another")
    return key


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"
