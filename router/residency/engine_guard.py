"""The guard in front of vLLM, in vLLM's own process: `vllm serve --middleware router.residency.engine_guard.EngineGuard`."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import msgspec

from router.residency.engine_log import keep_texts_out
from router.residency.engine_pulse import PULSE_PATH, feel_pulse
from router.residency.guard import (
    ENV_INCARNATION,
    ENV_KEY,
    ENV_PLACE,
    ENV_POLICY,
    PASS_HEADER,
    REREAD_S,
    GuardPolicy,
    Pass,
    PassRefused,
    Place,
    PolicyCopy,
    check_pass,
)

WAIT_S = 2.0
"""How long a guard waits for a copy that knows the key of a pass: a router uses a new key as soon as it knows it itself."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


async def wait_for_key(current: Callable[[], GuardPolicy | None], permission: Pass) -> None:
    """Give the guard's own copy of the policy up to `WAIT_S` to learn of a new key, which reaches routers and guards at nearly
    the same time.

    Args:
        current: gives the latest copy.
        permission: what the pass says, its signature checked: only a router can make a guard wait.
    """
    deadline = time.monotonic() + WAIT_S
    while (policy := current()) is not None and permission.key and not policy.knows(permission.key):
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(REREAD_S / 4)


class EngineGuard:
    """ASGI middleware: every HTTP path of the wrapped application needs a pass; websockets are refused.

    The key, the incarnation and the place come from the environment (`ENV_KEY` in hex, `ENV_INCARNATION`, `ENV_PLACE`),
    because vLLM constructs middleware without arguments. A guard that cannot read them refuses to start: a door without
    a lock must not open. With `ENV_POLICY` set, whatever may carry a body is also decided again under the guard's own copy
    of the policy: nobody enters before there is one, and a running answer is cut when a new one forbids it.
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
        if "vllm" in sys.modules:
            keep_texts_out()
        path = os.environ.get(ENV_POLICY, "")
        self._copy = PolicyCopy(Path(path)) if path else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403 without reading its body."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            permission = await self._admit(scope)
        except PassRefused as refused:
            await _send_refusal(send, str(refused))
            return
        if scope["method"] == "GET" and scope["path"] == PULSE_PATH:
            await send({"type": "http.response.start", "status": await feel_pulse(scope.get("app")), "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif self._copy is None or scope["method"] == "GET":
            await self._app(scope, receive, send)
        else:
            try:
                await self._app(scope, receive, self._watched(permission, self._copy, send))
            except _Revoked:
                return
            except BaseExceptionGroup as group:  # an application with tasks of its own raises in groups
                if group.split(_Revoked)[1] is not None:
                    raise

    async def _admit(self, scope: Scope) -> Pass:
        tokens = [value for name, value in scope["headers"] if name == PASS_HEADER.encode()]
        if len(tokens) != 1:
            raise PassRefused("this address answers only to tidegate's router")
        try:
            token = tokens[0].decode("ascii")
        except UnicodeDecodeError:
            raise PassRefused("malformed pass") from None
        now = time.time()
        permission = check_pass(self._key, token, scope["method"], scope["path"], self._incarnation, self._place, now)
        if self._copy is not None and scope["method"] != "GET":  # a GET carries nobody's bytes: health, metrics, models
            await wait_for_key(self._copy.current, permission)
            policy = self._copy.current()
            refusal = "the guard has no policy yet" if policy is None else policy.refuses(permission, self._place, time.time())
            if refusal is not None:
                raise PassRefused(refusal)
        return permission

    def _watched(self, permission: Pass, copy: PolicyCopy, send: Send) -> Send:
        """`send`, until a new policy forbids the answer: then the response breaks off, which no client takes for success."""
        admitted_under = copy.policy
        revoked = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal admitted_under, revoked
            policy = copy.current()
            if policy is not admitted_under and policy is not None:
                admitted_under = policy
                revoked = revoked or policy.refuses(permission, self._place, time.time()) is not None
            if revoked:
                raise _Revoked
            await send(message)

        return watched


class _Revoked(Exception):
    """A new policy forbids an answer that has begun."""


async def _send_refusal(send: Send, reason: str) -> None:
    error = {"message": reason, "type": "permission_error", "param": None, "code": "pass_refused"}
    body = msgspec.json.encode({"error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
