"""A shadow experiment: once the client has its answer, the model that another setting would have chosen is asked the same.

The client's answer passes at once and as it is; only its text is kept until the comparison. The shadow is a request of its own,
with its own id and receipt and the same label; it never leaves the cluster and takes nothing from the client's limits.
"""

from __future__ import annotations

import asyncio
import time

from router.admitted import AdmittedRequest
from router.complexity.cascade import plain_answer, token_logprobs_mean
from router.complexity.choose import Asker
from router.complexity.experiment import assign, unit_of
from router.complexity.held import HeldStream, read_answer
from router.config import AUTO
from router.decision import Complexity
from router.feedback import tier_of
from router.following import follow_up
from router.identity.books import NOTHING, Reservation
from router.ledger import records
from router.ledger.receipts import Receipt
from router.placement.targets import Endpoint
from router.refusal import fail
from router.reply import Reply
from router.state import RouterState
from router.steps import BROKE_OFF, Step, Steps
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError

MAX_RUNNING = 4
"""Shadows of one router at a time: more of them would take room from clients."""
_MAX_TEXT = 64 * 1024


def shadow_of(state: RouterState, admitted: AdmittedRequest) -> Complexity | None:
    """What the setting of a shadow trial would have chosen for a request; None where no trial looks at it or nothing is to ask.

    A setting that chooses the same tier has the same answer: that is recorded at once.
    """
    facts, policy = admitted.facts, state.policy
    single = admitted.path in (Endpoint.CHAT, Endpoint.COMPLETIONS) and admitted.parsed.get("n", 1) in (1, None)
    if facts.model != AUTO or facts.complexity.pinned or admitted.values or not single:
        return None
    _, shadows = assign(policy.branches, unit_of(admitted.parsed, facts.key.id, facts.request_id))
    if not shadows or (plan := shadows[0].plan) is None:
        return None
    asker = Asker(facts.key.id, facts.key.tenant, time.time())
    judged = state.complexity.follow(admitted.parsed, facts.prompt_tokens, plan, asker)
    name = shadows[0].trial.name
    if judged.tier == facts.complexity.tier:
        if state.audit is not None:
            state.audit.event(records.SHADOW, facts.request_id, {"trial": name, "tier": judged.tier, "differs": False})
        return None
    if state.shadows_running >= MAX_RUNNING or state.draining:
        return None
    return Complexity(judged.tier, round(judged.gain, 4), judged.reasons, judged.model, trial=name)


class Shadowed:
    """One request that a shadow looks at.

    Args:
        state: the router.
        admitted: the request.
        client: its way back.
        reserved: what it took of the limits.
        complexity: what the shadow's setting chose.
    """

    def __init__(
        self, state: RouterState, admitted: AdmittedRequest, client: DirectRequest, reserved: Reservation, complexity: Complexity
    ) -> None:
        self._state = state
        self._admitted = admitted
        self._client = client
        self._reserved = reserved
        self._complexity = complexity
        self._loop = asyncio.get_running_loop()
        self._steps = Steps(state, admitted, "")
        self._reply = Reply(client)
        self._main = Step("first", self, admitted.path)
        self._stream: HeldStream | None = None
        self._text = ""
        self._done = False

    def start(self) -> None:
        """Serve the client."""
        if self._steps.attend(self._client, self, self._reserved):
            self._steps.start(self._main, self._admitted.facts, {}, self._reserved)

    def client_gone(self) -> None:
        """Nobody waits any more; nothing is compared."""
        if not self._done:
            self._done = True
            self._steps.answered(None)

    def client_paused(self) -> None:
        """The client is slow."""
        self._main.pause()

    def client_resumed(self) -> None:
        """The client has caught up."""
        self._main.resume()

    def step_data(self, step: Step, data: bytes) -> None:
        """A piece of the client's answer: it passes."""
        if self._done:
            return
        if not step.is_stream:
            step.keep(data)
            return
        if self._stream is None:
            self._stream = HeldStream(wants_json=False, strip=False)
        self._reply.write(step, data, "")
        self._stream.feed(data)

    def step_over(self, step: Step) -> None:
        """The client's answer is there."""
        if self._done:
            return
        self._done = True
        if not self._reply.begun and step.broken:
            self._steps.refuse(self._client, ApiError(502, "upstream_error", BROKE_OFF))
            return
        self._client.listen(None)
        self._steps.answered(step)
        try:
            self._finish(step)
        except Exception as error:
            fail(self._state, self._client, error, self._admitted.request_id)
            return
        if self._text and step.status == 200 and not step.broken:
            self._loop.call_soon(self._compare)

    def _finish(self, step: Step) -> None:
        if self._reply.begun:
            self._text = self._stream.evidence(complete=True).text if self._stream is not None else ""
            (self._reply.end if step.whole else self._reply.cut)()
        else:
            answer = read_answer(bytes(step.body), wants_json=False, strip=False)
            self._text = "" if answer is None else answer.evidence.text
            self._reply.whole(step, bytes(step.body), "")

    def _compare(self) -> None:
        """Ask the shadow's model, unless the request has become one that may not be asked again."""
        state = self._state
        if state.draining or len(self._text) > _MAX_TEXT:
            return
        own = follow_up(state, self._admitted, self._complexity)
        if own is not None:
            Shadow(state, own, self._admitted.receipt, self._text).start()


class Shadow:
    """The request behind a shadow; nobody waits for it.

    Args:
        state: the router.
        own: the same request, following the client's.
        main: the receipt of the client's.
        text: what the client was answered, for the comparison.
    """

    def __init__(self, state: RouterState, own: AdmittedRequest, main: Receipt, text: str) -> None:
        self._state = state
        self._main = main
        self._complexity = own.facts.complexity
        self._text = text
        self._admitted = own
        self._steps = Steps(state, own, "shadow")
        self._step = Step("shadow", self, own.path)

    def start(self) -> None:
        """Ask, whole and with log-probabilities."""
        self._state.shadows_running += 1
        chat = self._admitted.path == Endpoint.CHAT
        changes = {"stream": False, "stream_options": None, "logprobs": True if chat else 1}
        self._steps.start(self._step, self._admitted.facts, changes, NOTHING)

    def step_data(self, step: Step, data: bytes) -> None:
        """A piece of the answer."""
        step.keep(data)

    def step_over(self, step: Step) -> None:
        """The answer is there, or there is none."""
        self._state.shadows_running -= 1
        answer = read_answer(bytes(step.body), wants_json=False, strip=False) if step.status == 200 and step.whole else None
        agrees = answer is not None and plain_answer(answer.evidence.text) == plain_answer(self._text)
        step.verdict = "did not answer" if answer is None else "agrees" if agrees else "differs"
        step.confidence = -1.0 if answer is None else token_logprobs_mean(answer.evidence.logprobs)
        self._steps.answered(step)
        if self._state.audit is not None and answer is not None:
            self._state.audit.event(records.SHADOW, self._main.request_id, self._comparison(agrees=agrees))

    def _comparison(self, *, agrees: bool) -> dict[str, object]:
        """Numbers only; the texts are gone with this object."""
        own, prices = self._admitted.receipt, self._state.prices
        model = own.attempts[-1].model if own.attempts else ""
        return {
            "trial": self._complexity.trial,
            "tier": self._complexity.tier,
            "differs": True,
            "agrees": agrees,
            "large": tier_of(self._state.policy, model) or 0,
            "usd": prices.cost(own),
            "main_usd": prices.cost(self._main),
            "seconds": own.ended - own.received,
            "main_seconds": self._main.ended - self._main.received,
            "confidence": self._step.confidence,
        }
