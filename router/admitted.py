"""A request on its way through the hot path, once it is known whose it is, what it may do and what it asks for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from router.decision import Decision, Facts
from router.ledger.receipts import Receipt
from router.placement.targets import Endpoint
from router.prefixes import NO_CHAINS
from router.residency.classify.rule import Verdict
from router.residency.conversation import NO_CONVERSATION, Conversation, read_conversation
from router.residency.declassify import Declassified
from router.residency.inflight import Ticket
from router.residency.label import Label
from router.residency.media import refuse_remote_media
from router.residency.redact import NAME
from router.wire.json_body import encode_object, wants_usage
from router.wire.multipart import Form

if TYPE_CHECKING:
    from router.ledger.capturing import Recording
    from router.policy import KeyGrant, Policy
    from router.state import RouterState

_USAGE_ENDPOINTS = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
"""Where `stream_options.include_usage` exists; the other streams carry their usage anyway."""
_STREAMING_ENDPOINTS = _USAGE_ENDPOINTS | {Endpoint.RESPONSES, Endpoint.MESSAGES}
"""Where `stream` says what kind of answer is wanted. A form's is not read."""


class Suspect(msgspec.Struct, frozen=True, gc=False):
    """A target that said that it failed, when it was asked (UNIX time in seconds), and whether it had begun to answer."""

    incarnation: str
    since: float
    begun: bool


class AdmittedRequest:
    """A request that was authenticated, labelled and parsed."""

    __slots__ = (
        "_media_under",
        "asks_usage",
        "body",
        "chains",
        "conversation",
        "countable",
        "deadline",
        "facts",
        "form",
        "headers",
        "inherited",
        "keeps_usage",
        "losses",
        "on_closed",
        "parsed",
        "path",
        "receipt",
        "recording",
        "streamed",
        "suspects",
        "ticket",
        "values",
        "voting",
    )

    def __init__(
        self,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        parsed: dict[str, Any],
        facts: Facts,
        receipt: Receipt,
        ticket: Ticket,
        conversation: Conversation,
        form: Form | None = None,
    ) -> None:
        self.path = path
        self.headers = headers
        self.body = body
        self.parsed = parsed
        self.facts = facts
        self.receipt = receipt
        self.ticket = ticket
        self.conversation = conversation
        self.form = form
        self._media_under = facts.label, receipt.epoch
        """The label, and the epoch whose names it is in, under which remote media were last looked for."""
        self.values: dict[str, str] = {}
        """What stands for what in a redacted request; empty: it goes as it came."""
        self.inherited: Label | None = None
        """What its conversation's past demands; kept where a redacted form may take the request's place."""
        self.recording: Recording | None = None
        """Keeps what is captured of it; None: nothing is."""
        self.chains = NO_CHAINS
        self.suspects: tuple[Suspect, ...] = ()
        """Targets that said that they failed: it may be the request that no engine can take."""
        self.losses = 0
        """What engines that broke under it amount to (`router.poison`)."""
        self.voting = False
        """Whether several models are to vote on its answer."""
        self.on_closed: Callable[[Receipt, Decision | None], None] | None = None
        """Set for a request of ours within a client's: its receipt is told here instead of being kept."""
        # On the clock of the event loop, which is the monotonic one.
        self.deadline = time.monotonic() + facts.timeout_s if facts.timeout_s else math.inf
        self.streamed = bool(parsed.get("stream")) if path in _STREAMING_ENDPOINTS else None
        """Whether the answer is to be a stream of events; None: that is the target's to say."""
        self.countable = bool(self.streamed) and path in _USAGE_ENDPOINTS
        self.keeps_usage = not self.countable or wants_usage(parsed)
        self.asks_usage = self.countable and not self.keeps_usage

    @property
    def request_id(self) -> str:
        """The id the receipt is found by."""
        return self.facts.request_id

    def tighten(self, verdict: Verdict, label: Label, state: RouterState) -> None:
        """Go on under the label that classification left; the receipt says what kinds of things were found, never the text.

        Args:
            verdict: what classification found.
            label: its label under the policy of now.
            state: the router.
        """
        receipt = self.receipt
        found = "+".join(verdict.kinds) + (f" unknown:{verdict.unknown}" if verdict.unknown else "")
        receipt.label_sources["classifier"] = found.strip() or "nothing found"
        ticket = self.ticket
        before = ticket.label
        ticket.tighten(label)
        if ticket.label != before:
            self.facts = replace(self.facts, label=ticket.label)
            receipt.label = state.label_text(ticket.label)
        if found:  # also where a new policy has narrowed the ticket as far in the meantime
            tenant, conversation = ticket.grant.tenant, self.conversation
            if conversation is NO_CONVERSATION:  # nothing else asked for its hashes
                conversation = read_conversation(state.lineage_key, tenant, self.path, self.parsed)
            state.lineage.record(conversation, tenant, ticket.label, state.policy, time.time())

    def declassify(self, made: Declassified, state: RouterState, policy: Policy, grant: KeyGrant) -> None:
        """Go on with the redacted request, under its own label. As it came, it is forgotten here.

        Args:
            made: the redacted request.
            state: the router.
            policy: what its label was found under; under another one the request stays as it came.
            grant: the same.
        """
        if not state.inflight.declassify(self.ticket, made.label, policy, grant):
            return
        self.parsed, self.body = made.body, encode_object(made.body)
        self.values = made.redaction.values
        self.facts = replace(self.facts, label=made.label)
        self.receipt.label = state.label_text(made.label)
        self.receipt.label_sources["redaction"] = f"{NAME}: {len(self.values)} values"

    def hold(self) -> None:
        """Another decision is due: nobody read the request, so it is held to the worst that could stand in it."""
        if self.ticket.hold():
            self.receipt.label_sources["classifier"] = "not asked: held to the strictest"

    def check_media(self, label: Label, policy: Policy) -> None:
        """Refuse remote media under a label that it was not yet looked for under: the model's, or one that narrowed.

        Raises:
            ApiError: 403.
        """
        if self._media_under != (label, policy.epoch):
            refuse_remote_media(self.parsed, label, policy)
            self._media_under = label, policy.epoch
