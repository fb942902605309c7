"""What stands in the audit log: MessagePack, versioned, and never a word of a prompt.

Every entry is a `Record`: an envelope that any reader understands, and data whose shape its event names. The envelope and the
data of `decide`, `egress.intent`, `loads` and `end` are arrays, in the order of the fields here and of `router.ledger.shapes`;
all other data are maps. Large things that many records share (the policy, the targets, what a key may do) are blobs that
records name by SHA-256.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from router.ledger.shapes import Attempt, Shape, StepRecord, named

VERSION = 2
"""Version 1, before the first release, was a map with a name before every value."""

OPEN, CLOSE, LOST = "open", "close", "lost"
POLICY, MEMBERS, GRANT, LOADS = "policy", "members", "grant", "loads"
DECIDE, INTENT, END, REFUSE = "decide", "egress.intent", "end", "refuse"
TURNED_AWAY = "refused.unknown"
FEEDBACK, SHADOW = "feedback", "shadow"
LABEL, REFIT, WEIGHTS = "label", "refit", "weights"
"""A request was scored for both models; a refit was tried by an operator's timer; a router took other weights."""
PRUNE, HOLD, RELEASE, SHRED, SEAL, READ = "prune", "hold", "release", "shred", "capture", "payload.read"
GLASS_REQUEST, GLASS_APPROVE, GLASS_OPEN, GLASS_REVOKE = "glass.request", "glass.approve", "glass.open", "glass.revoke"
RELAX = "relax"
"""A router has taken a signed relaxation, or a policy that is wider than the one before it."""
CLOCK = "clock"
"""The machine's clock was set while the router ran: `seconds` ahead, or back if negative."""
CACHE_HIT = "cache.hit"
"""An answer was given from the response cache: what its gate went by, and the request that the answer was made for."""


class RecordError(ValueError):
    """An entry that is no record of a version known here."""


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One entry. `n` is its own index in the log, `t` UNIX seconds, `m` seconds of the machine's monotonic clock.

    `e` is the event and `id` the request (or key, hold, ...) it is about. The index stands last: it is put in after encoding.
    """

    v: int
    t: float
    m: float
    e: str
    id: str
    data: msgspec.Raw
    n: int


class DecideData(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Everything `decide` was given, and what it answered. `router.ledger.recorder` writes it as a tuple, place by place.

    `facts` lacks the key, which is the grant named by `grant`; `view` lacks membership (`members`) and loads: those are what
    the loads before it in the same log add up to, with `loads` (by index) on top.
    """

    epoch: str
    grant: str
    members: str
    now: float
    facts: tuple[msgspec.Raw, ...]
    view: tuple[msgspec.Raw, ...]
    loads: msgspec.Raw
    label: str
    sources: dict[str, str] = {}
    target: str = ""
    incarnation: str = ""
    zone: str = ""
    kind: str = ""
    model: str = ""
    reason: str = ""
    ttft_s: float = 0.0
    cost_usd: float = 0.0
    code: str = ""
    status: int = 0
    saturated: bool = False


class LoadsData(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Loads of the targets from `start` on; `count` is how many targets there are, and what was known before is void."""

    start: int
    count: int
    loads: msgspec.Raw


class IntentData(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A request that is about to leave the cluster; this is on the medium before its first byte is sent."""

    epoch: str
    key: str
    tenant: str
    label: str
    target: str
    incarnation: str
    zone: str
    evidence: str
    model: str
    reason: str
    body_bytes: int
    cost_usd: float


class EndData(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """How a request ended: the receipt without what `decide` already holds. Counts are -1 while unknown.

    `router.ledger.recorder` writes it as a tuple, place by place.
    """

    epoch: str
    key: str
    tenant: str
    endpoint: str
    requested_model: str
    label: str
    sources: dict[str, str]
    tier: str
    score: float
    received: float
    ended: float
    status: int
    code: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    attempts: list[Attempt]
    trial: str = ""
    mode: str = ""
    steps: list[StepRecord] = []
    cache: str = ""
    waited_ms: int = 0


class RefuseData(msgspec.Struct, frozen=True, gc=False):
    """A request of a known key that was refused before any decision."""

    key: str
    tenant: str
    endpoint: str
    status: int
    code: str


_SHAPES = {
    DECIDE: DecideData.__struct_fields__,
    LOADS: LoadsData.__struct_fields__,
    INTENT: IntentData.__struct_fields__,
    END: EndData.__struct_fields__,
}

_INDEX_BYTES = 8
_NO_INDEX = (1 << 8 * _INDEX_BYTES) - 1
"""The largest index: MessagePack gives it all of its eight bytes, so that any other can be put in its place."""

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(Record).decode


def pack(data: Any) -> bytes:
    """Data of a record as MessagePack."""
    return _encode(data)


def begin(t: float, m: float, event: str, subject: str, data: Any) -> bytes:
    """A record that does not know its index in the log yet: `number` tells it."""
    return _encode((VERSION, t, m, event, subject, data, _NO_INDEX))


def number(begun: bytes, n: int) -> bytes:
    """A record that was begun as entry `n` of the log."""
    return begun[:-_INDEX_BYTES] + n.to_bytes(_INDEX_BYTES, "big")


def encode(n: int, t: float, m: float, event: str, subject: str, data: Any) -> bytes:
    """A record as entry `n` of the log."""
    return number(begin(t, m, event, subject, data), n)


def decode(entry: bytes) -> Record:
    """The record in an entry.

    Raises:
        RecordError: it is none, or of another version.
    """
    try:
        record = _decode_record(entry)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        check_version(entry)
        raise RecordError(f"this entry is no record: {error}") from None
    if record.v != VERSION:
        check_version(entry)
    return record


def check_version(entry: bytes) -> None:
    """Look at nothing but the version, which stands first in records of every version.

    Raises:
        RecordError: it is another one.
    """
    try:
        found = msgspec.msgpack.decode(entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    version = found.get("v") if isinstance(found, dict) else found[0] if isinstance(found, list) and found else None
    if isinstance(version, int) and version != VERSION:
        earlier = ", and the earlier ones were never released" if version == 1 else ""
        raise RecordError(f"a record of version {version}; this tidegate reads version {VERSION}{earlier}")


def read_data(record: Record, kind: Any = dict) -> Any:
    """The data of a record as `kind`.

    Raises:
        RecordError: it does not have that shape.
    """
    try:
        return msgspec.msgpack.decode(record.data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"the data of record {record.n} ({record.e}): {error}") from None


def blobs_of(record: Record) -> tuple[str, ...]:
    """The blobs a record refers to."""
    if record.e in (POLICY, MEMBERS, GRANT):
        return (str(read_data(record)["blob"]),)
    return ()


def values_of(raws: Sequence[msgspec.Raw], shape: Shape) -> dict[str, Any]:
    """The facts or the view of a decision by their names."""
    return named([msgspec.msgpack.decode(raw) for raw in raws], shape)


def to_plain(record: Record) -> dict[str, Any]:
    """A record as data that JSON can hold: every value under its name, bytes in hex, infinities as words.

    Raises:
        RecordError: its data cannot be read.
    """
    envelope = {"n": record.n, "t": record.t, "m": record.m, "event": record.e, "id": record.id}
    data = read_data(record, dict | list)
    if isinstance(data, list):
        try:
            data = named(data, _SHAPES.get(record.e, ()))
        except (TypeError, ValueError, LookupError) as error:
            raise RecordError(f"the data of record {record.n} ({record.e}): {error}") from None
    return {**envelope, **_plain(data)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
