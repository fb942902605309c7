"""The cascade in the live router: the small model answers first, and its own confidence decides whether a larger one is asked.

A whole answer is checked when it is there. Of a stream only the first events are held back, at most `hold_tokens` tokens and at
most `hold_s` seconds after the first of them; then they go out as they are, or a larger model is asked. An escalation that fails
takes nothing away: until the larger model's answer begins, the smaller one's is kept.
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.complexity.cascade import Verdict, agreement, check_is_due, judge_answer
from router.complexity.held import Answer, HeldStream, asked_logprobs, demands_json, read_answer
from router.complexity.stages import CascadeSettings
from router.decision import Facts
from router.feedback import note_escalation
from router.identity.books import Reservation
from router.placement.targets import Endpoint
from router.policy import Policy
from router.refusal import fail
from router.reply import Reply
from router.state import RouterState
from router.steps import BROKE_OFF, Step, Steps
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError

_SAMPLE_TEMPERATURE = 0.8
"""For samples of a request that wants none: at 0 they would all be the same."""


def may_cascade(admitted: AdmittedRequest, policy: Policy) -> bool:
    """Whether a request can be answered small first: `auto`, not pinned by a rule, one plain answer, and a larger tier to ask."""
    facts, parsed = admitted.facts, admitted.parsed
    complexity = facts.complexity
    if facts.model != "auto" or complexity.pinned or complexity.model or admitted.form is not None:
        return False
    if admitted.path not in (Endpoint.CHAT, Endpoint.COMPLETIONS) or next_tier(policy, facts, complexity.tier) is None:
        return False
    single = parsed.get("n", 1) in (1, None) and parsed.get("best_of", 1) in (1, None) and not parsed.get("echo")
    return single and not isinstance(parsed.get("prompt"), list) and not parsed.get("use_beam_search")


def next_tier(policy: Policy, facts: Facts, tier: str) -> str | None:
    """The next larger tier with a model this key may use."""
    allowed = facts.key.models
    above = policy.tiers[policy.tiers.index(tier) + 1 :] if tier in policy.tiers else ()
    for name in above:
        if any(allowed is None or model in allowed for model in policy.tier_models.get(name, ())):
            return name
    return None


class Cascade:
    """One request, answered small first.

    Args:
        state: the router.
        admitted: the request; `may_cascade` said yes.
        client: its way back.
        reserved: what the handler took of the limits.
        settings: when an answer is not good enough.
    """

    def __init__(
        self,
        state: RouterState,
        admitted: AdmittedRequest,
        client: DirectRequest,
        reserved: Reservation,
        settings: CascadeSettings,
    ) -> None:
        self._state = state
        self._admitted = admitted
        self._client = client
        self._reserved = reserved
        self._doubt = settings.doubt
        self._samples = settings.samples
        self._loop = asyncio.get_running_loop()
        self._steps = Steps(state, admitted, "cascade")
        self._reply = Reply(client)
        self._tier = admitted.facts.complexity.tier
        self._wants_json = demands_json(admitted.parsed)
        self._strip = not asked_logprobs(admitted.parsed)
        self._probe: Step | None = None
        """The step whose answer is checked, or passes."""
        self._larger: Step | None = None
        """The step that was asked because of doubt; it replaces the probe as soon as its answer begins."""
        self._stream: HeldStream | None = None
        self._held = b""
        self._first_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._checked = False
        """The probe's answer passes: nothing is held any longer."""
        self._answer: Answer | None = None
        self._verdict = Verdict(False, "")
        self._said = ""
        """What the reason of the answer adds about the cascade."""
        self._votes: list[Step] = []
        self._done = False

    def start(self) -> None:
        """Ask the first model."""
        if self._steps.attend(self._client, self, self._reserved):
            self._ask("first", self._admitted.facts, self._reserved)

    def _ask(self, name: str, facts: Facts, reserved: Reservation, **changes: object) -> None:
        step = Step(name, self, self._admitted.path)
        if self._strip and (name == "sample" or next_tier(self._state.policy, facts, self._tier) is not None):
            changes["logprobs"] = True if self._admitted.path == Endpoint.CHAT else 1
        if name == "first":
            self._probe = step
        elif name == "larger":
            self._larger = step
        else:
            self._votes.append(step)
        self._steps.start(step, facts, changes, reserved)

    # -- the client's connection

    def client_gone(self) -> None:
        """Nobody waits any more: cut everything."""
        if not self._done:
            self._done = True
            self._stop_timer()
            self._steps.answered(None)

    def client_paused(self) -> None:
        """The client is slow."""
        if self._probe is not None:
            self._probe.pause()

    def client_resumed(self) -> None:
        """The client has caught up."""
        if self._probe is not None:
            self._probe.resume()

    # -- what steps say

    def step_data(self, step: Step, data: bytes) -> None:
        """Bytes of some step's answer."""
        try:
            if self._done:
                return
            if step is self._larger and step.status == 200 and step.is_stream:
                self._replace_probe(step)
            if step is self._probe and step.status == 200 and step.is_stream:
                self._feed(step, data)
            else:
                step.keep(data)
        except Exception as error:
            self._fail(error)

    def step_over(self, step: Step) -> None:
        """A step has ended. What follows waits for the next turn of the loop: it may start or cut other exchanges."""
        self._loop.call_soon(self._settle, step)

    def _settle(self, step: Step) -> None:
        try:
            if self._done:
                return
            if step in self._votes:
                if all(vote.over for vote in self._votes):
                    votes, self._votes = self._votes, []
                    self._count_samples(votes)
            elif step is self._larger:
                self._larger_over(step)
            elif step is self._probe:
                self._probe_over(step)
        except Exception as error:
            self._fail(error)

    def _probe_over(self, step: Step) -> None:
        if step.status == 200 and step.is_stream:
            self._stream_over(step)
            return
        ok = step.status == 200 and not step.broken
        self._answer = read_answer(bytes(step.body), self._wants_json, self._strip) if ok else None
        if step.broken:
            self._broke_off(step)
        elif self._answer is None or self._is_larger(step.model):
            self._stand()
        else:
            self._note(step, judge_answer(self._answer.evidence, self._doubt))
            if self._verdict.escalate:
                self._escalate()
            elif self._doubt.agreement is not None and self._samples > 1:
                self._take_samples()
            else:
                self._stand()

    # -- a stream

    def _feed(self, step: Step, data: bytes) -> None:
        if self._stream is None:
            self._stream = HeldStream(self._wants_json, self._strip)
            if self._is_larger(step.model):
                self._stream.forget()
                self._checked = True
        events = self._stream.feed(data)
        if self._checked:
            if events:
                self._reply.write(step, events, self._remark())
            return
        self._held += events
        if not self._first_at and self._stream.tokens:
            self._first_at = self._loop.time()
            self._timer = self._loop.call_later(self._doubt.hold_s, self._check)
        if check_is_due(self._stream.tokens, 0.0, self._stream.finished, self._doubt):
            self._check()

    def _check(self) -> None:
        """Judge what is held of the stream."""
        stream, step = self._stream, self._probe
        if self._checked or self._done or stream is None or step is None or self._larger is not None:
            return
        self._stop_timer()
        self._note(step, judge_answer(stream.evidence(stream.finished or step.over), self._doubt))
        if self._verdict.escalate:
            self._loop.call_soon(self._escalate_stream, step)
        else:
            self._release(step)

    def _escalate_stream(self, step: Step) -> None:
        try:
            if not self._done and self._larger is None:
                step.pause()
                self._escalate()
        except Exception as error:
            self._fail(error)

    def _release(self, step: Step) -> None:
        """What was held goes out, and the rest passes."""
        self._stop_timer()
        self._checked = True
        if self._stream is not None:
            self._stream.forget()
        held, self._held = self._held, b""
        self._reply.write(step, held, self._remark())
        if step.over:
            self._stream_over(step)
        else:
            step.resume()

    def _stream_over(self, step: Step) -> None:
        if not self._checked:
            if self._larger is None and step.broken:
                self._broke_off(step)
            else:
                self._check()
            return
        rest = self._stream.finish() if self._stream is not None else b""
        if rest:
            self._reply.write(step, rest, self._remark())
        self._conclude(step)
        if step.whole:
            self._reply.end()
        else:
            self._reply.cut()

    # -- escalating

    def _broke_off(self, step: Step) -> None:
        """What has come of the probe's answer is no answer, and the client has seen nothing of it."""
        self._note(step, Verdict(True, "the small model broke off"))
        self._escalate()

    def _escalate(self) -> None:
        """Ask the next tier; where that cannot be, the small answer stands."""
        tier = next_tier(self._state.policy, self._admitted.facts, self._tier)
        if tier is None:
            self._stand()
            return
        try:
            reserved = self._steps.reserve(self._reserved)
        except ApiError:
            self._said = f"{self._verdict.reason}, but the limits leave no room to ask a larger model"
            self._stand()
            return
        self._tier = tier
        self._said = f"asked `{tier}`: {self._verdict.reason}"
        probe = self._probe
        if self._state.complexity.learning is not None and probe is not None and not (probe.over and probe.broken):
            note_escalation(self._state, self._admitted, probe.model)
        self._ask("larger", self._larger_facts(tier), reserved)

    def _larger_facts(self, tier: str) -> Facts:
        """Facts of a step that only models of this tier and above may serve."""
        facts, policy = self._admitted.facts, self._state.policy
        start = policy.tiers.index(tier)
        large = {model for name in policy.tiers[start:] for model in policy.tier_models.get(name, ())}
        members = self._state.fleet.membership.targets
        small = {member.incarnation for member in members if not large & member.models.keys()}
        return replace(facts, complexity=replace(facts.complexity, tier=tier), excluded=facts.excluded | small)

    def _larger_over(self, step: Step) -> None:
        if step.status == 200 and step.whole:
            self._replace_probe(step)
            self._probe_over(step)
            return
        step.verdict = "did not answer"
        self._larger = None
        self._said = f"{self._verdict.reason}, but no larger model answered"
        self._stand()

    def _replace_probe(self, step: Step) -> None:
        """The larger model answers: the small one's answer is not wanted any more."""
        before, self._probe, self._larger = self._probe, step, None
        self._stop_timer()
        if before is not None and self._stream is not None:
            before.seen_tokens = self._stream.tokens
        self._stream, self._held, self._first_at, self._checked, self._answer = None, b"", 0.0, False, None
        if next_tier(self._state.policy, self._admitted.facts, self._tier) is None:
            self._stream = HeldStream(self._wants_json, False)
            self._stream.forget()
            self._checked = True
        if before is not None:
            self._loop.call_soon(before.cancel)

    # -- self-consistency

    def _take_samples(self) -> None:
        """Ask the same model again, to see whether it says the same."""
        given = self._admitted.parsed.get("temperature")
        warm = given if isinstance(given, int | float) and given > 0 else _SAMPLE_TEMPERATURE
        try:
            reservations = self._steps.reserve_more(self._reserved, self._samples - 1)
        except ApiError:
            self._stand()
            return
        for place, reserved in enumerate(reservations):
            self._ask("sample", self._admitted.facts, reserved, temperature=warm, stream=False, seed=place + 1)

    def _count_samples(self, votes: list[Step]) -> None:
        read = [read_answer(bytes(vote.body), self._wants_json, self._strip) for vote in votes if vote.status == 200]
        answers = [answer for answer in (self._answer, *read) if answer is not None]
        best, share = agreement([answer.evidence.text for answer in answers])
        self._answer = next(answer for answer in answers if answer.evidence.text == best)
        said = f"{round(share * len(answers))} of {len(answers)} samples agree"
        self._verdict = Verdict(share < (self._doubt.agreement or 0.0), said, self._verdict.confidence)
        if self._probe is not None:
            self._note(self._probe, self._verdict)
        if self._verdict.escalate:
            self._escalate()
        else:
            self._stand()

    # -- ending

    def _stand(self) -> None:
        """The probe's answer is the client's."""
        step = self._probe
        assert step is not None
        if step.status == 200 and step.is_stream:
            self._release(step)
            return
        if step.broken:
            self._done = True
            self._steps.refuse(self._client, ApiError(502, "upstream_error", BROKE_OFF))
            return
        body = bytes(step.body) if self._answer is None else self._answer.body
        self._conclude(step)
        self._reply.whole(step, body, self._remark())

    def _is_larger(self, model: str) -> bool:
        """Whether a model stands above the tier whose turn it is, or nothing stands above it: its answer is not checked."""
        policy = self._state.policy
        if next_tier(policy, self._admitted.facts, self._tier) is None:
            return True
        start = policy.tiers.index(self._tier)
        return not any(model in policy.tier_models.get(tier, ()) for tier in policy.tiers[: start + 1])

    def _note(self, step: Step, verdict: Verdict) -> None:
        self._verdict = verdict
        step.verdict = self._said = verdict.reason
        step.confidence = verdict.confidence if verdict.confidence == verdict.confidence else -1.0

    def _remark(self) -> str:
        return f"cascade: {self._said}" if self._said else ""

    def _conclude(self, step: Step | None) -> None:
        self._done = True
        self._stop_timer()
        self._client.listen(None)
        self._steps.answered(step)

    def _fail(self, error: Exception) -> None:
        receipt = self._admitted.receipt
        receipt.status, receipt.code = 500, "internal_error"
        if not self._done:
            self._conclude(None)
        fail(self._state, self._client, error, self._admitted.request_id)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
