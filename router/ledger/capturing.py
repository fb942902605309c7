"""Payload capture at work: a request's bytes and its answer's on their way from the hot path to the vault.

Nothing of this exists for a request that is not captured. For one that is, the event loop keeps references to bytes it has in
hand anyway, up to a bound, and a thread of its own takes the answer out of its framing, encrypts both and writes them. What
cannot be kept (the queue is full, the disk is) is lost and counted; the request itself never waits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from router.config import Config, ConfigError, Credential
from router.ledger import records
from router.ledger.capture import CaptureError, Vault
from router.ledger.log import AuditLog
from router.ledger.retention import ClockJumped, HoldError, check_clock, standing_holds
from router.policy import KeyGrant, Policy
from router.residency.label import Label
from router.secret_file import parse_secret, read_secret_file
from router.wire.direct import DirectRequest
from router.wire.request import Headers, header

_log = logging.getLogger("tidegate.capture")

_SUBJECT_HEADER = b"x-tidegate-subject"
_PRUNE_S = 3600.0
_DAY_S = 86400.0
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)

REQUEST, RESPONSE = "request", "response"
KEPT, RESIDENCY, REDACTED, FULL = "kept", "residency", "redacted", "full"
"""What became of a capture, as receipts have it."""


class Recording:
    """Stands where the client's transport stands, and keeps the first `most` bytes of what is written to it."""

    __slots__ = ("_left", "_transport", "body", "body_size", "received", "size", "subject", "written")

    def __init__(self, transport: asyncio.Transport, body: bytes, subject: str, most: int) -> None:
        self._transport = transport
        self._left = most
        self.body = body[:most]
        self.body_size = len(body)
        self.subject = subject
        self.received = time.time()
        self.written: list[bytes] = []
        self.size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write, and keep what there is room for."""
        self._transport.write(data)
        self.size += len(data)
        if self._left > 0:
            kept = bytes(data[: self._left])
            self._left -= len(kept)
            self.written.append(kept)


class Payload(msgspec.Struct, frozen=True):
    """What the thread gets of one captured request; `answer` still has its head and its framing."""

    request_id: str
    tenant: str
    subject: str
    path: str
    received: float
    body: bytes
    body_size: int
    answer: bytes
    answer_size: int


class Place(msgspec.Struct, frozen=True):
    """Where payloads are stored, in names: a sink like any other, with evidence of its own."""

    zone: str
    duties: tuple[str, ...]

    def may_store(self, policy: Policy, label: Label) -> bool:
        """Whether a label lets this place store what it is on."""
        words = policy.vocabulary
        if self.zone not in words.zones or not set(self.duties) <= set(words.duties):
            return False
        return not words.zone_mask([self.zone]) & ~label.store and not label.duties & ~words.duty_mask(self.duties)


class Capture:
    """Keeps payloads of those who opted in.

    Args:
        vault: where they are kept.
        place: where that is.
        tenants: tenants all of whose keys are captured.
        max_bytes: how much of a request, and of an answer, is kept.
        queue_bytes: what may wait for the disk.
        audit: gets a keyed commitment to every payload.
        keep_days: payloads older than this are removed.
        holds: the directory with the legal holds.
    """

    def __init__(
        self,
        vault: Vault,
        place: Place,
        tenants: frozenset[str],
        max_bytes: int,
        queue_bytes: int,
        audit: AuditLog,
        keep_days: float,
        holds: Path,
    ) -> None:
        self.place = place
        self.counts: dict[str, int] = {}
        """Captures by what became of them."""
        self._vault = vault
        self._tenants = tenants
        self._max_bytes = max_bytes
        self._queue_bytes = queue_bytes
        self._audit = audit
        self._keep_s = keep_days * _DAY_S
        self._holds = holds
        self._clocks = time.time(), time.monotonic()
        self._queue: queue.SimpleQueue[Payload | None] = queue.SimpleQueue()
        # Each is written by one thread only: what waits is their difference.
        self._put = self._taken = 0
        self._failing = False
        self._prune_at = 0.0
        self._thread = threading.Thread(target=self._run, name="tidegate-capture", daemon=True)

    def __repr__(self) -> str:
        return f"Capture({self.place!r})"

    def start(self) -> None:
        """Begin to keep what is handed over."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Keep what is left, and end."""
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def wants(self, grant: KeyGrant) -> bool:
        """Whether this key's payloads are to be kept."""
        return grant.capture or grant.tenant in self._tenants

    def record(self, request: DirectRequest, grant: KeyGrant, body: bytes, parsed: Mapping[str, Any]) -> Recording:
        """Begin to capture a request; the recording takes the place of the client's transport."""
        recording = Recording(request.transport, body, subject_of(grant, parsed, request.headers), self._max_bytes)
        request.transport = cast(asyncio.Transport, recording)
        return recording

    def finish(self, recording: Recording, request_id: str, tenant: str, path: str, *, allowed: bool) -> str:
        """A request is over but for what is written to the client in this turn of the event loop.

        Args:
            recording: what `record` gave.
            request_id: the request.
            tenant: whose it is.
            path: its path.
            allowed: whether its label lets this place store it.

        Returns:
            What becomes of it.
        """
        waiting = self._put - self._taken
        if not allowed:
            outcome = RESIDENCY
        elif waiting + len(recording.body) + self._max_bytes > self._queue_bytes:
            outcome = FULL
        else:
            outcome = KEPT
            asyncio.get_running_loop().call_soon(self._hand_over, recording, request_id, tenant, path)
        self.count(outcome)
        return outcome

    def count(self, outcome: str) -> None:
        """One more of these."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1

    def _hand_over(self, recording: Recording, request_id: str, tenant: str, path: str) -> None:
        payload = Payload(
            request_id,
            tenant,
            recording.subject,
            path,
            recording.received,
            recording.body,
            recording.body_size,
            b"".join(recording.written),
            recording.size,
        )
        recording.written.clear()
        self._put += _weight(payload)
        self._queue.put(payload)

    def _run(self) -> None:
        while True:
            try:
                payload = self._queue.get(timeout=max(0.0, self._prune_at - time.monotonic()))
            except queue.Empty:
                self._prune_at = time.monotonic() + _PRUNE_S
                self._prune()
                continue
            if payload is None:
                return
            self._taken += _weight(payload)
            try:
                self._keep(payload)
                self._failing = False
            except CaptureError as error:
                self._fail(str(error))
            except Exception as error:
                self._fail(type(error).__name__)

    def _keep(self, payload: Payload) -> None:
        parts = []
        for part, data, cut in (
            (REQUEST, payload.body, len(payload.body) < payload.body_size),
            (RESPONSE, body_of(payload.answer), len(payload.answer) < payload.answer_size),
        ):
            sealed = self._vault.seal(payload.tenant, payload.subject, payload.request_id, part, data, payload.received)
            parts.append({"part": part, **msgspec.structs.asdict(sealed), "cut": cut})
        self._audit.event(records.SEAL, payload.request_id, {"tenant": payload.tenant, "path": payload.path, "parts": parts})

    def _fail(self, reason: str) -> None:
        self.count("failed")
        if not self._failing:
            _log.error("capture: %s; payloads are lost until it works again", reason)
        self._failing = True

    def _prune(self) -> None:
        try:
            now = time.time()
            check_clock(self._clocks, now)
            holds = standing_holds(self._holds)
            removed = self._vault.prune(
                now - self._keep_s, lambda moment: any(hold.since <= moment < hold.until for hold in holds)
            )
        except (CaptureError, ClockJumped, HoldError) as error:
            _log.error("capture: nothing more was removed under the retention rule: %s", error)
        else:
            if removed:
                self._audit.event(records.PRUNE, "", {"payloads": removed, "kept_days": self._keep_s / _DAY_S})


def subject_of(grant: KeyGrant, parsed: Mapping[str, Any], headers: Headers) -> str:
    """Whose data a request is, as the client names it: `x-tidegate-subject`, or the field its API has for that.

    Where nobody is named it is `key:ID`, so that the payloads of a key can be destroyed, too.
    """
    named = header(headers, _SUBJECT_HEADER)
    if named is not None and named.strip():
        return named.strip().decode("utf-8", "replace")
    metadata = parsed.get("metadata")
    for value in (
        parsed.get("safety_identifier"),
        parsed.get("user"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    ):
        if isinstance(value, str) and value:
            return value.encode("utf-8", "replace").decode()  # JSON can name half of a character
    return f"key:{grant.id}"


def body_of(answer: bytes) -> bytes:
    """The body of a response as it was written, out of its head and its chunks; as much of it as is there."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not _CHUNKED.search(head + b"\r\n"):
        return rest
    parts, place = [], 0
    while True:
        line_end = rest.find(b"\r\n", place)
        if line_end < 0:
            break
        try:
            size = int(rest[place:line_end].partition(b";")[0], 16)
        except ValueError:
            break
        if size == 0:
            break
        parts.append(rest[line_end + 2 : line_end + 2 + size])
        place = line_end + 2 + size + 2
    return b"".join(parts)


