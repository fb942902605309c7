"""Which requests are captured, and what their labels say to it; `router.ledger.capturing` does the keeping."""

from __future__ import annotations

from router.admitted import AdmittedRequest
from router.ledger.capturing import REDACTED
from router.residency.label import Label
from router.state import RouterState
from router.wire.direct import DirectRequest


def begin_capture(state: RouterState, request: DirectRequest, admitted: AdmittedRequest) -> None:
    """Capture a request from here on, if its key or its tenant has opted in."""
    grant = admitted.facts.key
    if state.capture is not None and state.capture.wants(grant):
        admitted.recording = state.capture.record(request, grant, admitted.body, admitted.parsed)


def must_classify_to_keep(state: RouterState, admitted: AdmittedRequest) -> bool:
    """Whether what stands in a captured request could forbid that it is kept: the disk is one more place it would go to."""
    if state.capture is None or state.classifier is None or admitted.recording is None:
        return False
    label, place = admitted.facts.label, state.capture.place
    worst: Label = label.meet(state.classifier.rules.tightest)
    return place.may_store(state.policy, label) and not place.may_store(state.policy, worst)


def end_capture(state: RouterState, admitted: AdmittedRequest) -> None:
    """The request is over: keep it where its label, with what every model it was sent to demands, lets it be stored.

    A redacted request is not kept: the values that were taken out of it are in its answer again.
    """
    recording, capture, ticket, receipt = admitted.recording, state.capture, admitted.ticket, admitted.receipt
    if recording is None or capture is None:
        return
    if ticket.declassified:
        receipt.capture = REDACTED
        capture.count(REDACTED)
        return
    label = ticket.label
    for attempt in receipt.attempts:
        label = state.policy.label_for(label, attempt.model)
    allowed = not ticket.revoked and capture.place.may_store(state.policy, label)
    receipt.capture = capture.finish(recording, admitted.request_id, receipt.tenant, admitted.path, allowed=allowed)
