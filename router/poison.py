"""Requests under which engines die: how many engines one may cost, and which are not sent any more.

A request that crashes an engine crashes the next one too, and its client's library sends it again. Those beside it on the engine
look the same: the connection breaks, and nothing comes. In time one thing tells them apart, that they are answered elsewhere. So
two engines are risked for a request, and a body under which they go on dying, with no answer in between, is refused for a while.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from router.wire.errors import ApiError
from router.wire.events import ENGINE_DEAD
from router.wire.exchange import BROKE, CLOSED, ENGINE_FAILED, Ending, Exchange

if TYPE_CHECKING:
    from router.admitted import AdmittedRequest
    from router.ledger.receipts import Attempt

MOST_LOSSES = 4
"""Of one request. An engine that breaks counts two, one that had begun to answer counts one: more often it is not to blame."""
MOST_ENGINES = 3
"""Once so many have died under a body it is refused."""
BASE_REFUSED_S = 60.0
MAX_REFUSED_S = 600.0
_KEPT = 4096
_MOST_NAMED = 8
_FORGOTTEN_S = 3600.0
_INTERNAL = 500
_Key = tuple[int, int]
_log = logging.getLogger("tidegate.router")


class _Deaths(msgspec.Struct, frozen=True):
    """Under one body, since it was last answered: how many engines died, which incarnations, when the last did, and until when
    it is refused."""

    count: int = 0
    engines: frozenset[str] = frozenset()
    last: float = 0.0
    until: float = 0.0


class PoisonBook:
    """Bodies under which engines died and none answered since, by tenant. Kept are hashes, salted by this process.

    Attributes:
        lengths: of the bodies that are kept, and how many have each; none of another length needs a hash, or a look.
    """

    __slots__ = ("_deaths", "lengths")

    def __init__(self) -> None:
        self._deaths: dict[_Key, _Deaths] = {}
        self.lengths: Counter[int] = Counter()

    def check(self, admitted: AdmittedRequest, now: float) -> None:
        """Before a request is decided: how many engines it may cost.

        Args:
            admitted: the request.
            now: monotonic seconds.

        Raises:
            ApiError: 502 while its body is refused.
        """
        if len(admitted.body) not in self.lengths:
            return
        found = self._deaths.get(_key_of(admitted))
        if found is None or now > found.last + _FORGOTTEN_S:
            return
        if now < found.until:
            raise ApiError(502, "upstream_error", "Engines broke under this very request, and none has answered it since.")
        if found.count >= MOST_ENGINES - 1:
            admitted.losses = MOST_LOSSES // 2

    def ended(self, admitted: AdmittedRequest, exchange: Exchange, ending: Ending, now: float) -> None:
        """An attempt is over: see whether the engine broke, or died, under it.

        Args:
            admitted: the request; what it has lost is added up there.
            exchange: what was said.
            ending: how it ended.
            now: monotonic seconds.
        """
        if ending.complete:
            if exchange.status < _INTERNAL:
                self.answered(admitted)
        elif ending.target_failed and _broke(exchange, ending):
            attempt = admitted.receipt.attempts[-1]
            admitted.losses += 1 if exchange.forwarding and attempt.first_byte else MOST_LOSSES // 2
            if _died(exchange, ending):
                self._note(admitted, attempt, now)

    def answered(self, admitted: AdmittedRequest) -> None:
        """The client has a whole answer: whatever died before, not under this."""
        if len(admitted.body) in self.lengths:
            self._forget(_key_of(admitted))

    def _note(self, admitted: AdmittedRequest, attempt: Attempt, now: float) -> None:
        key = _key_of(admitted)
        found = self._deaths.get(key)
        before = _Deaths() if found is None or now > found.last + _FORGOTTEN_S else found
        if found is not None:
            self._forget(key)
        after = before
        # One engine's death breaks all of the same that are on it; one that was sent there afterwards found it alive again.
        if attempt.incarnation not in before.engines or now - (attempt.ended - attempt.started) >= before.last:
            count, engines = before.count + 1, before.engines | {attempt.incarnation}
            after = _Deaths(count, engines if len(engines) <= _MOST_NAMED else before.engines, now, before.until)
        if after.count > max(before.count, MOST_ENGINES - 1):
            refused_s = min(MAX_REFUSED_S, BASE_REFUSED_S * 2.0 ** min(_MOST_NAMED, after.count - MOST_ENGINES))
            after = replace(after, until=now + refused_s)
            _log.warning(
                "request %s of key %s: an engine died under it, as %d before; the same body is refused for %d s",
                *(admitted.request_id, admitted.facts.key.id, before.count, refused_s),
            )
        self._deaths[key] = after
        self.lengths[key[0]] += 1
        if len(self._deaths) > _KEPT:
            self._forget(next(iter(self._deaths)))

    def _forget(self, key: _Key) -> None:
        if self._deaths.pop(key, None) is not None:
            self.lengths[key[0]] -= 1
            if not self.lengths[key[0]]:
                del self.lengths[key[0]]


def _key_of(admitted: AdmittedRequest) -> _Key:
    return len(admitted.body), hash((admitted.facts.key.tenant, admitted.path, admitted.body))


def _broke(exchange: Exchange, ending: Ending) -> bool:
    """Whether the engine failed under a request it had, in place of refusing it or not being there."""
    if ending is Ending.HELD:
        return exchange.status == _INTERNAL
    return exchange.failure == ENGINE_FAILED or _connection_broke(exchange)


def _died(exchange: Exchange, ending: Ending) -> bool:
    """Whether it is gone, as far as can be told: there are requests that vLLM answers with 500 and lives."""
    if ending is Ending.HELD:
        return ENGINE_DEAD in exchange.held
    return _connection_broke(exchange) or (exchange.events is not None and exchange.events.died)


def _connection_broke(exchange: Exchange) -> bool:
    return exchange.resent if exchange.connection is None else exchange.sent and exchange.failure in (CLOSED, BROKE)
