import msgspec
import pytest

from cluster.reports import ReplicaFacts, decode_report, encode_report
from router.placement.targets import GENERATION, POOLING, Address, Kind, Signals
from router.residency.guard import Place
from router.residency.label import UNKNOWN, Vocabulary

FACTS = ReplicaFacts(
    id="smol@eu/0a1b2c",
    incarnation="abc-1",
    zone="eu",
    place=Place(("eu",), ("eu",), ("baa",)),
    host="10.0.0.7",
    port=31000,
    model="smol",
    context_tokens=2048,
    slots=16,
    signals=Signals(5.0, running=1, waiting=2, kv_usage=0.5),
)


def test_there_and_back():
    words = Vocabulary(("eu", "us"), ("baa",))
    report = decode_report(encode_report(FACTS), words)
    target = report.target
    assert (target.id, target.incarnation, target.kind, target.zone) == ("smol@eu/0a1b2c", "abc-1", Kind.REPLICA, "eu")
    assert target.address == Address("10.0.0.7", 31000)
    assert target.models == {"smol": "smol"} and target.endpoints == GENERATION
    assert (target.context_tokens, target.slots) == (2048, 16)
    assert (target.evidence.process, target.evidence.store, target.evidence.duties) == (0b10, 0b10, 1)
    assert report.signals == FACTS.signals
    pooling = decode_report(encode_report(msgspec.structs.replace(FACTS, task="pooling", signals=None)), words)
    assert pooling.target.endpoints == POOLING and pooling.signals is None


def test_an_older_engines_zones_are_read_by_name():
    """In the new vocabulary `eu` has another bit; a mask on the wire would have said `ap`."""
    report = decode_report(encode_report(FACTS), Vocabulary(("ap", "eu"), ("audit", "baa")))
    assert (report.target.evidence.process, report.target.evidence.duties) == (0b100, 0b10)


def test_names_the_reader_does_not_know_count_for_nothing():
    evidence = decode_report(encode_report(FACTS), Vocabulary(("us",))).target.evidence
    assert (evidence.process, evidence.store, evidence.duties) == (UNKNOWN, UNKNOWN, 0)


@pytest.mark.parametrize("data", [b"", b"\x80", b"nonsense"])
def test_what_is_no_report_is_refused(data):
    with pytest.raises(msgspec.MsgspecError):
        decode_report(data, Vocabulary(("eu",)))


def test_adapters_come_with_their_base_model():
    words = Vocabulary(("eu", "us"), ("baa",))
    target = decode_report(encode_report(msgspec.structs.replace(FACTS, adapters=("law",))), words).target
    assert target.models == {"smol": "smol", "law": "law"} and target.adapters == {"law": "smol"}
