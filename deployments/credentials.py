"""Reading secrets where the configuration says they are. They are held in memory and never printed."""

from __future__ import annotations

import os
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


def read_credential(credential: Credential, base: Path, target_id: str) -> str:
    """One bearer token.

    Raises:
        ConfigError: it is missing or empty.
    """
    if credential.env is not None:
        value = os.environ.get(credential.env, "").strip()
        if not value:
            raise ConfigError(f"targets: `{target_id}`: the environment variable {credential.env} is not set")
        return value
    value = _read_file(base / str(credential.file), f"targets: `{target_id}`: credential.file")
    if not value:
        raise ConfigError(f"targets: `{target_id}`: {credential.file} is empty")
    return value


def _read_file(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read {path} on this node: {error.strerror}") from None
