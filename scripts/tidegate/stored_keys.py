"""Keys in the store: valid, changed and revoked within a second on every router, without a new configuration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from router.config import Config, ConfigError, Key, explain, moment_of
from router.config.check import nearest
from router.identity.stored import PEPPER_FILE, compile_stored
from router.ledger.policies import compile_without_keys
from router.policy_source import read_configured
from router.store.database import Database, StoreError
from router.store.keys import KeyTable, StoredKey, mac_of, read_pepper
from tidegate.home import DEFAULT_CONFIG, Home
from tidegate.keys import KeyFileError, generate_key
from tidegate.recorded import NotRecorded, record


class KeyStore:
    """The stored keys of an installation.

    Args:
        home: the installation.
        config: its configuration file; default: the shipped one.

    Raises:
        KeyFileError: the configuration or the store cannot be used.
    """

    def __init__(self, home: Home, config: Path | None = None) -> None:
        self._home = home
        try:
            self._config: Config = read_configured(config or home.root / DEFAULT_CONFIG, home.root)
            self._database = Database(self._config.store.url_from(home.root))
            self._pepper = read_pepper(home.root / PEPPER_FILE, make=True)
        except (ConfigError, StoreError) as error:
            raise KeyFileError(str(error)) from None
        self._table = KeyTable(self._database)

    def create(self, name: str, scopes: dict[str, Any], expires: str = "") -> str:
        """Make a key.

        Args:
            name: its id.
            scopes: fields of `router.config.Key`.
            expires: an ISO date or time after which it is worth nothing; empty for never.

        Returns:
            The key; it exists nowhere else.

        Raises:
            KeyFileError: the name is taken, or the scopes name what the configuration does not have.
        """
        with _plain_errors():
            wanted = {name: value for name, value in scopes.items() if value not in (None, [], 0, 0.0, False, "")}
            plain = generate_key()
            key = Key.model_validate({"id": name, "sha256": "0" * 64, **wanted})
            if any(configured.id == name for configured in self._config.keys):
                raise KeyFileError(f"the configuration has a key `{name}` already")
            if key.capture and self._config.capture is None:
                raise KeyFileError("the configuration has no `capture` block that says where payloads are kept")
            text, until = key.model_dump_json(exclude_defaults=True), moment_of(expires) if expires else None
            if until is not None and until <= time.time():
                raise KeyFileError(f"`{expires}` is over: a key that ends then would never be valid")
            stored = self._new(plain, name, key.tenant, text.encode(), until)
            policy = compile_without_keys(self._config)
            compile_stored(stored, self._config, policy)
            for model in key.models or ():
                if model not in policy.names:
                    raise KeyFileError(f"unknown model `{model}`{nearest(model, policy.names)}")
            self._table.add(stored)
        self._record("key.create", name, {"tenant": key.tenant, "scopes": text})
        return plain

    def rotate(self, name: str, overlap_s: float) -> str:
        """Make a new key for an id; the old one stays valid for `overlap_s` seconds.

        Raises:
            KeyFileError: there is no such key.
        """
        plain = generate_key()
        with _plain_errors():
            self._table.rotate(self._new(plain, name, "", b"", None), overlap_s)
        self._record("key.rotate", name, {"overlap_s": overlap_s})
        return plain

    def revoke(self, name: str) -> None:
        """Make every key of an id worthless.

        Raises:
            KeyFileError: there is no such key.
        """
        with _plain_errors():
            if not self._table.revoke(name, time.time()):
                raise KeyFileError(
                    f"there is no valid key `{name}` in the store (keys of the configuration end when they leave it)"
                )
        self._record("key.revoke", name, {})

    def rows(self) -> list[dict[str, Any]]:
        """Every stored key, without anything secret.

        Raises:
            KeyFileError: the store cannot be read.
        """
        now = time.time()
        with _plain_errors():
            found = self._table.all()
        rows = []
        for key in found:
            scopes = {
                name: value for name, value in msgspec.json.decode(key.scopes).items() if name not in ("id", "sha256", "tenant")
            }
            state = "revoked" if key.revoked is not None else "valid" if key.is_valid(now) else "expired"
            expires = None if key.expires is None else datetime.fromtimestamp(key.expires, UTC).isoformat(timespec="seconds")
            created = datetime.fromtimestamp(key.created, UTC).isoformat(timespec="seconds")
            rows.append({"id": key.id, "tenant": key.tenant, "state": state, "created": created, "expires": expires, **scopes})
        return rows

    def _new(self, plain: str, name: str, tenant: str, scopes: bytes, expires: float | None) -> StoredKey:
        return StoredKey(mac_of(self._pepper, plain.encode()), name, tenant, scopes, time.time(), expires)

    def _record(self, event: str, name: str, data: dict[str, Any]) -> None:
        """What an operator does to keys stands in the audit log."""
        try:
            record(self._home, self._config, event, name, data)
        except NotRecorded as error:
            raise KeyFileError(f"done, but {error}") from None


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the store and of the scopes as errors of the command."""
    try:
        yield
    except KeyFileError:
        raise
    except ValidationError as error:
        raise KeyFileError("; ".join(explain(error))) from None
    except (StoreError, ConfigError, ValueError) as error:
        raise KeyFileError(str(error).splitlines()[0]) from None
