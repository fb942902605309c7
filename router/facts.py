"""From a parsed request to facts: what the decision needs, and nothing of what the request says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from router.complexity.books import ComplexityBooks
from router.complexity.choose import Asker, Plan
from router.complexity.experiment import assign, unit_of
from router.complexity.rule import judge
from router.config import AUTO
from router.decision import Complexity, Facts
from router.identity.limits import UNBOUNDED_ANSWER_TOKENS
from router.identity.priority import NORMAL
from router.placement.targets import Endpoint
from router.policy import KeyGrant, Policy
from router.prompt_size import BYTES_PER_TOKEN, prompt_bytes
from router.residency.engines_own import refuse_engines_own
from router.residency.label import Label
from router.wire.errors import ApiError, invalid_request

LONGEST_MODEL = 256
_BOUNDS: Mapping[str, tuple[str, ...]] = {
    Endpoint.CHAT: ("max_completion_tokens", "max_tokens"),
    Endpoint.RESPONSES: ("max_output_tokens",),
}
_BOUND = ("max_tokens",)
_ANSWERS = ("n", "best_of")
_LISTS = ("messages", "prompt", "input")
MOST_TURNS = 65_536
"""Messages, or texts, of one request: the hashes of its conversation take the router's loop 2 us for each."""
_LARGEST, _MOST_TOKENS = 1 << 30, 1 << 40
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NOT_ASKED = Complexity(tier="", score=0.0, reasons=("the client named a model or tier",))


def gather_facts(
    request_id: str,
    grant: KeyGrant,
    endpoint: str,
    body: dict[str, Any],
    label: Label,
    policy: Policy,
    timeout_s: float = 0.0,
    books: ComplexityBooks | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
    priority: int = NORMAL,
) -> Facts:
    """Facts of one request.

    Args:
        request_id: the id the receipt is found by.
        grant: what the key may do.
        endpoint: one of `Endpoint`.
        body: the parsed request.
        label: the effective label.
        policy: the compiled configuration.
        timeout_s: seconds the whole request may take, 0 for no limit.
        books: what is remembered for the choice of tiers; without it every request is judged as the first.
        headers: the request's headers that complexity rules name, in lower case.
        priority: its class; 0 goes first.

    Raises:
        ApiError: 400 when `model` is missing, `model`, `stream` or `include_usage` is of the wrong type, a stored response is
            asked for, there are more than `MOST_TURNS` messages or texts, or the body says what is not a client's to say to an
            engine; 404 for a `model` that is no name of the configuration: receipts and the audit log would keep a client's own
            words.
    """
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid_request("`model` is missing: name a model, a tier, or `auto`.", param="model")
    if model not in policy.names:
        shown = f"The model `{model}` does not" if len(model) <= LONGEST_MODEL and model.isprintable() else "No such model does"
        raise ApiError(404, "model_not_found", f"{shown} exist or this key may not use it.", param="model")
    if not isinstance(body.get("stream", False), bool | None):
        raise invalid_request("`stream` must be true or false.", param="stream")
    options = body.get("stream_options")
    if isinstance(options, dict) and not isinstance(options.get("include_usage"), bool | None):
        raise invalid_request("`stream_options.include_usage` must be true or false.", param="stream_options")
    if endpoint == Endpoint.RESPONSES:
        _refuse_stored(body)
    refuse_engines_own(body)
    _refuse_many(body)
    size = prompt_bytes(endpoint, body)
    prompt_tokens = size // BYTES_PER_TOKEN + 1
    complexity = judge_complexity(body, prompt_tokens, policy, grant, books, headers, request_id) if model == AUTO else _NOT_ASKED
    return Facts(
        request_id=request_id,
        key=grant,
        endpoint=endpoint,
        model=model,
        label=label,
        complexity=complexity,
        prompt_bytes=size,
        prompt_tokens=prompt_tokens,
        max_tokens=_max_tokens(endpoint, body),
        timeout_s=timeout_s,
        priority=priority,
    )


