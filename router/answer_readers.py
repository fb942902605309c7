"""How a target's answer is read on its way to the client, and how it is framed there."""

from __future__ import annotations

from router.admitted import AdmittedRequest
from router.joining import Join
from router.placement.targets import Endpoint, Target
from router.residency.restored_answer import RestoredBody, RestoredEvents
from router.wire.events import EventStream
from router.wire.exchange import Exchange
from router.wire.heads import Framing, is_event_stream
from router.wire.joined_events import JoinedEvents, TrackedEvents
from router.wire.stream_ends import DONE, MESSAGES, RESPONSES, TRANSCRIPTIONS, StreamEnd
from router.wire.trail import Trail

_ENDS: dict[str, StreamEnd] = {
    Endpoint.CHAT: DONE,
    Endpoint.COMPLETIONS: DONE,
    Endpoint.MESSAGES: MESSAGES,
    Endpoint.RESPONSES: RESPONSES,
    Endpoint.TRANSCRIPTIONS: TRANSCRIPTIONS,
}


def reader_of(exchange: Exchange, admitted: AdmittedRequest, trail: Trail | None) -> EventStream | None:
    """What reads the answer's body; None where its bytes go to the client as they come.

    Args:
        exchange: the answer, of which the head is known.
        admitted: the request.
        trail: where what the client is sent is recorded, for a stream that could be carried on.
    """
    if not is_event_stream(exchange.headers):
        return RestoredBody(admitted.values) if admitted.values else None
    end = _ENDS.get(admitted.path) if exchange.status == 200 else None
    if admitted.values:
        return RestoredEvents(admitted.keeps_usage, admitted.values, end)
    return EventStream(admitted.keeps_usage, end) if trail is None else TrackedEvents(admitted.keeps_usage, trail)


def joining_reader(admitted: AdmittedRequest, join: Join, target: Target) -> JoinedEvents:
    """What reads a stream that carries a broken one on, in the same response; the client is told by whom."""
    note = f"tidegate: continued by {target.id} in {target.zone}"
    return JoinedEvents(admitted.keeps_usage, join.trail, chat=admitted.path == Endpoint.CHAT, again=join.again, note=note)


def framing_of(exchange: Exchange, speaks_chunked: bool) -> Framing:
    """How the body is framed for the client: as it came, unless it is rewritten or the client does not read chunks."""
    if exchange.events is not None:
        return Framing.CHUNKED if speaks_chunked else Framing.CLOSE
    return Framing.CLOSE if exchange.chunked and not speaks_chunked else Framing.AS_IS
