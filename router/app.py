"""The front door: the model operations are answered by the protocol itself, everything else is FastAPI.

Two applications: `public_app` for the port clients use, and `admin_app` for a loopback listener.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from router.config import AUTO
from router.explain import describe_cluster, explain_request
from router.feedback import MAX_BODY, rating_of, take_feedback
from router.handler import ModelHandler, RecordingHandler, identify
from router.placement.targets import Endpoint
from router.policy import KeyGrant, Policy
from router.refusal import log_unexpected
from router.state import RouterState
from router.wire.direct import DirectHandler
from router.wire.errors import ApiError, error_headers, invalid_request
from router.wire.host_name import is_loopback, is_own_name
from router.wire.request import ClientLeft, Receive, Scope, Send, read_body, request_id_of

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def model_operations(state: RouterState) -> dict[bytes, DirectHandler]:
    """The hot paths, exact; authentication is bound to the handler, never to a path pattern."""
    handler, recordings = ModelHandler(state), RecordingHandler(state)
    return {endpoint.value.encode(): recordings if endpoint is Endpoint.TRANSCRIPTIONS else handler for endpoint in Endpoint}


class Discreet:
    """An application whose unexpected errors are logged without their text, which the server would print and which could
    quote a request."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run it; an error that reaches this place has been answered, or breaks the connection."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            log_unexpected(error, request_id_of(scope["headers"]))


def _json(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(data), status, headers, "application/json")


def _peer(request: Request) -> str | None:
    """The address of the connection's other end."""
    return None if request.client is None else request.client.host


def _only_by_address(request: Request) -> None:
    if not is_own_name(request.headers.get("host", "")):
        raise invalid_request("This listener is for its own machine: ask for it by address, or as `localhost`.")


def _new_fastapi(title: str, *checks: Callable[[Request], None]) -> FastAPI:
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(check) for check in checks])

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        messages = {404: f"There is nothing at {request.method} {request.url.path}.", 405: "Method not allowed here."}
        message = messages.get(error.status_code, str(error.detail))
        allow = (error.headers or {}).get("Allow", "")
        return _as_response(request, ApiError(error.status_code, "invalid_request", message, allow=allow))

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> Response:
        return _as_response(request, error)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, _error: Exception) -> Response:
        message = "The router failed; its log says where."
        return _as_response(request, ApiError(500, "internal_error", message))

    return app


def _as_response(request: Request, error: ApiError) -> Response:
    response = Response(error.body(request.url.path), error.status)
    response.raw_headers += error_headers(error, request_id_of(request.scope["headers"]))
    return response


