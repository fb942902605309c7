"""What an engine says of itself, without Serve: a fake process, and Ray's runtime context replaced."""

from types import SimpleNamespace

import pytest

from cluster.reports import decode_report
from deployments import engine as module
from deployments.engine import Engine, EngineSettings
from router.config import Model, Secret
from router.placement.targets import Signals
from router.residency.label import UNKNOWN, Vocabulary

MODEL = Model(id="smol", source="x", replicas=[{"zone": "eu", "duties": ["baa"]}])
SETTINGS = EngineSettings(MODEL, MODEL.replicas[0], ("eu", "us"), "tidegate.io/zone", Secret(), frozenset())
WORDS = Vocabulary(("eu", "us"), ("baa",))


class FakeProcess:
    alive = True
    exit_code = None
    port = 31000
    kv_port = 31001
    pid = 7
    context_tokens = 2048
    slots = 16
    log_path = "/logs/x.log"
    healthy = True
    guard_policy = "epoch-1"

    async def is_healthy(self, timeout_s):
        return self.alive and self.healthy

    async def read_signals(self):
        return Signals(5.0, running=1)


def an_engine(monkeypatch, labels):
    context = SimpleNamespace(get_actor_id=lambda: "ab12cd34ef", get_node_labels=lambda: labels)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(module.ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    engine = Engine(SETTINGS)
    engine._process = FakeProcess()
    return engine


async def test_it_describes_itself(monkeypatch):
    engine = an_engine(monkeypatch, {"tidegate.io/zone": "eu"})
    await engine._refresh()
    report = decode_report(await engine.describe(), WORDS)
    assert report.target.id == "smol@eu/ab12cd" and report.target.incarnation.startswith("ab12cd34ef-")
    assert (report.target.evidence.process, report.target.evidence.duties) == (0b10, 1)
    assert report.signals == Signals(5.0, running=1)
    assert report.kv_port == 31001
    status = await engine.status()
    assert (status["pid"], status["log"], status["warning"]) == (7, "/logs/x.log", None)


@pytest.mark.parametrize("labels", [{}, {"tidegate.io/zone": "mars"}])
async def test_on_a_node_without_a_known_zone_it_has_no_evidence_and_says_so(monkeypatch, labels):
    engine = an_engine(monkeypatch, labels)
    evidence = decode_report(await engine.describe(), WORDS).target.evidence
    assert (evidence.process, evidence.store, evidence.duties) == (UNKNOWN, UNKNOWN, 0)
    assert "tidegate.io/zone" in (await engine.status())["warning"]


async def test_on_a_node_of_another_zone_it_has_that_zone_and_no_duties(monkeypatch):
    engine = an_engine(monkeypatch, {"tidegate.io/zone": "us"})
    target = decode_report(await engine.describe(), WORDS).target
    assert (target.zone, target.evidence.process, target.evidence.duties) == ("us", 0b100, 0)


async def test_two_lives_are_two_incarnations(monkeypatch):
    labels = {"tidegate.io/zone": "eu"}
    first, second = an_engine(monkeypatch, labels), an_engine(monkeypatch, labels)
    assert (await first.status())["incarnation"] != (await second.status())["incarnation"]


async def test_health(monkeypatch):
    engine = an_engine(monkeypatch, {"tidegate.io/zone": "eu"})
    await engine.check_health()
    engine._process.healthy = False
    with pytest.raises(RuntimeError, match="does not answer"):
        await engine.check_health()
    engine._process.alive, engine._process.exit_code = False, -9
    with pytest.raises(RuntimeError, match=r"has ended with exit code -9.*/logs/x\.log"):
        await engine.check_health()
    assert await engine.describe() is None
