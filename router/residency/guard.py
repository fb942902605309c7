"""The pass and the guard: nobody enters a target without a signed, short-lived statement of why they may.

The router issues a pass for one request, one label and one incarnation of one target; the guard in front of that target
checks it before a byte of the body is read, on the connection that carries the body. Keys are derived per incarnation
(HMAC-SHA256, RFC 2104, of a cluster secret), so an engine holds only its own key and cannot enter another one.

`router.residency.engine_guard` puts it in front of vLLM. Nothing is imported but the standard library and msgspec.
"""

from __future__ import annotations

import functools
import hmac
import math
import secrets
import time
from pathlib import Path

import msgspec

from router.residency.keyed_hash import keyed_hash

PASS_HEADER = "x-tidegate-pass"  # noqa: S105 - the name of a header
PASS_LIFETIME_S = 60.0
ENV_KEY = "TIDEGATE_GUARD_KEY"
ENV_INCARNATION = "TIDEGATE_GUARD_INCARNATION"
ENV_PLACE = "TIDEGATE_GUARD_PLACE"

ENV_POLICY = "TIDEGATE_GUARD_POLICY"
"""Path of the file that holds the guard's own copy of the policy (`GuardPolicy` as JSON), read anew when it changes."""
REREAD_S = 0.2

_VERSION = "2"
_FIELDS = 10
"""Of a pass: its version, the eight of `Pass`, and the signature over them."""


class PassRefused(Exception):
    """The pass does not open this door. The text is safe to show: it names no label and no other target."""


