"""Reading secrets where the configuration says they are. They are held in memory and never printed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from router.config import Config, ConfigError, Credential, Secret, home

_MIN_SECRET_BYTES = 32


def read_secret(source: Secret) -> bytes | None:
    """The cluster secret from the environment or a file; None when the configuration names neither.

    Raises:
        ConfigError: it is named but missing, or shorter than 32 bytes.
    """
    if source.env is not None:
        where, text = f"secret.env: the variable `{source.env}`", os.environ.get(source.env, "").strip()
    elif source.file is not None:
        path = home() / Path(source.file).expanduser()
        where, text = f"secret.file: {path}", _read_file(path, "secret.file")
    else:
        return None
    secret = text.encode()
    if not secret:
        raise ConfigError(f"{where} is not set on this node; every node of the cluster needs the same secret")
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigError(f"{where} holds {len(secret)} bytes; use {_MIN_SECRET_BYTES} or more, e.g. `openssl rand -hex 32`")
    return secret


def read_credentials(config: Config, base: Path, kind: str = "server") -> dict[str, str]:
    """Bearer tokens by target id, of the targets of one `kind`.

    Raises:
        ConfigError: a credential that the configuration names is missing.
    """
    return {
        target.id: read_credential(target.credential, base, target.id)
        for target in config.targets
        if target.kind == kind and target.credential is not None
    }


class LiveCredentials(Mapping[str, str]):
    """The keys of targets by their ids; a key in a file is read anew when the file changes.

    So a key can be rotated, and an access token that lives for an hour (Vertex AI, temporary AWS keys) kept fresh by whatever
    writes the file. A file that cannot be read, is empty, or holds what no header can, leaves the last key in place.

    Args:
        config: the configuration.
        base: directory that relative paths start from.
        kind: the kind of the targets.

    Raises:
        ConfigError: a credential that the configuration names is missing now.
    """

    def __init__(self, config: Config, base: Path, kind: str) -> None:
        self._values = read_credentials(config, base, kind)
        self._files = {
            target.id: base / target.credential.file
            for target in config.targets
            if target.id in self._values and target.credential is not None and target.credential.file is not None
        }
        self._stamps = {target_id: _stamp(path) for target_id, path in self._files.items()}

    def __getitem__(self, target_id: str) -> str:
        path = self._files.get(target_id)
        if path is not None:
            stamp = _stamp(path)
            if stamp is not None and stamp != self._stamps[target_id]:
                self._read_again(target_id, path, stamp)
        return self._values[target_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"LiveCredentials({sorted(self._values)})"

    def _read_again(self, target_id: str, path: Path, stamp: tuple[int, int]) -> None:
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError):
            return
        if value and _is_sendable(value):
            self._values[target_id], self._stamps[target_id] = value, stamp


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does: a rename puts another inode there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def read_credential(credential: Credential, base: Path, target_id: str) -> str:
    """One bearer token.

    Raises:
        ConfigError: it is missing or empty.
    """
    if credential.env is not None:
        value = os.environ.get(credential.env, "").strip()
        if not value:
            raise ConfigError(f"targets: `{target_id}`: the environment variable {credential.env} is not set")
    else:
        value = _read_file(base / str(credential.file), f"targets: `{target_id}`: credential.file")
        if not value:
            raise ConfigError(f"targets: `{target_id}`: {credential.file} is empty")
    if not _is_sendable(value):
        where = credential.env or credential.file
        raise ConfigError(f"targets: `{target_id}`: {where} holds more than one line, or characters that no header has")
    return value


def _is_sendable(value: str) -> bool:
    """Whether it can stand in a header: a second line would be one of its own."""
    return value.isascii() and value.isprintable()


def _read_file(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path} on this node: {error.strerror}") from None
    except UnicodeDecodeError:  # it holds the whole file
        raise ConfigError(f"{where}: {path} is not UTF-8") from None