def _add_health(app: FastAPI, state: RouterState) -> None:
    @app.api_route("/healthz", methods=["GET", "HEAD"])  # load balancers ask with either
    async def healthz() -> Response:
        return _json({"status": "ok", "router": state.router_id})

    @app.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        status = "draining" if state.draining else "ready" if state.ready else "no target is up yet"
        detail = {"status": status, "router": state.router_id, "epoch": state.policy.epoch}
        if state.policy_alert:
            detail["policy"] = "the latest policy was refused; this router goes on under the one before"
        return _json(detail, 200 if state.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        # Scrapers keep connections, and routers may share the port: the next scrape is another's turn.
        return Response(state.metrics.render(), media_type=PROMETHEUS, headers={"connection": "close"})


def _add_explain(app: FastAPI, state: RouterState) -> None:
    @app.post("/tidegate/v1/explain")
    async def explain(request: Request) -> Response:
        # Before the body: nobody without a key gets us to keep one.
        grant, _, _ = identify(state, request.scope["headers"], _peer(request))
        limit = state.config.max_body_bytes
        try:
            limit = min(limit, grant.max_body_bytes or limit)
            body = await read_body(request.scope, request.receive, limit, state.bodies, grant.id)
        except ClientLeft:
            return Response(status_code=499)
        request_id = request_id_of(request.scope["headers"])
        return _json(
            await explain_request(state, request.scope["headers"], body, request_id, _peer(request)),
            headers={"x-request-id": request_id},
        )


def _add_feedback(app: FastAPI, state: RouterState) -> None:
    @app.post("/tidegate/v1/feedback")
    async def feedback(request: Request) -> Response:
        try:
            grant, _, _ = identify(state, request.scope["headers"], _peer(request))
            body = await read_body(request.scope, request.receive, MAX_BODY, state.bodies, grant.id)
        except ClientLeft:
            return Response(status_code=499)
        return _json(await take_feedback(state, grant, rating_of(body)))


async def _receipt(state: RouterState, request_id: str) -> dict[str, Any]:
    found = state.receipts.find(request_id)
    if found is None and state.find_elsewhere is not None:
        found = await state.find_elsewhere(request_id)
    if found is None:
        raise ApiError(404, "invalid_request", "There is no receipt with this request id (any more).")
    return found


def public_app(state: RouterState) -> FastAPI:
    """The application behind the public port, beside `model_operations`."""
    app = _new_fastapi("tidegate")
    started = int(time.time())
    _add_health(app, state)
    _add_explain(app, state)
    _add_feedback(app, state)

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        grant, _, _ = identify(state, request.scope["headers"], _peer(request))
        data = [_model_card(name, started, state.policy) for name in visible_models(state.policy, grant)]
        return _json({"object": "list", "data": data})

    @app.get("/v1/models/{model:path}")
    async def model(request: Request, model: str) -> Response:
        grant, _, _ = identify(state, request.scope["headers"], _peer(request))
        if model not in visible_models(state.policy, grant):
            raise ApiError(404, "model_not_found", "This model does not exist or this key may not use it.")
        return _json(_model_card(model, started, state.policy))

    @app.api_route("/v1/responses/{rest:path}", methods=["GET", "POST", "DELETE"])
    async def stored_response(request: Request, rest: str) -> Response:
        identify(state, request.scope["headers"], _peer(request))
        raise ApiError(404, "invalid_request", "Responses are not stored here: none can be read, cancelled or deleted.")

    @app.get("/tidegate/v1/receipts/{request_id}")
    async def receipt(request: Request, request_id: str) -> Response:
        grant, _, _ = identify(state, request.scope["headers"], _peer(request))
        found = await _receipt(state, request_id)
        if (found["key"], found["tenant"]) != (grant.id, grant.tenant):  # a stored key may have a configured one's id
            raise ApiError(404, "invalid_request", "There is no receipt with this request id (any more).")
        return _json(found)

    return app


def visible_models(policy: Policy, grant: KeyGrant) -> list[str]:
    """Names a key may put into `model`: `auto`, tiers with a model it may use, and model ids."""
    ids = [model for model in sorted(policy.models) if grant.models is None or model in grant.models]
    tiers = [tier for tier in policy.tiers if set(policy.tier_models.get(tier, ())) & set(ids)]
    return [AUTO, *tiers, *ids] if tiers else ids


def _model_card(name: str, created: int, policy: Policy) -> dict[str, Any]:
    """As OpenAI has it; an adapter names its base model, as vLLM's list does."""
    card = {"id": name, "object": "model", "created": created, "owned_by": "tidegate"}
    return {**card, "parent": policy.adapters[name]} if name in policy.adapters else card


def admin_app(state: RouterState) -> FastAPI:
    """The application behind the loopback listener: cluster state, all receipts, explain, metrics."""
    checks = (_only_by_address,) if is_loopback(state.config.admin.host) else ()
    app = _new_fastapi("tidegate admin", *checks)
    _add_health(app, state)
    _add_explain(app, state)

    @app.get("/tidegate/v1/cluster")
    async def cluster() -> Response:
        return _json(describe_cluster(state))

    @app.get("/tidegate/v1/receipts/{request_id}")
    async def receipt(request_id: str) -> Response:
        return _json(await _receipt(state, request_id))

    return app
