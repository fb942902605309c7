"""The pass and the guard: nobody enters a target without a signed, short-lived statement of why they may.

The router issues a pass for one request, one label and one incarnation of one target; the guard in front of that target
checks it before a byte of the body is read, on the connection that carries the body. Keys are derived per incarnation
(HMAC-SHA256, RFC 2104, of a cluster secret), so an engine holds only its own key and cannot enter another one.

`EngineGuard` is the ASGI middleware that `vllm serve --middleware router.residency.guard.EngineGuard` loads into vLLM's own
process. It imports nothing but the standard library, msgspec and this package.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

PASS_HEADER = "x-tidegate-pass"  # noqa: S105 - the name of a header
PASS_LIFETIME_S = 60.0
ENV_KEY = "TIDEGATE_GUARD_KEY"
ENV_INCARNATION = "TIDEGATE_GUARD_INCARNATION"
ENV_PLACE = "TIDEGATE_GUARD_PLACE"

_VERSION = "1"
_FORBIDDEN_IN_FIELD = frozenset("|\r\n")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class PassRefused(Exception):
    """The pass does not open this door. The text is safe to show: it names no label and no other target."""


class Place(msgspec.Struct, frozen=True, gc=False):
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


class Pass(msgspec.Struct, frozen=True, gc=False):
    """One permission to enter: `label_text` as `Place.to_text` writes it, `expires` a UNIX time in seconds."""

    request_id: str
    incarnation: str
    epoch: str
    label_text: str
    expires: float


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
    if len(parts) != 7 or parts[0] != _VERSION:
        raise PassRefused("malformed pass")
    body, _, mac = token.rpartition("|")
    if not hmac.compare_digest(mac.encode("utf-8", "replace"), _mac(key, body, method, path).encode()):
        raise PassRefused("pass signature does not fit this target and path")
    try:
        permission = Pass(parts[1], parts[2], parts[3], parts[4], float(parts[5]))
        label = Place.from_text(permission.label_text)
    except ValueError:
        raise PassRefused("malformed pass") from None
    if permission.incarnation != incarnation:
        raise PassRefused("pass is for another incarnation")
    if not now < permission.expires <= now + 2 * PASS_LIFETIME_S:
        raise PassRefused("pass has expired, or the clocks of router and target differ by over a minute")
    if not place.is_allowed_by(label):
        raise PassRefused("the label of this request does not admit this place")
    return permission


def _serialise(permission: Pass) -> str:
    fields = (permission.request_id, permission.incarnation, permission.epoch, permission.label_text)
    for field in fields:
        if not _FORBIDDEN_IN_FIELD.isdisjoint(field):
            raise ValueError("a pass field contains a separator")
    return "|".join((_VERSION, *fields, f"{permission.expires:.3f}"))


def _mac(key: bytes, body: str, method: str, path: str) -> str:
    return hmac.digest(key, f"{body}\n{method} {path}".encode("utf-8", "surrogateescape"), "sha256").hex()


class EngineGuard:
    """ASGI middleware: every HTTP path of the wrapped application needs a pass; websockets are refused.

    The key, the incarnation and the place come from the environment (`ENV_KEY` in hex, `ENV_INCARNATION`, `ENV_PLACE`),
    because vLLM constructs middleware without arguments. A guard that cannot read them refuses to start: a door without
    a lock must not open.
    """

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        try:
            self._key = bytes.fromhex(os.environ[ENV_KEY])
            self._incarnation = os.environ[ENV_INCARNATION]
            self._place = Place.from_text(os.environ[ENV_PLACE])
        except (KeyError, ValueError) as error:
            raise RuntimeError(f"the guard has no valid {ENV_KEY}, {ENV_INCARNATION} and {ENV_PLACE}") from error
        if len(self._key) < 32:
            raise RuntimeError(f"{ENV_KEY} is shorter than 32 bytes")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 without reading its body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _send_refusal(send, refusal)

    def _refusal(self, scope: Scope) -> str | None:
        tokens = [value for name, value in scope["headers"] if name == PASS_HEADER.encode()]
        if len(tokens) != 1:
            return "this address answers only to tidegate's router"
        try:
            token = tokens[0].decode("ascii")
            check_pass(self._key, token, scope["method"], scope["path"], self._incarnation, self._place, time.time())
        except UnicodeDecodeError:
            return "malformed pass"
        except PassRefused as refused:
            return str(refused)
        return None


async def _send_refusal(send: Send, reason: str) -> None:
    error = {"message": reason, "type": "permission_error", "param": None, "code": "pass_refused"}
    body = msgspec.json.encode({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
