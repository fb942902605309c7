"""The label loop in the live router: what a small and a large model make of the same request, scored, as a label to learn from.

A client's request is served as ever. Once it is over, and only off-peak, both models are asked the same again, inside the cluster
and under the same label; a judge model is asked where nothing else tells which answer is better. What is kept are the scores and
hashed features (`router.complexity.label`); the texts are gone with the objects here.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time

from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.complexity.cascade import TOOL_CALL
from router.complexity.held import read_answer
from router.complexity.label import Label, append_labels, features_of, file_of, make_label
from router.complexity.peel import peel_request
from router.complexity.rules import is_between
from router.complexity.scoring import Scored, demand_of, judge_request, name_of, question_of, read_verdict, score_answers, settle
from router.complexity.stages import LabelSettings
from router.config import AUTO, home
from router.decide import decide
from router.decision import Complexity
from router.following import Ask, follow_up
from router.identity.books import NOTHING
from router.ledger import records
from router.ledger.capturing import Place
from router.ledger.receipts import Receipt
from router.placement.targets import Endpoint, Kind
from router.prefixes import NO_CHAINS
from router.refusal import log_unexpected
from router.state import RouterState
from router.steps import Step, Steps

MODE = "label"
MAX_RUNNING = 2
"""Labels of one router at a time."""
_TIMEOUT_S = 300.0
_MAX_BODY = 64 * 1024

_log = logging.getLogger("tidegate.labels")


def wants_label(state: RouterState, settings: LabelSettings, admitted: AdmittedRequest, now: float, dice: float) -> bool:
    """Whether a request is one of those that become labels, as far as can be told before it is answered.

    Args:
        state: the router.
        settings: the operator's.
        admitted: the request.
        now: UNIX time in seconds.
        dice: a number in [0, 1).
    """
    if dice >= settings.share or not is_between(int(now // 60) % 1440, settings.minutes):
        return False
    facts = admitted.facts
    plain = facts.model == AUTO and not facts.complexity.pinned and not admitted.values and admitted.form is None
    if not plain or (settings.tenants and facts.key.tenant not in settings.tenants) or len(admitted.body) > _MAX_BODY:
        return False
    return _asks_one_text(admitted) and _may_keep(state, settings, admitted)


def watch(state: RouterState, settings: LabelSettings, admitted: AdmittedRequest) -> None:
    """Make a label of a request once it is over, if it is one of those."""
    if wants_label(state, settings, admitted, time.time(), random.random()):
        run = LabelRun(state, settings, admitted)
        state.receipts.watch(admitted.request_id, run.begin)


class LabelRun:
    """One label in the making.

    Args:
        state: the router.
        settings: the operator's.
        admitted: the client's request.
    """

    def __init__(self, state: RouterState, settings: LabelSettings, admitted: AdmittedRequest) -> None:
        self._state = state
        self._settings = settings
        self._client = admitted
        self._models = ("", "")
        self._own: AdmittedRequest
        self._steps: Steps
        self._asked: list[Step] = []
        self._texts: list[str] = []
        self._running = False
        """Whether it counts among those that run."""
        self._judged: AdmittedRequest | None = None
        """Set while a judge is asked."""

    def begin(self, receipt: Receipt) -> None:
        """The client's request is over: ask both models, if it went well and the cluster has nothing better to do."""
        state = self._state
        busy = state.draining or state.labels_running >= MAX_RUNNING or state.waiting.depth > 0
        if busy or receipt.status != 200 or receipt.code:
            return
        try:
            own = follow_up(state, self._client, Complexity("", 0.0, ("a label",)), timeout_s=_TIMEOUT_S)
            if own is None:
                return
            self._own = own
            if not self._choose_models():
                state.inflight.leave(own.ticket)
                return
            self._running = True
            state.labels_running += 1
            changes = {"stream": False, "stream_options": None, "logprobs": None, "top_logprobs": None}
            present: dict[str, object] = {name: value for name, value in changes.items() if name in own.parsed}
            self._ask([(model, present) for model in self._models])
        except Exception as error:
            self._give_up(error)

    def _choose_models(self) -> bool:
        """The models of the smallest and the largest tier that would answer, where both are idle and inside."""
        state, facts = self._state, self._own.facts
        now = time.time()
        view = state.view_for(facts, NO_CHAINS, now)
        found = []
        for tier in (self._settings.small, self._settings.large):
            choice = (decision := decide(replace(facts, model=tier), state.policy, view, now)).chosen
            if choice is None or decision.late or choice.target.kind is Kind.CLOUD:
                return False
            if choice.model not in state.policy.tier_models[tier] or choice.predicted_ttft_s > self._settings.idle_ttft_s:
                return False
            found.append(choice.model)
        self._models = found[0], found[1]
        return found[0] != found[1]

    def _ask(self, wanted: list[tuple[str, dict[str, object]]]) -> None:
        own = self._judged or self._own
        self._steps = Steps(self._state, own, MODE)
        self._asked = [Step(model, self, own.path) for model, _ in wanted]
        for step, (model, changes) in zip(self._asked, wanted, strict=True):
            self._steps.start(step, replace(own.facts, model=model), changes, NOTHING)

    def step_data(self, step: Step, data: bytes) -> None:
        """A piece of an answer."""
        step.keep(data)

    def step_over(self, step: Step) -> None:
        """An answer is there, or there is none; what follows starts other exchanges: on the next turn of the loop."""
        if all(asked.over for asked in self._asked):
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        try:
            texts = [_text_of(step) for step in self._asked]
            said = [text for text in texts if text is not None]
            if len(said) < len(texts):
                self._end(None, "did not answer")
            elif self._judged is not None:
                self._end(settle(read_verdict(said[0]), read_verdict(said[1])), "the judge did not say")
            else:
                self._texts = said
                self._score()
        except Exception as error:
            self._give_up(error)

    def _score(self) -> None:
        parsed, (small, large) = self._own.parsed, self._texts
        references = self._state.policy.references
        reference = references.get(name_of(peel_request(parsed).text)) if references else None
        scored = score_answers(small, large, reference, demand_of(parsed))
        if scored is not None or not self._settings.judge:
            self._end(scored, "nothing tells which is better")
        elif not self._ask_judge(small, large):
            self._end(None, "the judge may not see it")

    def _ask_judge(self, small: str, large: str) -> bool:
        """Ask which is better, in both orders; False where that may not be."""
        judge, mark, question = self._settings.judge, secrets.token_hex(4), question_of(self._own.parsed)
        bodies = [judge_request(judge, question, *pair, mark) for pair in ((small, large), (large, small))]
        asked = Ask(bodies[0], self._models)
        before = follow_up(self._state, self._own, Complexity("", 0.0, ("a judge",)), asked, _TIMEOUT_S)
        if before is None:
            return False
        key = replace(before.facts.key, models=None)  # whose request it is says nothing about the operator's judge
        before.ticket.grant = key
        before.facts = replace(before.facts, key=key)
        self._close_steps()
        self._judged = before
        self._ask([(judge, body) for body in bodies])
        return True

    def _close_steps(self) -> None:
        for step in self._asked:
            step.verdict = "asked"
        self._steps.answered(self._asked[-1])

    def _end(self, scored: Scored | None, why: str) -> None:
        """Keep the label, or say why there is none."""
        state, main = self._state, self._client.request_id
        self._close_steps()
        self._leave()
        now, label = time.time(), None
        if scored is not None and self._may_keep_now():
            features = features_of(self._client.parsed)
            tenant = self._client.facts.key.tenant
            label = make_label(features, scored.small, scored.large, scored.by, now, tenant, self._models)
            state.spawn(self._keep(label, now))
        if state.audit is not None:
            said = {"small_model": self._models[0], "large_model": self._models[1]}
            if scored is None or label is None:
                why = why if scored is None else "may not be kept"
                state.audit.event(records.LABEL, main, {**said, "by": "", "why": why})
            else:
                state.audit.event(records.LABEL, main, {**said, "by": scored.by, "small": scored.small, "large": scored.large})

    async def _keep(self, label: Label, now: float) -> None:
        path = file_of(home() / self._settings.directory, self._state.router_id, now)
        try:
            await asyncio.to_thread(append_labels, path, [label])
        except OSError as error:
            _log.error("labels: %s cannot be written: %s", path, error.strerror)

    def _may_keep_now(self) -> bool:
        state, models = self._state, [*self._models]
        if self._judged is not None:
            models.append(self._settings.judge)
        if self._own.receipt.epoch != state.policy.epoch:
            return False
        label = self._own.ticket.label
        for model in models:
            label = state.policy.label_for(label, model)
        return Place(self._settings.zone, self._settings.duties).may_store(state.policy, label)

    def _give_up(self, error: Exception) -> None:
        """Nobody waits for this; the log says where it failed, not on what."""
        log_unexpected(error, self._client.request_id)
        self._leave()
        if self._asked:
            self._steps.answered(None)

    def _leave(self) -> None:
        if self._running:
            self._running = False
            self._state.labels_running -= 1


