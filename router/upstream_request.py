"""What an attempt sends to its target: the client's body with as little changed as possible, under a head of our own."""

from __future__ import annotations

import json
from typing import Any

from router.admitted import AdmittedRequest
from router.decision import Choice
from router.joining import Join
from router.placement.targets import Address, Endpoint, Kind
from router.residency.admission import permission_for
from router.residency.cache_salt import SALTED, with_cache_salt
from router.residency.guard import issue_pass
from router.state import RouterState
from router.wire.continuation import ask_for_token_ids
from router.wire.heads import JSON, own_request_headers, request_head
from router.wire.json_body import ask_for_usage, encode_object, replace_model
from router.wire.trail import Trail


def upstream_request(
    state: RouterState, admitted: AdmittedRequest, choice: Choice, trail: Trail | None, join: Join | None, now: float
) -> bytes:
    """The bytes of one attempt's request.

    Args:
        state: the router.
        admitted: the client's request.
        choice: the target, and the model that is to answer.
        trail: set where the stream is recorded, so that it could be carried on.
        join: set where this attempt carries a broken stream on.
        now: UNIX time in seconds.
    """
    target, ticket = choice.target, admitted.ticket
    path, body, content_type = _body(admitted, choice, trail, join)
    if (target.salted or target.kind is Kind.REPLICA) and path in SALTED:
        salt = state.salt_for(ticket.grant.tenant, ticket.label, choice.model, admitted.parsed)
        # What carries a stream on is a body of ours; only a client's own may have a salt in it already.
        body = with_cache_salt(body, admitted.parsed if path == admitted.path else json.loads(body), salt)
    token = None
    if target.kind is not Kind.SERVER:
        label_text, epoch = state.label_text(state.policy.label_for(ticket.label, choice.model)), state.policy.epoch
        permission = permission_for(admitted.request_id, ticket, choice.model, target.incarnation, epoch, label_text, now)
        token = issue_pass(state.target_key(target.incarnation), permission, "POST", target.address.base_path + path)
    own = _own_headers(state, admitted, choice, token)
    return request_head("POST", target.address, path, admitted.headers, own, content_type, len(body)) + body


def body_of(request: bytes) -> dict[str, Any]:
    """The JSON that `upstream_request` made."""
    found: dict[str, Any] = json.loads(request[request.index(b"\r\n\r\n") :])
    return found


def half_request(state: RouterState, admitted: AdmittedRequest, choice: Choice, address: Address, body: dict[str, Any]) -> bytes:
    """The bytes of the request to one half of a pair.

    Args:
        state: the router.
        admitted: the client's request.
        choice: the pair, a `SERVER`, and the model that is to answer.
        address: where the half is.
        body: what it is asked.
    """
    own, data = _own_headers(state, admitted, choice, None), encode_object(body)
    return request_head("POST", address, admitted.path, admitted.headers, own, JSON, len(data)) + data


def _own_headers(state: RouterState, admitted: AdmittedRequest, choice: Choice, token: str | None) -> str:
    """Our headers for a target, with the pass where it has a guard and the credential where it has one."""
    secret = choice.target.secret
    return own_request_headers(admitted.request_id, choice, token, state.credential(secret) if secret else None)


def _body(admitted: AdmittedRequest, choice: Choice, trail: Trail | None, join: Join | None) -> tuple[str, bytes, bytes]:
    """Path, body and content type."""
    name = choice.target.models[choice.model]
    if admitted.form is not None:
        return admitted.path, admitted.form.with_model(name), admitted.form.content_type
    if join is not None and not join.again:
        return Endpoint.COMPLETIONS, join.body(name, choice.target.context_tokens), JSON
    body = replace_model(admitted.body, admitted.parsed, name)
    if admitted.asks_usage:
        body = ask_for_usage(body, admitted.parsed)
    if trail is not None:
        body = ask_for_token_ids(body)
    return admitted.path, body, JSON
