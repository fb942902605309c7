"""What goes into a decision and what comes out: plain frozen data, so that any decision can be stored and replayed."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from router.placement.targets import Target
from router.policy import KeyGrant
from router.residency.label import Label


class Verdict(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    ELIGIBLE = "eligible"
    SCREENED = "screened"


class Complexity(msgspec.Struct, frozen=True, gc=False):
    """What complexity found: the tier it asks for, a score 0..1 (or an expected gain), and the reasons in words.

    `model` is preferred among those that may serve ("" none): a rule's or a domain's. It widens nothing.
    """

    tier: str
    score: float
    reasons: tuple[str, ...] = ()
    model: str = ""


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request, without its content.

    `label` is the effective label; `excluded` holds incarnations that were already tried. `prompt_bytes` is the size of its
    text, `prompt_tokens` an estimate, `max_tokens` 0 when the client set no bound, `timeout_s` what is left of its deadline
    (0: none).
    """

    request_id: str
    key: KeyGrant
    endpoint: str
    model: str
    label: Label
    complexity: Complexity
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0
    excluded: frozenset[str] = frozenset()
    timeout_s: float = 0.0


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One target (for one model) and what the decision thought of it; times in milliseconds."""

    target: str
    incarnation: str
    model: str
    zone: str
    verdict: Verdict
    reason: str
    predicted_ttft_ms: float | None = None


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The target that serves the request; `index` is its place in `view.membership.targets`."""

    index: int
    target: Target
    model: str
    reason: str
    predicted_ttft_s: float
    cost_usd: float = 0.0


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why nothing serves the request: a code of the public contract, its HTTP status, and when to try again."""

    code: str
    status: int
    message: str
    retry_after_s: float | None = None


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The outcome. `saturated`: the local targets of this label and these models count as saturated from now on."""

    chosen: Choice | None
    refusal: Refusal | None
    candidates: tuple[Candidate, ...]
    models: tuple[str, ...]
    saturated: bool
