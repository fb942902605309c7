"""Payload capture, off unless it is switched on: prompts and answers encrypted per subject, and forgotten by destroying a key.

Each (tenant, subject, month) has a data key of its own, wrapped by the installation's key-encryption key. A payload is
AES-256-GCM under the data key; the audit log gets only a keyed commitment to it (HMAC-SHA256 under a key derived from the data
key), because a plain hash of a prompt can be guessed. Destroying the data keys of a subject makes every copy of its payloads,
backups included, unreadable, while the log still verifies.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from router.secret_file import make_private_directory

_KEY_BYTES, _NONCE_BYTES = 32, 12


class CaptureError(Exception):
    """A payload cannot be kept or read; the text says why, and holds nothing of it."""


class Sealed(msgspec.Struct, frozen=True):
    """What the audit log may know of a captured payload: which data key it is under, and a keyed commitment to it."""

    key_id: str
    commitment: str
    size: int


class Vault:
    """Captured payloads in a directory.

    Args:
        root: the directory; made when missing.
        kek: the key-encryption key, 32 bytes, kept elsewhere.
    """

    def __init__(self, root: Path, kek: bytes) -> None:
        if len(kek) != _KEY_BYTES:
            raise CaptureError("the key-encryption key must have 32 bytes")
        self._root = root
        self._kek = kek

    def __repr__(self) -> str:
        return f"Vault({str(self._root)!r})"

    def seal(self, tenant: str, subject: str, request_id: str, part: str, payload: bytes, now: float) -> Sealed:
        """Keep a payload.

        Args:
            tenant: the tenant it belongs to.
            subject: whose data it is, as the client names it; never written down.
            request_id: the request.
            part: `request` or `response`.
            payload: the bytes.
            now: UNIX seconds; the month chooses the data key.

        Raises:
            CaptureError: it cannot be written.
        """
        month = datetime.fromtimestamp(now, UTC).strftime("%Y-%m")
        try:
            key_id, key = self._data_key(tenant, subject, month)
            nonce = secrets.token_bytes(_NONCE_BYTES)
            sealed = Sealed(key_id, _commitment(key, request_id, part, payload), len(payload))
            path = self._payload_path(sealed)
            _write(path, nonce + AESGCM(key).encrypt(nonce, payload, _bound(key_id, request_id, part)))
            os.utime(path, (now, now))  # retention and holds go by it
        except OSError as error:
            raise CaptureError(f"a payload cannot be kept: {error.strerror}") from None
        return sealed

    def open(self, sealed: Sealed, request_id: str, part: str) -> bytes:
        """A payload that was kept.

        Raises:
            CaptureError: its subject was shredded, it is not there, or it was changed.
        """
        key = self._read_key(sealed.key_id)
        if key is None:
            raise CaptureError("the data key is gone: this payload was shredded")
        try:
            data = self._payload_path(sealed).read_bytes()
            return AESGCM(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _bound(sealed.key_id, request_id, part))
        except OSError as error:
            raise CaptureError(f"the payload cannot be read: {error.strerror}") from None
        except InvalidTag:
            raise CaptureError("the payload was changed, or belongs to another request") from None

    def is_committed(self, sealed: Sealed, request_id: str, part: str) -> bool:
        """Whether the kept payload is the one that the log speaks of.

        Raises:
            CaptureError: it cannot be opened.
        """
        payload = self.open(sealed, request_id, part)
        key = self._read_key(sealed.key_id)
        return key is not None and hmac.compare_digest(_commitment(key, request_id, part, payload), sealed.commitment)

    def shred(self, tenant: str, subject: str) -> tuple[str, ...]:
        """Destroy every data key of a subject, and remove its payloads.

        Returns:
            The ids of the destroyed keys, for the log's tombstone.

        Raises:
            CaptureError: a key file could not be removed.
        """
        directory = self._root / "keys" / self._pseudonym(tenant, subject)
        destroyed = []
        try:
            for path in sorted(directory.glob("[0-9]*")):
                key_id = f"{directory.name}.{path.name}"
                _destroy(path)
                destroyed.append(key_id)
                for payload in self._payloads(key_id):
                    payload.unlink(missing_ok=True)
        except OSError as error:
            raise CaptureError(f"the data keys could not be destroyed: {error.strerror}") from None
        return tuple(destroyed)

    def key_ids(self, tenant: str, subject: str) -> tuple[str, ...]:
        """The data keys there are of a subject, one for each month."""
        pseudonym = self._pseudonym(tenant, subject)
        return tuple(f"{pseudonym}.{path.name}" for path in sorted((self._root / "keys" / pseudonym).glob("[0-9]*")))

    def times(self, key_id: str) -> list[float]:
        """When the payloads under a data key were captured, in UNIX seconds."""
        found = []
        for path in self._payloads(key_id):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found.append(path.stat().st_mtime)
        return found

    def prune(self, cutoff: float, is_held: Callable[[float], bool]) -> int:
        """Remove payloads from before `cutoff` (UNIX seconds), and the data keys that nothing is under any more.

        Args:
            cutoff: what is older goes.
            is_held: whether what was captured at a moment must stay.

        Returns:
            How many payloads were removed.

        Raises:
            CaptureError: one could not be.
        """
        removed, month = 0, datetime.fromtimestamp(cutoff, UTC).strftime("%Y-%m")
        try:
            for path in sorted((self._root / "keys").glob("*/[0-9]*")):
                key_id = f"{path.parent.name}.{path.name}"
                for payload in self._payloads(key_id):
                    moment = payload.stat().st_mtime
                    if moment < cutoff and not is_held(moment):
                        payload.unlink(missing_ok=True)
                        removed += 1
                # A month that is over gets no new payloads; another router may be pruning, too.
                if path.name < month and not self._payloads(key_id):
                    with contextlib.suppress(FileNotFoundError):
                        _destroy(path)
        except OSError as error:
            raise CaptureError(f"payloads could not be removed: {error.strerror}") from None
        return removed

    def _payloads(self, key_id: str) -> list[Path]:
        """The payloads under a data key; those that are being written have a name that begins with a dot."""
        return sorted((self._root / "payloads" / key_id).glob("[!.]*"))

    def _pseudonym(self, tenant: str, subject: str) -> str:
        return hmac.digest(self._kek, f"subject\0{tenant}\0{subject}".encode(), "sha256").hex()[:32]

    def _data_key(self, tenant: str, subject: str, month: str) -> tuple[str, bytes]:
        key_id = f"{self._pseudonym(tenant, subject)}.{month}"
        key = self._read_key(key_id)
        if key is None:
            _write(self._key_path(key_id), aes_key_wrap(self._kek, secrets.token_bytes(_KEY_BYTES)), exclusive=True)
            key = self._read_key(key_id)
            if key is None:
                raise CaptureError("a data key was destroyed while it was being made")
        return key_id, key

    def _read_key(self, key_id: str) -> bytes | None:
        try:
            return aes_key_unwrap(self._kek, self._key_path(key_id).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CaptureError(f"a data key cannot be read: {error.strerror}") from None
        except (InvalidUnwrap, ValueError):
            raise CaptureError("a data key is damaged, or the key-encryption key is another") from None

    def _key_path(self, key_id: str) -> Path:
        pseudonym, _, month = key_id.partition(".")
        return self._root / "keys" / _safe(pseudonym) / _safe(month)

    def _payload_path(self, sealed: Sealed) -> Path:
        """Named by what was kept: a request id is the client's choice, and one used twice must replace nothing."""
        return self._root / "payloads" / _safe(sealed.key_id) / _safe(sealed.commitment)


def _bound(key_id: str, request_id: str, part: str) -> bytes:
    return "\0".join((key_id, request_id, part)).encode()


def _commitment(key: bytes, request_id: str, part: str, payload: bytes) -> str:
    mac_key = hmac.digest(key, b"commitment", "sha256")
    return hmac.digest(mac_key, f"{request_id}\0{part}\0".encode() + payload, "sha256").hex()


def _safe(name: str) -> str:
    if not name or not all(char.isalnum() or char in "-." for char in name) or name.startswith("."):
        raise CaptureError("this is no id of a payload")
    return name


def _destroy(path: Path) -> None:
    """Remove a data key, overwritten first: removing a name leaves the bytes."""
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _write(path: Path, data: bytes, *, exclusive: bool = False) -> None:
    """Write a file that appears complete or not at all; with `exclusive`, one that is there already stays."""
    make_private_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
