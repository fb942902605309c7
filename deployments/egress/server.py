"""The egress: the one process that holds cloud credentials and dials out.

It accepts a request only with a pass for the cloud target it names, decides again with its own copy of the policy whether
that target may have it, rebuilds the body from allow-listed fields, and relays the provider's answer. It follows no redirect,
trusts no proxy from the environment, and passes none of the client's headers on.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx
from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments.egress.connections import provider_transport
from deployments.egress.relay import Relay
from router.config import Config, home
from router.fixed_targets import fixed_targets, tls_files_of
from router.placement.targets import Address, Endpoint, Target
from router.policy import Policy
from router.refusal import log_unexpected
from router.residency.engine_guard import wait_for_key
from router.residency.guard import (
    NONE_STORED,
    PASS_HEADER,
    Pass,
    PassRefused,
    Place,
    StoredCeilings,
    check_pass,
    derive_target_key,
)
from router.residency.guard_copy import copy_for_guards
from router.residency.label import admits
from router.wire.errors import ApiError
from router.wire.heads import TARGET_HEADER
from router.wire.json_body import parse_object
from router.wire.tls import TlsContexts

_COMMON = frozenset({"model", "user", "seed", "stream", "stream_options", "temperature", "top_p", "max_tokens", "stop", "n"})
ALLOWED_FIELDS: Mapping[str, frozenset[str]] = {
    Endpoint.CHAT: _COMMON
    | {
        "messages",
        "max_completion_tokens",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
    },
    Endpoint.COMPLETIONS: _COMMON
    | {"prompt", "suffix", "echo", "best_of", "logprobs", "frequency_penalty", "presence_penalty", "logit_bias"},
    Endpoint.EMBEDDINGS: frozenset({"model", "input", "encoding_format", "dimensions", "user"}),
}
"""What may leave: everything else in a body (metadata, vendor extensions, internal fields) stays here."""


class EgressServer:
    """The ASGI application of the egress.

    Args:
        config: the validated configuration.
        policy: the same, compiled: the egress decides again with its own copy.
        secret: the cluster secret.
        incarnation: this egress's own incarnation, as the router knows it.
        credentials: the providers' keys by target id.
        client: the HTTP client that dials out; tests pass one with another transport.

    Raises:
        ConfigError: a file for TLS towards a cloud target cannot be used.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        secret: bytes,
        incarnation: str,
        credentials: Mapping[str, str],
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._secret = secret
        self._incarnation = incarnation
        self._credentials = credentials
        self.adopt(config, policy, 0.0)  # whatever a router hands on is later
        self._tls = TlsContexts(home())
        clouds = [(i, item) for i, item in enumerate(config.targets) if item.kind == "cloud"]
        self._own_tls = {item.id: (tls_files_of(item.tls), f"targets[{i}].tls") for i, item in clouds if item.tls is not None}
        own_clients = {name: _new_client(config, self._tls.of(*files)) for name, files in self._own_tls.items()}
        self._calls = Relay(client or _new_client(config, True), own_clients, secret)
        routes = [Route(path, self._relay, methods=["POST"]) for path in ALLOWED_FIELDS]
        self.app = Starlette(routes=[*routes, Route("/healthz", self._health, methods=["GET"])])

    def adopt(self, config: Config, policy: Policy, issued: float, stored: StoredCeilings = NONE_STORED) -> None:
        """Run under a policy, and what is known of stored keys, from now on."""
        self.config, self.policy = config, policy
        self._guard = copy_for_guards(policy, issued, stored)
        self._specs = {item.id: item for item in config.targets if item.kind == "cloud"}
        targets = fixed_targets(config, Address(), self._incarnation)
        self._targets: dict[str, Target] = {target.id: target for target in targets if target.id in self._specs}

    def learn(self, stored: StoredCeilings) -> None:
        """Take news of stored keys under the same policy."""
        self._guard = replace(self._guard, stored=stored)

    @property
    def stamp(self) -> str:
        """The epoch, and the state of the store's keys where there are any."""
        return self._guard.stamp

    @property
    def issued(self) -> float:
        """UNIX time in seconds at which that policy was issued."""
        return self._guard.issued

    def __repr__(self) -> str:
        return f"EgressServer(targets={sorted(self._targets)})"

    async def _health(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _relay(self, request: Request) -> Response:
        try:
            target_id, admitted_under = await self._admit(request), self._guard
            body = await self._rebuild(request)
            if self._guard is not admitted_under:  # while the body came
                target_id = await self._admit(request)
            if target_id in self._own_tls:
                self._tls.of(*self._own_tls[target_id])  # its client goes on with it, renewed
            return await self._calls.call(self._specs[target_id], self._credentials.get(target_id), request.url.path, body)
        except ApiError as error:
            answer = error
        except Exception as error:
            log_unexpected(error, request.headers.get("x-request-id", ""))
            answer = ApiError(500, "internal_error", "The egress failed; its log says where.")
        response = Response(answer.body(), answer.status, media_type="application/json")
        response.raw_headers += answer.headers()
        return response

    async def _admit(self, request: Request) -> str:
        """The target this request may enter, checked before its body is read."""
        target_id = request.headers.get(TARGET_HEADER, "")
        target = self._targets.get(target_id)
        if target is None:
            raise ApiError(403, "pass_refused", "this address answers only to tidegate's router")
        key = derive_target_key(self._secret, target.incarnation)
        now = time.time()
        place = self.policy.place_of(target.evidence)
        token = request.headers.get(PASS_HEADER, "")
        try:
            permission = check_pass(key, token, "POST", request.url.path, target.incarnation, place, now)
        except PassRefused as refused:
            raise ApiError(403, "pass_refused", str(refused)) from None
        await wait_for_key(lambda: self._guard, permission)
        if not self._allows(target_id, permission):
            raise ApiError(403, "pass_refused", "the egress's own policy does not allow this")
        return target_id

    def _allows(self, target_id: str, permission: Pass) -> bool:
        """What the egress's own copy of the policy says by now."""
        target, now = self._targets.get(target_id), time.time()
        if target is None or not self.policy.spill_enabled:
            return False
        if self._guard.refuses(permission, self.policy.place_of(target.evidence), now) is not None:
            return False
        return admits(self.policy.label_of(Place.from_text(permission.label_text)), target.evidence, now)

    async def _rebuild(self, request: Request) -> dict[str, Any]:
        """The fields that may leave, under the provider's own model name."""
        announced = request.headers.get("content-length", "")
        if not announced.isdigit() or int(announced) > self.config.max_body_bytes:
            raise ApiError(413, "invalid_request", "The body is too large or has no length.")
        parsed = parse_object(await request.body())
        allowed = ALLOWED_FIELDS[request.url.path]
        return {name: value for name, value in parsed.items() if name in allowed}


def _new_client(config: Config, verify: ssl.SSLContext | bool) -> httpx.AsyncClient:
    timeouts = config.timeouts
    limits = httpx.Timeout(timeouts.idle_s, connect=timeouts.connect_s * 3, read=timeouts.first_byte_s)
    return httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=limits, transport=provider_transport(verify))
