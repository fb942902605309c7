"""Requests of ours within a client's request: each is served like any other, but answered into our hands.

A cascade, a vote or a shadow asks several models for one client. Each of these steps is a `Serving` of its own: `decide`, label,
pass, retries, reservation and booking are those of any request, and a ticket of its own is cut when the policy tightens. Only
the client is not one: a `DirectRequest` whose connection ends here. The client's request gets one receipt over all steps.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol, cast

from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.captured import end_capture
from router.decision import Decision, Facts
from router.identity.books import Reservation
from router.identity.limit import Kind
from router.ledger.receipts import CACHE_HIT, CACHE_MISS, Receipt, StepRecord
from router.refusal import refuse
from router.residency.classify.rule import distinct_evidence, needed
from router.residency.label import Label
from router.serving import Serving
from router.state import RouterState
from router.wire.bodies import Bodies
from router.wire.direct import ClientListener, DirectRequest
from router.wire.errors import ApiError
from router.wire.json_body import encode_object

BROKE_OFF = "The target failed in the middle of the answer."
MAX_CAPTIVE_BODY = 32 * 1024 * 1024
"""A step with a longer answer is cut: nobody waits for it to be looked at."""
_OWN_FRAMING = (b"connection:", b"content-length:", b"transfer-encoding:")
_REASON = b"x-tidegate-reason: "


class StepOwner(Protocol):
    """Who asked for a step. No method may raise; `step_over` is called once."""

    def step_data(self, step: Step, data: bytes) -> None:
        """A piece of the answer's body; the head is known."""

    def step_over(self, step: Step) -> None:
        """No more bytes will come; `step.whole` says whether that was the end of the answer."""


class _Flow:
    write_paused = False


class _NoSocket:
    def setsockopt(self, *_: Any) -> None:
        """There is nothing to reset."""


