"""Break-glass requests on their way to two signatures: `tidegate breakglass ...` prints, this does the work.

A request is a file of JSON that each approver signs with their own key, on whatever machine that key is. With enough
signatures it becomes a line of `break_glass.file`, which routers and the egress read anew within a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from router.config import Config, ConfigError
from router.ledger import records
from router.ledger.policies import compile_without_keys
from router.policy_source import read_configured
from router.residency.break_glass import (
    Approval,
    Relaxation,
    RelaxationError,
    read_approvals,
    read_relaxations,
    sign,
    sign_bytes,
)
from router.store.database import Database, StoreError
from router.store.keys import KeyTable
from tidegate.home import DEFAULT_CONFIG, Home
from tidegate.recorded import NotRecorded, record

_PUBLIC = 0o644
"""Nothing in a request or a relaxation is secret, and an egress that runs as another user must be able to read them."""
_FIELDS = ("id", "key", "tags", "begins", "ends", "reason")


class GlassError(Exception):
    """A relaxation cannot be asked for, approved or taken back; the text says why."""


def make_key(path: Path) -> str:
    """Make an approver's private key, for its owner's eyes only.

    Returns:
        The public key in hex, for `break_glass.approvers`.

    Raises:
        GlassError: there is such a file already.
    """
    if path.exists():
        raise GlassError(f"{path} exists already; a key that signs is not to be written over")
    key = Ed25519PrivateKey.generate()
    _write_whole(path, key.private_bytes_raw().hex() + "\n", 0o600)
    return key.public_key().public_bytes_raw().hex()


class BreakGlassFile:
    """The relaxations of an installation, asked for and in force.

    Args:
        home: the installation.
        config: its configuration file; default: the shipped one.

    Raises:
        GlassError: the configuration cannot be used, or has no `break_glass`.
    """

    def __init__(self, home: Home, config: Path | None = None) -> None:
        self._home = home
        try:
            self._config: Config = read_configured(config or home.root / DEFAULT_CONFIG, home.root)
        except ConfigError as error:
            raise GlassError(str(error)) from None
        if self._config.break_glass is None:
            raise GlassError("the configuration has no `break_glass`: name its `file` and at least two `approvers`")
        self._rules = self._config.break_glass
        self.path = home.root / self._rules.file
        self._requests = self.path.with_name(self.path.name + ".requests")

    def request(self, key: str, tags: list[str], hours: float, reason: str, begins: str = "") -> Path:
        """Ask for a relaxation.

        Args:
            key: the id of the key whose ceiling is to be widened; one of the configuration or of the store.
            tags: what is added to it: the meet of these tags.
            hours: how long.
            reason: why; it stands in the audit log.
            begins: an ISO time with its offset; empty for now.

        Returns:
            The request's file, for approvers to sign.

        Raises:
            GlassError: it could never be approved.
        """
        if not 0 < hours <= self._rules.max_hours:
            raise GlassError(f"a relaxation lasts more than nothing and at most {self._rules.max_hours:g} hours")
        start = _moment(begins) if begins else datetime.now(UTC)
        name = f"bg-{start:%Y%m%d}-{secrets.token_hex(4)}"
        try:
            ends = start + timedelta(hours=hours)
        except OverflowError:
            raise GlassError(f"`{begins}` lies too far ahead") from None
        fields = {
            "id": name,
            "key": key,
            "tags": tags,
            "begins": start.isoformat(timespec="seconds"),
            "ends": ends.isoformat(timespec="seconds"),
            "reason": reason,
        }
        if not (key and tags and reason.strip()):
            raise GlassError("name the key, at least one tag, and the reason")
        known = compile_without_keys(self._config).tags
        for tag in tags:
            if tag not in known:
                raise GlassError(f"unknown tag `{tag}`; known: {', '.join(sorted(known))}")
        self._requests.mkdir(parents=True, exist_ok=True)
        file = self._requests / f"{name}.json"
        self._write(file, {**fields, "signatures": {}})
        self._record(records.GLASS_REQUEST, name, fields)
        return file

    def knows(self, key: str) -> bool | None:
        """Whether there is such a key, in the configuration or in its store; None where the store cannot be asked.

        A request for none is not refused: a key may be on its way, and an emergency is no time to find out why a store is down.
        """
        if any(known.id == key for known in self._config.keys):
            return True
        options = self._config.store
        if options.url is None and not (self._home.root / options.path).exists():
            return False
        try:
            database = Database(options.url_from(self._home.root))
            return any(stored.id == key for stored in KeyTable(database).all())
        except StoreError:
            return None

    def approve(self, request: str, approver: str, private_key: Path) -> tuple[int, int]:
        """Sign a request; with the last signature that it needs, it is in force from its begin on.

        Args:
            request: its id, or the path of its file.
            approver: whose signature it is, one of `break_glass.approvers`.
            private_key: that person's private key, as `make_key` writes it.

        Returns:
            How many have signed, and how many must.

        Raises:
            GlassError: no such request or approver, a key that is not theirs, or a request that does not hold.
        """
        file = self._file_of(request)
        with self._locked():
            asked = self._read_request(file)
            private = self._private_of(approver, private_key)
            asked["signatures"][approver] = sign(asked, private)
            signed, required = len(asked["signatures"]), self._rules.required
            line = msgspec.json.encode(asked).decode()
            if signed < required:
                self._check(line, required=signed)
                self._write(file, asked)
            else:
                [opened] = self._check(line, required)
                self._replace([*self._lines(), line])
                self._write(file, asked)
        self._record(records.GLASS_APPROVE, asked["id"], {"approver": approver, "signed": signed, "required": required})
        if signed >= required:
            self._record(records.GLASS_OPEN, opened.id, msgspec.structs.asdict(opened))
        return signed, required

    def approve_policy(self, before: str, after: str, reason: str, approver: str, private_key: Path) -> tuple[int, int]:
        """Sign that a wider policy may replace the one that runs; with the last signature that it needs, routers take it.

        Args:
            before: the digest of the policy that runs, as the router's log says.
            after: the digest of the one that is to run.
            reason: why; every signer gives the same. Routers take it until `max_hours` after the first of them.
            approver: whose signature it is.
            private_key: that person's private key.

        Returns:
            How many have signed, and how many must.

        Raises:
            GlassError: the configuration does not ask for it, the digests are none, or the key is not theirs.
        """
        if self._rules.policies is None:
            raise GlassError("the configuration asks for no signatures of wider policies: `break_glass.policies`")
        if not (_is_digest(before) and _is_digest(after) and reason.strip()):
            raise GlassError("give both digests as the router's log says them (64 hex digits), and a reason")
        path = self._home.root / self._rules.policies
        waiting = path.with_name(path.name + ".requests") / f"{before[:16]}-{after[:16]}.json"
        with self._locked():
            private = self._private_of(approver, private_key)
            now = datetime.now(UTC)
            ends = now + timedelta(hours=self._rules.max_hours)
            asked = self._asked_before(waiting, now) or Approval(before, after, ends.isoformat(timespec="seconds"), reason)
            if (asked.before, asked.after, asked.reason) != (before, after, reason):
                raise GlassError(f"{waiting} was signed for another reason: {asked.reason}")
            asked.signatures[approver] = sign_bytes(asked.statement(), private)
            signed, required = len(asked.signatures), self._rules.required
            line = msgspec.json.encode(asked).decode()
            text = f"{path.read_text(encoding='utf-8') if path.exists() else ''}{line}\n"
            try:
                read_approvals(line if signed < required else text, self._rules.approvers, min(signed, required))
            except RelaxationError as error:
                raise GlassError(str(error)) from None
            waiting.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(waiting, line + "\n", _PUBLIC)
            if signed >= required:
                _write_whole(path, text, _PUBLIC)
        told = {"approver": approver, "after": after, "ends": asked.ends, "reason": reason}
        told |= {"signed": signed, "required": required}
        self._record(records.GLASS_APPROVE, before, told)
        return signed, required

    def _asked_before(self, waiting: Path, now: datetime) -> Approval | None:
        """What others have signed; None where nobody has, or so long ago that it has ended."""
        if not waiting.exists():
            return None
        try:
            asked = msgspec.json.decode(waiting.read_bytes(), type=Approval)
            return asked if asked.holds(now.timestamp(), self._rules.max_hours) else None
        except (msgspec.MsgspecError, ValueError) as error:
            raise GlassError(f"{waiting}: {error}; remove it, and sign anew") from None

    def revoke(self, name: str, by: str) -> None:
        """Take a relaxation back, in force or only asked for. That tightens, so one person is enough.

        Raises:
            GlassError: there is none of this id.
        """
        with self._locked():
            lines = self._lines()
            left = [line for line in lines if _id_of(line) != name]
            file = self._requests / f"{name}.json"
            if len(left) == len(lines) and not (_is_name(name) and file.exists()):
                raise GlassError(f"there is no relaxation `{name}`")
            if len(left) < len(lines):
                self._replace(left)
            if _is_name(name):
                file.unlink(missing_ok=True)
        self._record(records.GLASS_REVOKE, name, {"by": by, "was_open": len(left) < len(lines)})

    def rows(self) -> list[dict[str, Any]]:
        """Every relaxation, the ones in the file first, each with its state: open, waiting (for its begin), ended, asked.

        Raises:
            GlassError: the file, or a request, cannot be read.
        """
        now = datetime.now(UTC).timestamp()
        rows = [_row(found, now) for found in self._check("\n".join(self._lines()), self._rules.required)]
        known = {row["id"] for row in rows}
        for file in sorted(self._requests.glob("*.json")) if self._requests.is_dir() else []:
            asked = self._read_request(file)
            if asked["id"] not in known:
                fields = {name: asked[name] for name in _FIELDS}
                rows.append({**fields, "state": "asked", "approved_by": sorted(asked["signatures"])})
        return rows

    def _private_of(self, approver: str, path: Path) -> bytes:
        private = _read_private(path)
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()
        if self._rules.approvers.get(approver) != public:
            raise GlassError(f"`{approver}` is no approver with this key: the configuration names their public keys")
        return private

    def _file_of(self, request: str) -> Path:
        return self._requests / f"{request}.json" if _is_name(request) else Path(request)

    def _read_request(self, file: Path) -> dict[str, Any]:
        try:
            asked = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
            fields = {name: asked[name] for name in _FIELDS}
            signatures = {str(name): str(value) for name, value in asked["signatures"].items()}
        except OSError as error:
            raise GlassError(f"{file}: {error.strerror}") from None
        except (msgspec.MsgspecError, KeyError, AttributeError):
            raise GlassError(f"{file} is no request for a relaxation") from None
        return {**fields, "signatures": signatures}

    def _check(self, text: str, required: int) -> tuple[Relaxation, ...]:
        try:
            return read_relaxations(text, self._rules.approvers, required, self._rules.max_hours)
        except RelaxationError as error:
            raise GlassError(str(error)) from None

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise GlassError(f"{self.path}: cannot be read ({type(error).__name__})") from None

    def _replace(self, lines: list[str]) -> None:
        """The whole file or nothing of it, and never one that routers would refuse."""
        text = "".join(f"{line}\n" for line in lines)
        self._check(text, self._rules.required)
        _write_whole(self.path, text, _PUBLIC)

    def _write(self, file: Path, asked: dict[str, Any]) -> None:
        _write_whole(file, msgspec.json.format(msgspec.json.encode(asked)).decode() + "\n", _PUBLIC)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _record(self, event: str, name: str, data: dict[str, Any]) -> None:
        try:
            record(self._home, self._config, event, name, data)
        except NotRecorded as error:
            raise GlassError(f"done, but {error}") from None


def _write_whole(path: Path, text: str, mode: int) -> None:
    """Write a file so that whoever looks finds all of it, or what was there before."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _row(found: Relaxation, now: float) -> dict[str, Any]:
    state = "ended" if now >= found.ends else "open" if now >= found.begins else "waiting"
    times = {name: datetime.fromtimestamp(getattr(found, name), UTC).isoformat() for name in ("begins", "ends")}
    return {**msgspec.structs.asdict(found), **times, "state": state}


def _id_of(line: str) -> str:
    try:
        return str(msgspec.json.decode(line, type=dict[str, Any]).get("id", ""))
    except msgspec.MsgspecError:
        return ""


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _is_name(text: str) -> bool:
    return bool(text) and "/" not in text and not text.endswith(".json") and not text.startswith(".")


def _read_private(path: Path) -> bytes:
    try:
        if path.stat().st_mode & 0o077:
            raise GlassError(f"{path}: others can read this private key; `chmod 600` it, or better make another")
        private = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise GlassError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, ValueError):
        private = b""
    if len(private) != 32:
        raise GlassError(f"{path} holds no private key: `tidegate breakglass keygen` makes one")
    return private


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise GlassError(f"`{text}` is no time: give 2026-11-22T05:00:00+00:00") from None
    if moment.tzinfo is None:
        raise GlassError(f"`{text}`: a time needs its offset, such as 2026-11-22T05:00:00+00:00")
    return moment.astimezone(UTC)