def _refuse_many(body: dict[str, Any]) -> None:
    """A list of token ids is one text, however long."""
    for name in _LISTS:
        turns = body.get(name)
        if type(turns) is list and len(turns) > MOST_TURNS and set(map(type, turns)) != {int}:
            raise invalid_request(f"`{name}` has more than {MOST_TURNS} entries.", param=name)


def judge_complexity(
    body: dict[str, Any],
    prompt_tokens: int,
    policy: Policy,
    grant: KeyGrant | None = None,
    books: ComplexityBooks | None = None,
    headers: Mapping[str, str] = NO_HEADERS,
    request_id: str = "",
) -> Complexity:
    """What complexity asks for under this policy: the plan's rules and gain, or the first, readable rule."""
    if policy.branches:
        branch, _ = assign(policy.branches, unit_of(body, grant.id if grant else "", request_id))
        if branch is not None:
            found = judge_by(branch.plan or policy.plan, body, prompt_tokens, policy, grant, books, headers)
            return found if found.pinned else replace(found, trial=branch.trial.name)
    return judge_by(policy.plan, body, prompt_tokens, policy, grant, books, headers)


def judge_by(
    plan: Plan | None,
    body: dict[str, Any],
    prompt_tokens: int,
    policy: Policy,
    grant: KeyGrant | None,
    books: ComplexityBooks | None,
    headers: Mapping[str, str],
) -> Complexity:
    """As `judge_complexity`, by this plan."""
    if plan is None:
        return judge(body, prompt_tokens, policy.tiers, policy.score_threshold, policy.large_above_tokens)
    asker = Asker(grant.id if grant else "", grant.tenant if grant else "", time.time(), dict(headers))
    found = (books or ComplexityBooks()).judge(body, prompt_tokens, plan, asker)
    if found.tier:
        gain, pinned = round(found.gain, 4), bool(found.rule)
        return Complexity(found.tier, gain, found.reasons, found.model, pinned, found.context, found.propensity)
    simple = judge(body, prompt_tokens, policy.tiers, policy.score_threshold, policy.large_above_tokens)
    return Complexity(simple.tier, simple.score, (*simple.reasons, *found.reasons), found.model)


def _refuse_stored(body: dict[str, Any]) -> None:
    """An engine keeps responses for whoever knows an id, on one replica, under nobody's label: so none is ever asked for."""
    for name in ("previous_response_id", "conversation", "background"):
        if body.get(name):
            raise invalid_request(f"`{name}` needs a stored response, and none is kept: send the whole `input`.", param=name)


def _max_tokens(endpoint: str, body: dict[str, Any]) -> int:
    """The most tokens that all answers to a request may have together, 0 where it sets no bound to its one answer.

    Only a bound that engines read at this endpoint counts, and the larger one of two: a small one that means nothing would have
    the client's limits reserve next to nothing.
    """
    bound, answers = 0, 1
    for name in _BOUNDS.get(endpoint, _BOUND):
        if name in body:
            bound = max(bound, _whole(body[name]))
    for name in _ANSWERS:
        if name in body:
            answers = max(answers, _whole(body[name]))
    if endpoint == Endpoint.COMPLETIONS:
        prompt = body.get("prompt")
        if type(prompt) is list and prompt and type(prompt[0]) in (str, list):
            answers *= len(prompt)
    return bound if answers == 1 else min((bound or UNBOUNDED_ANSWER_TOKENS) * answers, _MOST_TOKENS)


def _whole(value: Any) -> int:
    """A count of the body as an engine may read it, 0 for what bounds nothing or no engine takes: vLLM reads `"90"` as 90."""
    if type(value) is int and 0 < value < _LARGEST:  # as nearly always
        return value
    try:
        number = float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0 if isinstance(value, str) else _LARGEST
    return int(min(number, _LARGEST)) if number > 0 else 0
