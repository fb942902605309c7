"""What goes into a decision and what comes out: plain frozen data, so that any decision can be stored and replayed."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

import msgspec

from router.identity.priority import NORMAL
from router.placement.targets import Target, Work
from router.policy import KeyGrant
from router.residency.label import Label


class Verdict(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    ELIGIBLE = "eligible"
    SCREENED = "screened"


class Complexity(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What complexity found: the tier it asks for, a score 0..1 (or an expected gain), and the reasons in words.

    `model` is preferred among those that may serve ("" none): a rule's or a domain's. It widens nothing.
    """

    tier: str
    score: float
    reasons: tuple[str, ...] = ()
    model: str = ""
    pinned: bool = False
    """A rule of the operator's named the tier or the model: no cascade or experiment moves it."""
    context: str = ""
    """What feedback on the answer is filed under: domain and expected gain in steps; "" where nothing is learnt."""
    propensity: float = 1.0
    """With which probability this tier was drawn, where chance had a part in it."""
    trial: str = ""
    """The experiment whose setting decided."""


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What is known of a request, without its content.

    `label` is the effective label; `excluded` holds incarnations that were already tried. `prompt_bytes` is the size of its
    text, `prompt_tokens` an estimate, `max_tokens` what all its answers may have together, 0 when the client set no bound,
    `timeout_s` what is left of its deadline (0: none).
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
    waited_s: float = 0.0
    """Seconds the request has been held already; they count against its limit."""
    priority: int = NORMAL
    """Its class where requests wait; 0 goes first (`router.identity.priority`)."""


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
    work: Work | None = None
    """What to book; None for a target outside."""


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why nothing serves the request: a code of the public contract, its HTTP status, and when to try again."""

    code: str
    status: int
    message: str
    retry_after_s: float | None = None


class Basis(Protocol):
    """What a decision was made from, kept so that its candidates can be told when somebody asks."""

    def candidates(self, decision: Decision) -> tuple[Candidate, ...]:
        """Every target with what the decision thought of it; pure, the same at every call."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The outcome. `saturated`: the local targets of this label and these models count as saturated from now on.

    `late`: the chosen target is not expected to keep the limits. Held back for a while, the request may fare better.
    """

    chosen: Choice | None
    refusal: Refusal | None
    models: tuple[str, ...]
    saturated: bool
    late: bool = False
    basis: Basis | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every target with its reason: made when asked for, because most decisions are never asked."""
        return () if self.basis is None else self.basis.candidates(self)
