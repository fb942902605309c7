"""The hot path, first half: from a request's bytes to an admitted request.

authenticate -> label -> parse -> facts -> limits; `router.serving` goes on from there: decide -> pass -> relay -> receipt.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from router import second_stage
from router.admitted import AdmittedRequest
from router.captured import begin_capture, must_classify_to_keep
from router.decide import decide
from router.facts import gather_facts
from router.identity.keys import WrongSource, authenticate, check_source
from router.ledger.receipts import open_receipt
from router.placement.targets import Endpoint
from router.policy import KeyGrant, Policy
from router.prompt_size import recording_tokens
from router.refusal import fail, refuse
from router.residency.admission import label_request
from router.residency.classify.rule import Classifier, Verdict, distinct_evidence, needed
from router.residency.conversation import NO_CONVERSATION, Conversation, read_conversation
from router.residency.declassify import declassify
from router.residency.label import Label, translate_label
from router.residency.media import refuse_media
from router.residency.resolve import read_tags, resolve_label
from router.serving import Serving
from router.state import RouterState
from router.voting import vote_asked
from router.wire.bodies import Bodies, crowded
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError
from router.wire.json_body import parse_object
from router.wire.multipart import parse_form
from router.wire.request import (
    Headers,
    check_announced,
    fresh_request_id,
    header,
    priority_of,
    request_id_of,
    timeout_of,
    too_large,
)

_RECORDING_BYTES = 26 * 1024 * 1024
"""What vLLM takes, 25 MiB, with the rest of the form around it."""


class _Opened(msgspec.Struct, frozen=True, gc=False):
    """What the headers alone say."""

    request_id: str
    grant: KeyGrant
    label: Label
    tags: tuple[str, ...]
    policy: Policy
    """What all this was found under: another one may run by the time the body is there."""


class ModelHandler:
    """Serves the model operations of the public API; one instance per router (see `DirectHandler`)."""

    def __init__(self, state: RouterState) -> None:
        self._state = state

    @property
    def max_body_bytes(self) -> int:
        """The configured limit."""
        return self._state.config.max_body_bytes

    @property
    def bodies(self) -> Bodies:
        """The router's."""
        return self._state.bodies

    def open(self, request: DirectRequest) -> None:
        """Refuse what the headers alone condemn: nobody without a key gets us to keep a body."""
        state = self._state
        chosen = header(request.headers, b"x-request-id") is not None
        request_id = request_id_of(request.headers) if chosen else fresh_request_id()
        if chosen and request_id in state.receipts:
            request_id = fresh_request_id()
        try:
            if request.method != "POST":
                raise ApiError(405, "invalid_request", f"Use POST for {request.path}.", allow="POST")
            grant, label, tags = identify(state, request.headers, request.peer)
            if grant.max_body_bytes is not None:
                request.limit = min(request.limit, grant.max_body_bytes)
            request.key = grant.id
            check_announced(request.headers, request.limit)
            request.context = _Opened(request_id, grant, label, tags, state.policy)
            if chosen:
                state.receipts.claim(request_id, request)
        except ApiError as error:
            if state.audit is not None:
                state.audit.turned_away(f"{error.code} {error.key}" if isinstance(error, WrongSource) else error.code)
            refuse(state, request, error, request_id)
        except Exception as error:
            fail(state, request, error, request_id)

    def run(self, request: DirectRequest) -> None:
        """The body is whole: parse it, gather the facts, and serve."""
        state = self._state
        opened: _Opened = request.context
        request.context = None
        try:
            admitted = self._admit(request, opened)
            if state.classifier is None:
                self._serve(request, admitted)
            elif must_classify(state, admitted.facts.label) or must_classify_to_keep(state, admitted):
                state.spawn(self._classify_and_serve(request, admitted, state.classifier, state.policy))
            else:
                admitted.ticket.unread = state.classifier.rules.tightest
                self._serve(request, admitted)
        except ApiError as error:
            self._refuse(request, opened.grant, error, opened.request_id)
        except Exception as error:
            fail(state, request, error, opened.request_id)

    async def _classify_and_serve(
        self, request: DirectRequest, admitted: AdmittedRequest, classifier: Classifier, before: Policy
    ) -> None:
        """What stands in the request could change where it may go: look, tighten, then serve. `before` is the policy it was
        admitted under: when this begins, and whenever it waits, another one may run."""
        try:
            state, facts = self._state, admitted.facts
            redactable = facts.key.redacted is not None
            verdict = await classify(
                classifier, facts.label, admitted.parsed, unread=admitted.form is not None, redactable=redactable
            )
            label = verdict.label
            if state.policy is not before:
                label = translate_label(label, before.vocabulary, state.policy.vocabulary)
            admitted.tighten(verdict, label, state)
            if state.policy is before:  # else the labels that a redacted form would need have other names now
                await self._redact_if_it_helps(admitted, verdict, classifier)
            admitted.facts = state.inflight.current(admitted.ticket, admitted.facts)
            if not request.gone:
                self._serve(request, admitted)
        except ApiError as error:
            self._refuse(request, admitted.facts.key, error, admitted.request_id)
        except Exception as error:
            fail(self._state, request, error, admitted.request_id)

    def _refuse(self, request: DirectRequest, grant: KeyGrant, error: ApiError, request_id: str) -> None:
        """Refuse before any decision, and have it recorded."""
        self._state.receipts.disclaim(request_id)
        if self._state.audit is not None:
            self._state.audit.refused(request_id, grant.id, grant.tenant, request.path, error.status, error.code)
        refuse(self._state, request, error, request_id)

    async def _redact_if_it_helps(self, admitted: AdmittedRequest, verdict: Verdict, classifier: Classifier) -> None:
        """Where no target has room for the request as it is, go on with its redacted form, if the key has leave."""
        state, facts, policy = self._state, admitted.facts, self._state.policy
        if facts.key.redacted is None or not verdict.kinds or admitted.form is not None:
            return
        now = time.time()
        as_it_is = decide(facts, state.policy, state.view_for(facts, admitted.chains, now), now)
        if as_it_is.chosen is not None and not as_it_is.saturated:
            return
        others = [policy.tags[tag] for tag in admitted.ticket.tags]
        if admitted.inherited is not None:
            others.append(admitted.inherited)
        admitted.ticket.redacting = True
        made = await declassify(admitted.parsed, admitted.path, facts.key, verdict, others, classifier.scanner)
        admitted.ticket.redacting = False
        if made is not None:
            admitted.declassify(made, state, policy, facts.key)

    def _serve(self, request: DirectRequest, admitted: AdmittedRequest) -> None:
        state, facts = self._state, admitted.facts
        admitted.voting = vote_asked(admitted)
        reserved = state.reserve(facts.key.limits, facts)
        if state.stages is None:
            Serving(state, admitted, request, reserved).start()
        else:
            second_stage.serve(state, state.stages, admitted, request, reserved)

    def _admit(self, request: DirectRequest, opened: _Opened) -> AdmittedRequest:
        state = self._state
        if request.crowded:
            raise crowded()
        if request.too_large:
            raise too_large(request.limit)
        body, path, headers = request.take_body(), request.path, request.headers
        form = parse_form(body, header(headers, b"content-type")) if path == Endpoint.TRANSCRIPTIONS else None
        parsed = form.fields if form is not None else parse_object(body)
        policy, now = state.policy, time.time()
        grant, label, tags = opened.grant, opened.label, opened.tags
        if policy is not opened.policy:
            grant, label, tags = identify(state, headers, request.peer)
        conversation = conversation_of(state, grant, label, path, parsed)
        inherited = state.lineage.inherited(conversation, policy).label if grant.redacted is not None else None
        labelled = label_request(grant, tags, policy, state.lineage, conversation, {}, now)
        label = labelled.label
        refuse_media(parsed, label, policy)
        timeout_s = timeout_of(headers, grant.timeout_s)
        named = named_headers(headers, policy)
        priority = priority_of(headers, grant.priority)
        facts = gather_facts(opened.request_id, grant, path, parsed, label, policy, timeout_s, state.complexity, named, priority)
        facts = state.media.counted_in(facts, parsed)
        receipt = open_receipt(facts, policy.epoch, state.label_text(label), labelled.sources, now)
        ticket = state.inflight.enter(grant, tags, label)
        admitted = AdmittedRequest(path, headers, body, parsed, facts, receipt, ticket, conversation, form)
        admitted.inherited = inherited
        if form is not None:
            receipt.prompt_tokens_estimate += recording_tokens(len(body))
        if state.capture is not None:
            begin_capture(state, request, admitted)
        return admitted