class _Captive:
    """Stands where a client's protocol and transport stand: bytes written to it go to the step."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self.transport = self
        self.listener: Any = None
        self.flow = _Flow()
        self._closing = False

    def write(self, data: bytes) -> None:
        """See `asyncio.Transport`."""
        self._step.take(bytes(data))

    def is_closing(self) -> bool:
        """See `asyncio.Transport`."""
        return self._closing

    def close(self) -> None:
        """See `asyncio.Transport`."""
        self._closing = True

    def abort(self) -> None:
        """See `asyncio.Transport`."""
        self._closing = True
        self._step.end(whole=False)

    def get_extra_info(self, _name: str) -> _NoSocket:
        """See `asyncio.Transport`."""
        return _NoSocket()

    def on_response_complete(self) -> None:
        """See `RelayProtocol`."""
        self._step.end(whole=True)


class _NoHandler:
    max_body_bytes = 0
    bodies = Bodies(0)

    def open(self, request: DirectRequest) -> None:
        """Never called: nothing arrives on a captive connection."""

    def run(self, request: DirectRequest) -> None:
        """Never called."""


class Step:
    """One inner request.

    Attributes:
        name: what it is for, as the receipt says it.
        status: of the answer, 0 before its head.
        head: its header lines, without framing.
        body: what has come, where the owner keeps it.
        whole: whether the answer ended as answers end.
    """

    def __init__(self, name: str, owner: StepOwner, path: str) -> None:
        self.name = name
        self.status = 0
        self.head: list[bytes] = []
        self.body = bytearray()
        self.over = False
        self.whole = False
        self.verdict = ""
        self.confidence = -1.0
        self.seen_tokens = 0
        """Tokens of the answer that had come when it was cut, where the owner counts them."""
        self.receipt: Receipt | None = None
        """Set when the step's accounts are closed."""
        self.decision: Decision | None = None
        self._owner = owner
        self._raw = b""
        self._captive = _Captive(self)
        self.client = DirectRequest(
            cast(Any, self._captive), _NoHandler(), "POST", path, [], keep_alive=False, speaks_chunked=False, expects_100=False
        )

    def __repr__(self) -> str:
        return f"Step({self.name!r}, status={self.status}, over={self.over})"

    @property
    def model(self) -> str:
        """The model that answers, "" before that is known."""
        return self.header(b"x-tidegate-model: ")

    @property
    def broken(self) -> bool:
        """Whether an answer that is over did not end as answers end; that of a stream may have been told in an event."""
        return not self.whole or (self.status == 200 and self.receipt is not None and bool(self.receipt.code))

    @property
    def is_stream(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.header(b"content-type: ").lower().startswith("text/event-stream")

    def header(self, prefix: bytes) -> str:
        """The value of a header line that begins so, "" without one."""
        return next((line[len(prefix) :].decode("latin-1") for line in self.head if line.lower().startswith(prefix)), "")

    def lines(self, remark: str) -> bytes:
        """The header lines for the client, with a remark added to the reason."""
        added = b"; " + remark.encode("ascii", "replace") if remark else b""
        return b"".join(line + (added if line.startswith(_REASON) else b"") + b"\r\n" for line in self.head)

    def take(self, data: bytes) -> None:
        """Bytes of the answer, head first."""
        if self.over:
            return
        if not self.status:
            self._raw += data
            head, found, data = self._raw.partition(b"\r\n\r\n")
            if not found:
                return
            first, *lines = head.split(b"\r\n")
            self.status = int(first[9:12])
            self.head = [line for line in lines if not line.lower().startswith(_OWN_FRAMING)]
            self._raw = b""
        self._owner.step_data(self, data)

    def keep(self, data: bytes) -> bool:
        """Add to the body; False where it is too much, and the step is cut."""
        self.body += data
        if len(self.body) <= MAX_CAPTIVE_BODY:
            return True
        # Not at once: the exchange is in the middle of handing us these bytes.
        asyncio.get_running_loop().call_soon(self.cancel)
        self.end(whole=False)
        return False

    def end(self, *, whole: bool) -> None:
        """No more bytes."""
        if not self.over:
            self.over, self.whole = True, whole
            self._owner.step_over(self)

    def cancel(self) -> None:
        """Nobody wants the answer any more: the engine stops at once, and what it made is counted."""
        self.over = True
        self.client.disconnected = True
        listener, self._captive.listener = self._captive.listener, None
        if listener is not None:
            listener.client_gone()

    def pause(self) -> None:
        """Read no further for the moment."""
        if self._captive.listener is not None:
            self._captive.listener.client_paused()

    def resume(self) -> None:
        """Read on."""
        if self._captive.listener is not None:
            self._captive.listener.client_resumed()


class Steps:
    """All steps of one client's request, and their one receipt.

    Args:
        state: the router.
        admitted: the client's request.
        mode: why there are steps, for the receipt.
    """

    def __init__(self, state: RouterState, admitted: AdmittedRequest, mode: str) -> None:
        self._state = state
        self._admitted = admitted
        self._mode = mode
        self._steps: list[Step] = []
        self._answering: Step | None = None
        self._answered = False
        self._closed = False

    @property
    def all(self) -> tuple[Step, ...]:
        """Every step so far, in the order of their beginning."""
        return tuple(self._steps)

    def attend(self, client: DirectRequest, listener: ClientListener, reserved: Reservation) -> bool:
        """Hear what happens to the client's connection; False when it is gone already, and what was reserved is given back."""
        client.listen(listener)
        if client.gone:
            self.give_back(reserved)
        return not client.gone

    def start(self, step: Step, facts: Facts, changes: dict[str, Any], reserved: Reservation) -> None:
        """Serve a step: the client's request with other facts and some fields changed.

        Args:
            step: gets the answer.
            facts: what `decide` goes by; the label is the request's own whatever they say.
            changes: fields of the body that this step has different.
            reserved: what it took of the limits; settled when it ends.
        """
        state, base = self._state, self._admitted
        parsed, body = {**base.parsed, **changes}, base.body
        if changes:
            body = encode_object(parsed)
        held = base.ticket
        if held.unread is not None and _must_be_read(state, held.label):
            base.hold()  # a target has come for which somebody would have had to read the request
        ticket = state.inflight.enter(held.grant, held.tags, held.label)
        ticket.declassified, ticket.revoked, ticket.unread = held.declassified, held.revoked, held.unread
        if facts.timeout_s:
            facts = replace(facts, timeout_s=max(0.001, base.deadline - time.monotonic()))
        receipt = replace(base.receipt, attempts=[], received=time.time())
        admitted = AdmittedRequest(base.path, base.headers, body, parsed, facts, receipt, ticket, base.conversation)
        admitted.values, admitted.deadline = base.values, base.deadline
        admitted.on_closed = lambda closed, decision: self._step_closed(step, closed, decision)
        self._steps.append(step)
        Serving(state, admitted, step.client, reserved).start()

    def reserve(self, first: Reservation) -> Reservation:
        """What another step may use; it is no request of its own, so only tokens and money are taken.

        Raises:
            LimitReached: the key or its tenant has not enough left.
        """
        facts = self._admitted.facts
        limits = tuple(limit for limit in facts.key.limits if limit.kind in (Kind.TOKENS, Kind.USD))
        return replace(self._state.reserve(limits, facts), headers=first.headers)

    def reserve_more(self, first: Reservation, count: int) -> list[Reservation]:
        """The same for so many further steps: all of them, or nothing is taken.

        Raises:
            LimitReached: the key or its tenant has not enough left for all.
        """
        taken: list[Reservation] = []
        try:
            for _ in range(count):
                taken.append(self.reserve(first))
        except ApiError:
            for reserved in taken:
                self.give_back(reserved)
            raise
        return taken

    def give_back(self, reserved: Reservation) -> None:
        """A reservation that no step used."""
        self._state.limits.give_back(reserved)

    def answered(self, step: Step | None) -> None:
        """The client has its answer, from this step, or none; the receipt follows when all steps are closed."""
        self._answering, self._answered = step, True
        for other in self._steps:
            if other is not step:
                other.cancel()
        self._close_when_done()

    def refuse(self, client: DirectRequest, error: ApiError) -> None:
        """The client gets an error of ours, and no step's answer."""
        receipt = self._admitted.receipt
        receipt.status, receipt.code = error.status, error.code
        client.listen(None)
        self.answered(None)
        refuse(self._state, client, error, self._admitted.request_id)

    def _step_closed(self, step: Step, receipt: Receipt, decision: Decision | None) -> None:
        step.receipt, step.decision = receipt, decision
        self._close_when_done()

    def _close_when_done(self) -> None:
        if self._closed or not self._answered or any(step.receipt is None for step in self._steps):
            return
        self._closed = True
        state, receipt, answering = self._state, self._admitted.receipt, self._answering
        merge_receipts(receipt, self._mode, self._steps, answering, state)
        state.inflight.leave(self._admitted.ticket)
        if self._admitted.recording is not None:
            end_capture(state, self._admitted)
        state.receipts.add(receipt, None if answering is None else answering.decision)
        if state.audit is not None:
            state.audit.ended(receipt)


def _must_be_read(state: RouterState, label: Label) -> bool:
    classifier = state.classifier
    return classifier is not None and needed(classifier.rules, label, distinct_evidence(state.fleet.membership), time.time())


def merge_receipts(receipt: Receipt, mode: str, steps: list[Step], answering: Step | None, state: RouterState) -> None:
    """One receipt over all steps: all attempts, the sum of what was used, and the outcome of the step that answered."""
    receipt.mode = mode
    receipt.ended = time.time()
    known = [(step, step.receipt) for step in steps if step.receipt is not None]
    for step, own in known:
        estimated = own.prompt_tokens < 0 and step.seen_tokens > 0
        if estimated:
            own.prompt_tokens, own.completion_tokens = own.prompt_tokens_estimate, step.seen_tokens
        receipt.attempts += own.attempts
        receipt.steps.append(
            StepRecord(
                step.name,
                own.attempts[-1].model if own.attempts else step.model,
                step.verdict,
                step.confidence,
                own.received,
                own.ended,
                own.prompt_tokens,
                own.completion_tokens,
                state.prices.cost(own),
                estimated,
            )
        )
        if own.attempts and own.attempts[-1].prompt_tokens < 0:
            own.attempts[-1].prompt_tokens, own.attempts[-1].completion_tokens = own.prompt_tokens, own.completion_tokens
    receipt.attempts.sort(key=lambda attempt: attempt.started)
    receipt.waited_ms = sum(own.waited_ms for _, own in known)
    receipt.held = next((own.held for _, own in known if own.held), "")
    computed = [own for _, own in known if own.cache != CACHE_HIT]
    if any(own.cache for _, own in known):
        receipt.cache = CACHE_MISS if computed else CACHE_HIT
    for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens"):
        # What the response cache gave was not used, unless it gave all: then the receipt tells what it was.
        counts = [getattr(own, name) for own in computed or [own for _, own in known] if getattr(own, name) >= 0]
        setattr(receipt, name, sum(counts) if counts else -1)
    if answering is not None and answering.receipt is not None:
        receipt.status, receipt.code = answering.receipt.status, answering.receipt.code
    elif not receipt.status:
        receipt.code = receipt.code or "client_gone"