class Place(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """Where the guarded target stands, in names: zones it processes in, zones it stores in, duties it carries."""

    process: tuple[str, ...]
    store: tuple[str, ...]
    duties: tuple[str, ...] = ()

    def to_text(self) -> str:
        """`eu+us/eu/baa`: the form a pass carries a label in, and `ENV_PLACE` a place."""
        return "/".join(("+".join(self.process), "+".join(self.store), "+".join(self.duties)))

    @classmethod
    def from_text(cls, text: str) -> Place:
        """Read what `to_text` wrote.

        Raises:
            ValueError: the text has not exactly three parts.
        """
        process, store, duties = (tuple(part.split("+")) if part else () for part in text.split("/"))
        return cls(process, store, duties)

    def is_allowed_by(self, label: Place) -> bool:
        """True when a label, in names, admits this place (the same rule as `label.admits`)."""
        return (
            bool(self.process)
            and set(self.process) <= set(label.process)
            and set(self.store) <= set(label.store)
            and set(label.duties) <= set(self.duties)
        )


@functools.lru_cache(maxsize=4096)
def lets_in(label_text: str, place: Place) -> bool:
    """Whether a label, as `Place.to_text` writes it, admits a place; remembered, for there are few of both and many requests.

    Raises:
        ValueError: the text has not exactly three parts.
    """
    return place.is_allowed_by(Place.from_text(label_text))


class Pass(msgspec.Struct, frozen=True, gc=False):
    """One permission to enter: `label_text` as `Place.to_text` writes it, `expires` a UNIX time in seconds.

    `key` (its id), `tags` (joined with `+`) and `model` are what the guard decides again with, under its own policy.
    """

    request_id: str
    incarnation: str
    epoch: str
    label_text: str
    expires: float
    key: str = ""
    tags: str = ""
    model: str = ""


class GuardKey(msgspec.Struct, frozen=True):
    """What a guard knows of a key: its ceiling as `Place.to_text` writes it, and that with each relaxation added."""

    ceiling: str
    relaxed: list[tuple[str, float, float]] = []
    """Ceiling while it lasts, and UNIX seconds of its begin and end."""


STORED = "!stored:"
"""Stands before the name of a key of the store, so that a key of the configuration is never taken for one of the same name."""
ROUTER = "!router"
"""Stands for the router itself, which asks for a self-test with made-up words and for hashes, never with a client's request."""
REDACTED = "!redacted"
"""Follows a key's name in the pass of a redacted request, which has a ceiling of its own."""


class StoredCeilings(msgspec.Struct, frozen=True):
    """The ceilings of the keys of the store: each once in `ceilings`, because many keys share few; `keys` says which is whose."""

    ceilings: list[GuardKey] = []
    keys: dict[str, int] = {}
    digest: str = ""
    """Of the rest; empty while there is no such key."""

    def find(self, name: str) -> GuardKey | None:
        """What is known of a key of the store, by the name it has in passes."""
        index = self.keys.get(name)
        return None if index is None else self.ceilings[index]


NONE_STORED = StoredCeilings()


class GuardPolicy(msgspec.Struct, frozen=True):
    """A guard's own copy of the policy, in names. `issued` (UNIX seconds) orders copies: an older one is not taken."""

    epoch: str
    issued: float
    keys: dict[str, GuardKey]
    tags: dict[str, str]
    models: dict[str, str] = {}
    stored: StoredCeilings = NONE_STORED

    @property
    def stamp(self) -> str:
        """What a guard reports to have: the epoch, and the state of the store's keys where there are any."""
        return f"{self.epoch}+{self.stored.digest}" if self.stored.digest else self.epoch

    def knows(self, key: str) -> bool:
        """Whether a key, by the name it has in passes, is in this copy."""
        return key in self.keys or key in self.stored.keys

    def refuses(self, permission: Pass, place: Place, now: float) -> str | None:
        """Why this policy keeps the holder of `permission` out of `place` at UNIX time `now`, or None when it does not."""
        key = self.keys.get(permission.key) or self.stored.find(permission.key)
        if key is None:
            return "the guard's policy does not know this key"
        if not lets_in(key.ceiling, place) and not any(
            begins <= now < ends and lets_in(text, place) for text, begins, ends in key.relaxed
        ):
            return "the guard's policy does not let this key's requests in here"
        demands = [self.tags.get(tag) for tag in permission.tags.split("+")] if permission.tags else []
        if permission.model in self.models:
            demands.append(self.models[permission.model])
        for text in demands:
            if text is None or not lets_in(text, place):
                return "the guard's policy does not let this request's tags in here"
        return None


def new_secret() -> bytes:
    """A fresh 256-bit cluster secret."""
    return secrets.token_bytes(32)


def derive_target_key(secret: bytes, incarnation: str) -> bytes:
    """The key of one target incarnation: HMAC-SHA256(secret, "target" NUL incarnation)."""
    return hmac.digest(secret, b"target\0" + incarnation.encode(), "sha256")


def issue_pass(key: bytes, permission: Pass, method: str, path: str) -> str:
    """The header value that lets one `method` on one `path` into the target that holds `key`.

    Raises:
        ValueError: a field contains a separator or a line break.
    """
    body = _serialise(permission)
    return f"{body}|{_mac(key, body, method, path)}"


def check_pass(key: bytes, token: str, method: str, path: str, incarnation: str, place: Place, now: float) -> Pass:
    """The permission in `token`, once everything about it holds for this door.

    Args:
        key: this target's own key.
        token: the header value as received.
        method: HTTP method of the request that carries it.
        path: path of that request, without the query.
        incarnation: this target's incarnation.
        place: where this target stands.
        now: UNIX time in seconds.

    Raises:
        PassRefused: malformed, forged, for another request line, another incarnation, expired, or a label that does not
            admit this place.
    """
    parts = token.split("|")
    if len(parts) != _FIELDS or parts[0] != _VERSION:
        raise PassRefused("malformed pass")
    mac = parts[9]
    if not mac.isascii() or not hmac.compare_digest(mac, _mac(key, token[: -len(mac) - 1], method, path)):
        raise PassRefused("pass signature does not fit this target and path")
    try:
        permission = Pass(parts[1], parts[2], parts[3], parts[4], float(parts[8]), parts[5], parts[6], parts[7])
        admitted = lets_in(permission.label_text, place)
    except ValueError:
        raise PassRefused("malformed pass") from None
    if permission.incarnation != incarnation:
        raise PassRefused("pass is for another incarnation")
    if not now < permission.expires <= now + 2 * PASS_LIFETIME_S:
        raise PassRefused("pass has expired, or the clocks of router and target differ by over a minute")
    if not admitted:
        raise PassRefused("the label of this request does not admit this place")
    return permission


def _serialise(permission: Pass) -> str:
    p = permission
    body = f"{_VERSION}|{p.request_id}|{p.incarnation}|{p.epoch}|{p.label_text}|{p.key}|{p.tags}|{p.model}|{p.expires:.3f}"
    if body.count("|") != _FIELDS - 2 or "\n" in body or "\r" in body:
        raise ValueError("a pass field contains a separator")
    return body


def _mac(key: bytes, body: str, method: str, path: str) -> str:
    return keyed_hash(key).hexdigest(f"{body}\n{method} {path}".encode("utf-8", "surrogateescape"))


class PolicyCopy:
    """The guard's own copy of the policy, from a file that is read anew when it changes; a faulty one changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._read_at = -math.inf
        self.policy: GuardPolicy | None = None

    def current(self) -> GuardPolicy | None:
        """The latest valid copy; None while there has been none. It costs a look at the clock, and a `stat` now and then."""
        now = time.monotonic()
        if now - self._read_at >= REREAD_S or self.policy is None:
            self._read_at = now
            self._read()
        return self.policy

    def _read(self) -> None:
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size, found.st_ino)
            if seen == self._seen:
                return
            policy = msgspec.json.decode(self._path.read_bytes(), type=GuardPolicy)
            self._seen = seen
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return
        if self.policy is None or policy.issued >= self.policy.issued:
            self.policy = policy
