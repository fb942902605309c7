"""Targets that are two engines: one computes a long prompt, the other takes its keys and values over and answers.

The half for prompts is asked first, for one token, with the `kv_transfer_params` that have vLLM's connectors (NIXL and its
like) keep what was computed; what it says of that goes to the answering half in the same field. Nothing else of the first
answer is used. Where the first half fails or says nothing, the answering half computes the prompt itself, and the first is left
alone for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.decision import Choice
from router.placement.targets import Endpoint, Prefill
from router.state import RouterState
from router.upstream_request import body_of, half_request
from router.wire.direct import DirectRequest
from router.wire.exchange import Ending, Exchange

_REST_S = 5.0
"""How long the half for prompts is left alone after it failed."""
_KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What tells vLLM to keep a prompt's keys and values for another engine (vLLM, `docs/features/nixl_connector_usage.md`)."""
_NOT_FOR_A_TOKEN = ("stream", "stream_options", "max_completion_tokens", "min_tokens", "kv_transfer_params")
_SEVERAL, _WHOLE_PROMPT = ("n", "best_of"), ("use_beam_search", "echo", "prompt_logprobs")


def wants_prefill(state: RouterState, half: Prefill, admitted: AdmittedRequest, choice: Choice) -> bool:
    """Whether a request's prompt is worth the trouble and of a kind that can be handed over, and its half has not just failed."""
    work, parsed = choice.work, admitted.parsed
    tokens = admitted.facts.prompt_tokens if work is None else work.prompt_tokens - work.cached_tokens
    if state.resting_halves.get(choice.target.incarnation, 0.0) > state.pool.now():
        return False
    if tokens < half.min_tokens or admitted.path not in (Endpoint.CHAT, Endpoint.COMPLETIONS) or admitted.form is not None:
        return False
    if any(parsed.get(name) not in (None, 1) for name in _SEVERAL) or any(parsed.get(name) for name in _WHOLE_PROMPT):
        return False
    prompt = parsed.get("prompt", "")
    return isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(token, int) for token in prompt))


class Prefilling:
    """One prompt at the first half of a pair: the `ExchangeHandler` of that exchange.

    Args:
        state: the router.
        admitted: the request.
        choice: the pair.
        request: what the answering half would be sent, had it to compute the prompt.
        over: told, once, that it ended; `outcome` says what comes next.
    """

    def __init__(
        self,
        state: RouterState,
        admitted: AdmittedRequest,
        choice: Choice,
        request: bytes,
        over: Callable[[Prefilling, Exchange, Ending], None],
    ) -> None:
        self._state = state
        self._admitted = admitted
        self._choice = choice
        self._request = request
        self._body = body_of(request)
        self._over = over
        self._began = state.pool.now()

    def start(self, half: Prefill, client: DirectRequest) -> None:
        """Ask for the prompt. Whatever becomes of it, `over` is told."""
        state, admitted, choice = self._state, self._admitted, self._choice
        asked = {name: value for name, value in self._body.items() if name not in _NOT_FOR_A_TOKEN}
        asked |= {"stream": False, "max_tokens": 1, "kv_transfer_params": _KEEP}
        request = half_request(state, admitted, choice, half.address, asked)
        timeouts = state.config.timeouts
        exchange = Exchange(client, self, request, self._began, timeouts.first_byte_s, timeouts.idle_s, admitted.deadline)
        admitted.ticket.begin(choice.target, choice.model, exchange)
        state.pool.send(name_of_half(choice.target.incarnation), half.address, exchange)

    def on_head(self, exchange: Exchange) -> bytes | None:
        """See `ExchangeHandler`: nothing of it is the client's."""
        return None

    def on_first_body(self, exchange: Exchange) -> None:
        """See `ExchangeHandler`."""

    def finishes(self) -> bool:
        """See `ExchangeHandler`: one token is nobody's answer."""
        return False

    def on_end(self, exchange: Exchange, ending: Ending) -> None:
        """See `ExchangeHandler`."""
        self._admitted.ticket.end()
        self._over(self, exchange, ending)

    def outcome(self, exchange: Exchange, ending: Ending) -> tuple[Choice, bytes]:
        """The choice with a reason that says how it went, and the request for the answering half."""
        state, choice, request = self._state, self._choice, self._request
        kept = read_kept(exchange) if ending is Ending.HELD else None
        state.metrics.prefilled(choice.target.id, taken_over=kept is not None)
        took = f"{(state.pool.now() - self._began) * 1e3:.0f} ms"
        if kept is not None:
            remark = f"prompt computed by the other half in {took}"
            body = {**self._body, "kv_transfer_params": kept}
            request = half_request(state, self._admitted, choice, choice.target.address, body)
        else:
            remark = f"the half for prompts failed after {took}"
            if not 400 <= exchange.status < 500:
                state.resting_halves[choice.target.incarnation] = state.pool.now() + _REST_S
        return replace(choice, reason=f"{choice.reason}; {remark}"), request


def read_kept(exchange: Exchange) -> dict[str, Any] | None:
    """What an answer says of the keys and values that are kept for the other half; None when it says nothing."""
    if exchange.status != 200:
        return None
    try:
        answer = msgspec.json.decode(bytes(exchange.held))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    kept = answer.get("kv_transfer_params") if isinstance(answer, dict) else None
    return kept if isinstance(kept, dict) and kept else None


def name_of_half(incarnation: str) -> str:
    """What the connections to the half for prompts are kept under."""
    return f"{incarnation} prompts"