def read_kek(source: Credential, base: Path, *, make: bool) -> bytes:
    """The key-encryption key that a configuration names; with `make`, a missing file is made.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    name = f"${source.env}" if source.env is not None else str(base / str(source.file))
    try:
        if source.env is not None:
            return parse_secret(os.environ.get(source.env, ""))
        return read_secret_file(base / str(source.file), make=make)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"capture.kek: {name} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    except ValueError:
        raise ConfigError(f"capture.kek: {name} does not hold 64 hex digits") from None


def open_capture(config: Config, base: Path, audit: AuditLog | None) -> Capture | None:
    """The capture that a configuration asks for; None when it is off, or when there is no audit log to find payloads by.

    Args:
        config: the configuration.
        base: directory that relative paths start from.
        audit: the router's audit log.

    Raises:
        ConfigError: the key-encryption key cannot be used.
    """
    options = config.capture
    if options is None or audit is None:
        return None
    capture = Capture(
        Vault(base / options.dir, read_kek(options.kek, base, make=True)),
        Place(options.zone, tuple(options.duties)),
        frozenset(options.tenants),
        options.max_kib * 1024,
        options.queue_mib * 1024 * 1024,
        audit,
        options.retention_days,
        base / config.audit.dir,
    )
    capture.start()
    return capture


def _weight(payload: Payload) -> int:
    return len(payload.body) + len(payload.answer)
