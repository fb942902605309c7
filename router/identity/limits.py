"""What a key and its tenant may use up: taken before the work by reservation, settled by what was really used.

Every limit is a counter over a window (a minute, on which the one before weighs for the part of it that is less than a minute
ago; a UTC day; a UTC month), or of what is at work now. Where a counter's room comes from: `router.identity.books`.
"""

from __future__ import annotations

from router.identity.books import NOTHING, OwnBooks, Reservation, Source, Window, window_of
from router.identity.limit import MICRO_USD, Kind, Limit, Period, in_micro_usd
from router.wire.errors import ApiError

UNBOUNDED_ANSWER_TOKENS = 500
"""Reserved for an answer when the client set no bound; the engine's count replaces it."""
_MINUTE_S = 60


class LimitReached(ApiError):
    """429, with the `x-ratelimit-*` headers of the limits there are."""

    def __init__(self, code: str, message: str, retry_after_s: float, lines: tuple[tuple[bytes, bytes], ...]) -> None:
        super().__init__(429, code, message, retry_after_s=retry_after_s)
        self._lines = lines

    def headers(self) -> list[tuple[bytes, bytes]]:
        """`Retry-After` and the limits."""
        return [*super().headers(), *self._lines]


class Limits:
    """Reserves and settles.

    Args:
        source: where counters get their room from; by default this router alone.
    """

    def __init__(self, source: Source | None = None) -> None:
        self.source: Source = source or OwnBooks()

    def reserve(
        self, limits: tuple[Limit, ...], prompt_tokens: int, max_tokens: int, now: float, cost_usd: float = 0.0
    ) -> Reservation:
        """Take one request, and the tokens and the money it may use, from every limit it comes under; from all or from none.

        Args:
            limits: of the key and its tenant.
            prompt_tokens: estimated length of the prompt.
            max_tokens: the client's bound on the answer, 0 for none.
            now: UNIX time in seconds.
            cost_usd: the most it may cost, in US dollars.

        Returns:
            What to give to `settle` when the request has ended.

        Raises:
            LimitReached: 429 `rate_limited` or `budget_exceeded`, with the time after which it is worth trying again.
        """
        if not limits:
            return NOTHING
        tokens = prompt_tokens + (max_tokens or UNBOUNDED_ANSWER_TOKENS)
        micro_usd = in_micro_usd(cost_usd)
        amounts = {Kind.REQUESTS: 1, Kind.TOKENS: tokens, Kind.USD: micro_usd, Kind.CONCURRENT: 1}
        state: list[tuple[Limit, Window, int]] = []
        for limit in limits:
            window = window_of(limit.period, now)
            state.append((limit, window, self.source.room(limit, window, now, max(1, amounts[limit.kind]))))
        for limit, window, room in state:
            if room < max(1, amounts[limit.kind]):
                raise _reached(limit, window, now, _header_lines(state, amounts, now, taken=False))
        for limit, window, _ in state:
            self.source.take(limit, window.index, amounts[limit.kind])
        taken = tuple((limit, window.index) for limit, window, _ in state)
        lines = b"".join(b"%b: %b\r\n" % line for line in _header_lines(state, amounts, now, taken=True))
        return Reservation(tokens, micro_usd, taken, lines)

    def settle(self, reservation: Reservation, used_tokens: int | None, cost_usd: float | None = None) -> None:
        """Replace a reservation by what was used; None keeps the reservation, because nobody counted."""
        for limit, index in reservation.taken:
            if limit.kind is Kind.CONCURRENT:
                self.source.take(limit, index, -1)
            elif limit.kind is Kind.TOKENS and used_tokens is not None:
                self.source.take(limit, index, used_tokens - reservation.tokens)
            elif limit.kind is Kind.USD and cost_usd is not None:
                self.source.take(limit, index, in_micro_usd(cost_usd) - reservation.micro_usd)

    def give_back(self, reservation: Reservation) -> None:
        """Nothing came of it: no tokens, no money."""
        self.settle(reservation, 0, 0.0)


def _reached(limit: Limit, window: Window, now: float, lines: tuple[tuple[bytes, bytes], ...]) -> LimitReached:
    whose = "This key" if limit.scope.startswith("key:") else "This key's tenant"
    if limit.kind is Kind.CONCURRENT:
        return LimitReached("rate_limited", f"{whose} may have {limit.amount} requests at work at a time.", 1.0, lines)
    if limit.period is Period.MINUTE:
        what = "send" if limit.kind is Kind.REQUESTS else "use"
        message = f"{whose} may {what} {limit.amount} {limit.kind} a minute."
        return LimitReached("rate_limited", message, _next_unit(limit, window, now), lines)
    amount = f"{limit.amount / MICRO_USD:g} USD" if limit.kind is Kind.USD else f"{limit.amount} {limit.kind}"
    return LimitReached("budget_exceeded", f"{whose}'s budget of {amount} a {limit.period} is used up.", window.end - now, lines)


def _next_unit(limit: Limit, window: Window, now: float) -> float:
    """Seconds until a sliding minute gives about one more unit: at its rate if the minute before was used up, too."""
    return min(window.end - now, max(1.0, _MINUTE_S / limit.amount))


def _header_lines(
    state: list[tuple[Limit, Window, int]], amounts: dict[Kind, int], now: float, *, taken: bool
) -> tuple[tuple[bytes, bytes], ...]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` for the tightest limit of each, in OpenAI's spelling."""
    lines: list[tuple[bytes, bytes]] = []
    for kind in (Kind.REQUESTS, Kind.TOKENS):
        least: tuple[int, Limit, Window] | None = None
        for limit, window, room in state:
            left = max(0, room - (amounts[kind] if taken else 0))
            if limit.kind is kind and (least is None or left < least[0]):
                least = (left, limit, window)
        if least is not None:
            left, limit, window = least
            for name, value in (
                ("limit", str(limit.amount)),
                ("remaining", str(left)),
                ("reset", _duration(window.end - now)),
            ):
                lines.append((f"x-ratelimit-{name}-{kind}".encode(), value.encode()))
    return tuple(lines)


def _duration(seconds: float) -> str:
    """`1h2m3s`, `6m0s`, `1.5s`, `20ms`: as OpenAI writes it."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1e3))}ms"
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{int(hours)}h" if hours else ""
    if hours or minutes:
        return f"{text}{int(minutes)}m{int(rest)}s"
    return f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