def _text_of(step: Step) -> str | None:
    answer = read_answer(bytes(step.body), wants_json=False, strip=False) if step.status == 200 and step.whole else None
    return None if answer is None or answer.evidence.text.startswith(TOOL_CALL) else answer.evidence.text


def _asks_one_text(admitted: AdmittedRequest) -> bool:
    """Whether one answer is asked for, in text, about text."""
    parsed = admitted.parsed
    if parsed.get("n", 1) not in (1, None) or parsed.get("best_of", 1) not in (1, None):
        return False
    if admitted.path == Endpoint.CHAT:
        return not parsed.get("tools") and not parsed.get("functions") and _is_text_only(parsed.get("messages"))
    return admitted.path == Endpoint.COMPLETIONS and isinstance(parsed.get("prompt"), str) and not parsed.get("echo")


def _is_text_only(messages: object) -> bool:
    """Whether a conversation is nothing but text: an image would be judged by nobody."""
    if not isinstance(messages, list):
        return False
    for turn in messages:
        content = turn.get("content") if isinstance(turn, dict) else None
        parts = content if isinstance(content, list) else []
        if any(not isinstance(part, dict) or part.get("type") not in ("text", "input_text") for part in parts):
            return False
    return True


def _may_keep(state: RouterState, settings: LabelSettings, admitted: AdmittedRequest) -> bool:
    """Whether the label store may have what is derived from a request, also at the worst that nobody read in it."""
    label, ticket = admitted.facts.label, admitted.ticket
    if ticket.unread is not None:
        label = label.meet(ticket.unread)
    return Place(settings.zone, settings.duties).may_store(state.policy, label)
