"""`x-tidegate-mode: vote`: several models answer, and the client gets the answer that most weight stands behind.

Each voter is a step of its own, decided and labelled like any request; one that may not have it, or fails, has no vote.
"""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from router.admitted import AdmittedRequest
from router.complexity.held import Answer, read_answer
from router.complexity.stages import VoteSettings
from router.complexity.vote import HEADER, Ballot, Outcome, count_votes, wants_vote
from router.config import AUTO
from router.feedback import tier_of
from router.identity.books import Reservation
from router.placement.targets import Endpoint
from router.policy import Policy
from router.refusal import fail
from router.reply import Reply
from router.state import RouterState
from router.steps import BROKE_OFF, Step, Steps
from router.wire.direct import DirectRequest
from router.wire.errors import ApiError, invalid_request
from router.wire.request import header

_FIELD = HEADER.decode()


def vote_asked(admitted: AdmittedRequest) -> bool:
    """Whether a request asks for a vote, and may. Asked of every request: a mode that nothing would come of is never ignored.

    Raises:
        ApiError: 400 for a mode nobody knows, and for what cannot be voted on; 403 for a key that may not ask.
    """
    value = header(admitted.headers, HEADER)
    if value is None:
        return False
    parsed, grant = admitted.parsed, admitted.facts.key
    if not wants_vote(value):
        raise invalid_request(f"`{_FIELD}` knows one mode: `vote`.", param=_FIELD)
    if not grant.vote:
        raise ApiError(403, "invalid_request", "This key may not ask for a vote (`vote: true` on a key).", param=_FIELD)
    if admitted.path not in (Endpoint.CHAT, Endpoint.COMPLETIONS) or admitted.facts.model != AUTO:
        raise invalid_request("A vote needs a chat or completions request with `model: auto`.", param="model")
    if parsed.get("stream"):
        raise invalid_request("A vote cannot be streamed: all answers must be there before one can win.", param="stream")
    if parsed.get("n", 1) not in (1, None) or isinstance(parsed.get("prompt"), list):
        raise invalid_request("A vote is about one answer: leave out `n`, and give one prompt as text.", param="n")
    return True


def voters_of(policy: Policy, admitted: AdmittedRequest, settings: VoteSettings) -> tuple[str, ...]:
    """The models that vote, largest tier first: the configured ones, else any of a tier; only those this key may use."""
    listed = settings.models or tuple(model for tier in reversed(policy.tiers) for model in policy.tier_models.get(tier, ()))
    allowed = admitted.facts.key.models
    return tuple(model for model in dict.fromkeys(listed) if allowed is None or model in allowed)[: settings.most]


class Vote:
    """One request, answered by several models.

    Args:
        state: the router.
        admitted: the request; `vote_asked` said yes.
        client: its way back.
        reserved: what the handler took of the limits: the first voter's.
        settings: who may vote.
    """

    def __init__(
        self, state: RouterState, admitted: AdmittedRequest, client: DirectRequest, reserved: Reservation, settings: VoteSettings
    ) -> None:
        self._state = state
        self._admitted = admitted
        self._client = client
        self._reserved = reserved
        self._models = voters_of(state.policy, admitted, settings)
        self._loop = asyncio.get_running_loop()
        self._steps = Steps(state, admitted, "vote")
        self._voters: list[Step] = []
        self._done = False

    def start(self) -> None:
        """Ask all of them at once."""
        try:
            if len(self._models) < 2:
                raise ApiError(404, "model_not_found", "This key may use fewer than two models that could vote.")
            reservations = [self._reserved, *self._steps.reserve_more(self._reserved, len(self._models) - 1)]
        except ApiError as error:
            self._steps.give_back(self._reserved)
            self._refuse(error)
            return
        self._client.listen(self)
        facts = self._admitted.facts
        for model, reserved in zip(self._models, reservations, strict=True):
            if self._done:
                self._steps.give_back(reserved)
                continue
            step = Step("vote", self, self._admitted.path)
            self._voters.append(step)
            self._steps.start(step, replace(facts, model=model), {}, reserved)

    def client_gone(self) -> None:
        """Nobody waits any more."""
        if not self._done:
            self._done = True
            self._steps.answered(None)

    def client_paused(self) -> None:
        """Nothing has been sent yet that could be too fast."""

    def client_resumed(self) -> None:
        """See `client_paused`."""

    def step_data(self, step: Step, data: bytes) -> None:
        """A piece of a voter's answer."""
        if not self._done:
            step.keep(data)

    def step_over(self, step: Step) -> None:
        """A voter has answered, or failed."""
        self._loop.call_soon(self._count)

    def _count(self) -> None:
        if self._done or len(self._voters) < len(self._models) or not all(step.over for step in self._voters):
            return
        self._done = True
        try:
            answers = [_answer_of(step) for step in self._voters]
            outcome = count_votes([self._ballot(place, answer) for place, answer in enumerate(answers)])
            self._finish(outcome, answers)
        except Exception as error:
            self._admitted.receipt.status, self._admitted.receipt.code = 500, "internal_error"
            self._steps.answered(None)
            fail(self._state, self._client, error, self._admitted.request_id)

    def _finish(self, outcome: Outcome, answers: list[Answer | None]) -> None:
        for place, step in enumerate(self._voters):
            step.verdict = "won" if place == outcome.winner else "" if answers[place] is not None else "did not answer"
        answered = next((place for place, step in enumerate(self._voters) if not step.broken), -1)
        place = outcome.winner if outcome.winner >= 0 else answered
        if place < 0:
            self._refuse(ApiError(502, "upstream_error", BROKE_OFF))
            return
        winner, answer = self._voters[place], answers[place]
        winner.confidence = outcome.support
        self._client.listen(None)
        self._steps.answered(winner)
        body = bytes(winner.body) if answer is None else answer.body
        Reply(self._client).whole(winner, body, f"vote: {outcome.reason}")

    def _ballot(self, place: int, answer: Answer | None) -> Ballot:
        model = self._models[place]
        text = "" if answer is None else answer.evidence.text
        return Ballot(model, text, rank=tier_of(self._state.policy, model) or 0, failed=answer is None)

    def _refuse(self, error: ApiError) -> None:
        self._done = True
        self._steps.refuse(self._client, error)


def _answer_of(step: Step) -> Answer | None:
    if step.status != 200 or not step.whole:
        return None
    return read_answer(bytes(step.body), wants_json=False, strip=False)