class RecordingHandler(ModelHandler):
    """The same for recordings, which are larger than texts."""

    @property
    def max_body_bytes(self) -> int:
        """The limit of forms with a file."""
        config = self._state.config
        return config.max_audio_bytes or max(_RECORDING_BYTES, config.max_body_bytes)


def must_classify(state: RouterState, label: Label) -> bool:
    """Whether what stands in a request could change where it may go."""
    if state.classifier is None:
        return False
    return needed(state.classifier.rules, label, distinct_evidence(state.fleet.membership), time.time())


async def classify(
    classifier: Classifier, label: Label, body: dict[str, Any], *, unread: bool = False, redactable: bool = False
) -> Verdict:
    """What the texts of a request tighten its label to; `unread` when it brings more than texts (a recording), `redactable` when
    the key may send what is found here in a redacted form.

    Raises:
        ApiError: 403 when no zone is left.
    """
    verdict = await classifier.tighten(label, body)
    if unread and not classifier.rules.read_media:
        verdict = Verdict(verdict.label.meet(classifier.rules.unknown), verdict.kinds, verdict.unknown or "media")
    if (verdict.label.process == 0 or verdict.label.store == 0) and not redactable:
        raise ApiError(403, "residency_denied", "No zone may have a request with what was found in this one.")
    return verdict


def conversation_of(state: RouterState, grant: KeyGrant, label: Label, path: str, parsed: dict[str, Any]) -> Conversation:
    """The hashes of a request's history, where what it carried before could narrow its label."""
    if not state.lineage.needs(state.policy, grant.tenant, label):
        return NO_CONVERSATION
    return read_conversation(state.lineage_key, grant.tenant, path, parsed)


def named_headers(headers: Headers, policy: Policy) -> dict[str, str]:
    """The headers that complexity rules of this policy look at."""
    if policy.plan is None or not policy.plan.header_names:
        return {}
    wanted = policy.plan.header_names
    return {text: value.decode("latin-1") for name, value in headers if (text := name.decode("latin-1")) in wanted}


def identify(state: RouterState, headers: Headers, peer: str | None) -> tuple[KeyGrant, Label, tuple[str, ...]]:
    """Whose request it is and what its label is, from the headers and the address of the connection's other end.

    Raises:
        ApiError: 401 without a known key or at the wrong place, 400 for tags nobody knows, 403 when no zone is left.
    """
    grant = authenticate(headers, state.policy.keys, state.stored_keys, state.tokens)
    if grant.networks is not None:
        check_source(grant, grant.networks, peer, headers, state.proxies)
    tags = read_tags(headers)
    return grant, resolve_label(grant, tags, state.policy, now=time.time()), tags
