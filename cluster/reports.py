"""What a replica says of itself, on its way over a Ray handle: MessagePack, with zones and duties as *names*.

Evidence in a `Target` is a bit mask over one configuration's `Vocabulary`. While a new configuration is rolled out, an
engine of the old one answers a router of the new one, and the same bits would mean other zones. So names travel, and
the reader turns them into masks of its own vocabulary: a name it does not know becomes unknown, never another zone.
"""

from __future__ import annotations

import msgspec

from router.placement.targets import GENERATION, OFFERED, Address, Kind, Report, Signals, Target
from router.residency.guard import Place
from router.residency.label import Evidence, Vocabulary


class ReplicaFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything one vLLM replica states. `place` is what its own guard enforces; `zone` is a name for people."""

    id: str
    incarnation: str
    zone: str
    place: Place
    host: str
    port: int
    model: str
    task: str = "generate"
    context_tokens: int = 0
    slots: int = 0
    signals: Signals | None = None
    kv_port: int = 0
    policy: str = ""
    """What its guard decides again with (`GuardPolicy.stamp`); empty while it has none and lets nobody in."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters of `model` that it was started with."""
    said_at: float = 0.0
    """When it said all this, by its own clock: UNIX time in seconds; 0: it did not say."""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(ReplicaFacts)


def encode_report(facts: ReplicaFacts) -> bytes:
    """The facts as MessagePack."""
    return _ENCODER.encode(facts)


def decode_report(data: bytes, vocabulary: Vocabulary) -> Report:
    """Read what `encode_report` wrote.

    Args:
        data: MessagePack bytes.
        vocabulary: the reader's own vocabulary.

    Raises:
        msgspec.MsgspecError: the bytes are not a report.
    """
    return build_report(read_facts(data), vocabulary)


def read_facts(data: bytes) -> ReplicaFacts:
    """The facts in names, as they were stated.

    Raises:
        msgspec.MsgspecError: the bytes are not a report.
    """
    return _DECODER.decode(data)


def build_report(facts: ReplicaFacts, vocabulary: Vocabulary) -> Report:
    """The facts as a target of `vocabulary`. A duty the vocabulary does not have counts as not carried."""
    evidence = Evidence(
        process=vocabulary.zone_mask(facts.place.process),
        store=vocabulary.zone_mask(facts.place.store),
        duties=vocabulary.duty_mask(duty for duty in facts.place.duties if duty in vocabulary.duties),
    )
    target = Target(
        id=facts.id,
        incarnation=facts.incarnation,
        kind=Kind.REPLICA,
        zone=facts.zone,
        evidence=evidence,
        address=Address(facts.host, facts.port),
        models={name: name for name in (facts.model, *facts.adapters)},
        endpoints=OFFERED.get(facts.task, GENERATION),
        context_tokens=facts.context_tokens,
        slots=facts.slots,
        token_ids=facts.task == "generate",
        adapters=dict.fromkeys(facts.adapters, facts.model),
    )
    return Report(target, facts.signals, facts.kv_port)
