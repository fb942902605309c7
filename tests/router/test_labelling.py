"""The label loop through a real router: what becomes a label, what is kept of it, and that it goes nowhere a request may not."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from router import labelling
from router.complexity import weights
from router.complexity.features import read_features
from router.complexity.label import Label, LabelError, append_labels, make_label, prune_labels, read_labels
from router.complexity.rules import is_between
from router.complexity.scoring import Demand, Reference, meets, read_references, read_verdict, score_answers, settle
from router.complexity.weights import features_digest
from router.config import ConfigError
from router.ledger import records
from tests.router.builders import digest, make_config
from tests.router.conftest import KEY, FrontDoor, open_front_door
from tests.router.talking_engine import TalkingEngine
from tests.router.test_experiments import Events

SECRET_WORDS = ("Rumpelstiltskin", "spindle")
ASKED = f"Who is {SECRET_WORDS[0]}?"


class Judge(TalkingEngine):
    """Prefers the answer that has `likes` in it, or what a list says, turn by turn."""

    def __init__(self, likes: str = "", *says: str) -> None:
        super().__init__()
        self.likes = likes
        self.turns = itertools.cycle(says) if says else None

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][-1]["content"]
        if self.turns is not None:
            said = next(self.turns)
        else:
            first = text.partition("=== ANSWER A ")[2].partition("=== END")[0]
            said = "A" if self.likes in first else "B"
        self.says = ((said, -0.1),)
        return super().whole(body)


@contextlib.asynccontextmanager
async def loop(
    home: Path, zones: dict[str, str] | None = None, judge: Judge | None = None, **changes: Any
) -> AsyncIterator[FrontDoor]:
    """A router with a small and a large model (and perhaps a judge) whose every `auto` request becomes a label."""
    engines: dict[str, Any] = {"small": TalkingEngine(("a dwarf", -0.1)), "large": TalkingEngine(("a spindle spinner", -0.2))}
    tiers = {"small": "small", "large": "large"}
    zones = zones or {"small": "eu", "large": "eu"}
    labels = {"zone": "eu", "share": 1.0, "between": ["00:00", "00:00"], "idle_ttft_ms": 60_000, **changes.pop("labels", {})}
    if judge is not None:
        engines["judge"], tiers["judge"] = judge, "judge"
        zones, labels = {"judge": "eu", **zones}, {"judge": "m-judge", **labels}
    names = ["small", "large"] if judge is None else ["small", "judge", "large"]
    section = {"tiers": names, "share": {"large": 0.0}, "labels": labels, **changes.pop("complexity", {})}
    async with open_front_door(zones, engines=engines, tiers=tiers, complexity=section, **changes) as door:
        door.state.audit = Labels()
        yield door


class Labels(Events):
    async def label(self, subject: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                found = [data for event, said_of, data in self.said if (event, said_of) == (records.LABEL, subject)]
                if found:
                    return found[0]
                self._more.clear()
                await self._more.wait()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TIDEGATE_HOME", str(tmp_path))
    return tmp_path


async def ask(door: FrontDoor, text: str = ASKED, **more: Any) -> dict[str, Any]:
    """One request, answered; what its label came to."""
    response = await door.chat(text, model="auto", **more)
    assert response.status_code == 200 and response.headers["x-tidegate-model"] == "m-small"
    return await door.state.audit.label(response.headers["x-request-id"])


async def kept(door: FrontDoor, home: Path) -> list[Label]:
    while door.state._tasks:
        await asyncio.wait(set(door.state._tasks))
    return list(read_labels(home / ".tidegate/labels"))


@pytest.mark.parametrize("stream", [False, True])
async def test_both_models_are_asked_again_and_the_judge_in_both_orders(home, stream):
    async with loop(home, judge=Judge("spindle")) as door:
        said = await ask(door, stream=stream)
        assert (said["by"], said["small"], said["large"]) == ("judge", 0.0, 1.0)
        (label,) = await kept(door, home)
        assert (label.small, label.large, label.by, label.pair) == (0.0, 1.0, "judge", ("m-small", "m-large"))
        assert list(label.places) == sorted(read_features(ASKED).buckets)
        first, second = (request["body"]["messages"][-1]["content"] for request in door.engines["judge"].requests)
        assert (
            ASKED in first
            and first.index("a dwarf") < first.index("spinner")
            and second.index("a dwarf") > second.index("spinner")
        )
        asked = door.engines["small"].requests
        assert len(asked) == 2 and not asked[1]["body"].get("stream") and len(door.engines["large"].requests) == 1
        assert door.state.labels_running == 0 and not len(door.state.inflight)


async def test_no_word_is_kept_anywhere(home, caplog):
    async with loop(home, judge=Judge("spindle")) as door:
        await ask(door)
        await kept(door, home)
        on_disk = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert on_disk and not any(word.encode() in on_disk for word in SECRET_WORDS)
        receipts = repr([door.state.receipts.find(name) for name in door.state.audit.ended_ids])
        said = repr(door.state.audit.said) + receipts + caplog.text + door.state.metrics.render().decode()
        assert not any(word in said for word in SECRET_WORDS)
        assert all(path.stat().st_mode & 0o077 == 0 for path in (home / ".tidegate").rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("says", "scores"),
    [(("A", "A"), (0.5, 0.5)), (("A", "B"), (1.0, 0.0)), (("B", "A"), (0.0, 1.0)), (("TIE", "B"), (0.5, 0.5))],
)
async def test_a_judge_that_prefers_a_position_decides_nothing(home, says, scores):
    async with loop(home, judge=Judge("", *says)) as door:
        said = await ask(door)
        assert (said["small"], said["large"]) == scores


async def test_a_judge_that_does_not_judge_makes_no_label(home):
    async with loop(home, judge=Judge("", "I cannot decide")) as door:
        assert await ask(door) == {"by": "", "why": "the judge did not say", "small_model": "m-small", "large_model": "m-large"}
        assert await kept(door, home) == []


async def test_equal_answers_and_known_ones_need_no_judge(home):
    known = home / "known.csv"
    known.write_text("prompt,answer,pattern\nWhat is 2 + 2?,,\\bfour\\b\nCapital of Peru?,Lima,\n")
    async with loop(home, labels={"references": str(known)}) as door:
        door.engines["large"].says = (("It is four.", -0.1),)
        assert await ask(door, "What is 2 + 2?") | {"by": "reference", "small": 0.0, "large": 1.0} == (
            await ask(door, "What is 2 + 2?")
        )
        door.engines["small"].says = (("It  is FOUR.", -0.1),)
        said = await ask(door, "Something else entirely")
        assert (said["by"], said["small"], said["large"]) == ("same", 1.0, 1.0)
        door.engines["small"].says = (("Lima", -0.1),)
        said = await ask(door, "Capital of Peru?")
        assert (said["by"], said["small"], said["large"]) == ("reference", 1.0, 0.0)


def test_known_answers_are_read_as_excel_writes_them(tmp_path):
    (tmp_path / "known.csv").write_text("prompt,answer\nCapital of Peru?,Lima\n", encoding="utf-8-sig")
    assert list(read_references(tmp_path / "known.csv").values()) == [Reference("Lima")]


async def test_a_demanded_format_is_a_test(home):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["town"]}}}
    async with loop(home) as door:
        door.engines["small"].says = (('{"city": "Lima"}', -0.1),)
        door.engines["large"].says = (('{"town": "Lima"}', -0.1),)
        said = await ask(door, "Capital of Peru?", response_format=schema)
        assert (said["by"], said["small"], said["large"]) == ("format", 0.0, 1.0)


@pytest.mark.parametrize("zones", list(itertools.product(("eu", "us"), repeat=3)))
@pytest.mark.parametrize("tag", ["eu", "us", "local"])
async def test_nothing_is_ever_asked_where_the_label_does_not_let_it(home, zones, tag):
    """Wherever the three models stand and whatever the label: the client's request and all that follows it stay inside."""
    keys = [{"id": "front", "sha256": digest(KEY), "residency": tag}]
    places = dict(zip(("small", "large", "judge"), zones, strict=True))
    allowed = {"eu", "us"} if tag == "local" else {tag}
    if not allowed & set(zones):
        return  # no place for this key at all: the configuration is refused
    store = {"zone": min(allowed & set(zones))}
    async with loop(home, zones=places, judge=Judge("spindle"), keys=keys, labels=store) as door:
        response = await door.chat(ASKED, model="auto")
        assert response.status_code == 200
        usable = places["small"] in allowed and places["large"] in allowed
        if usable:
            said = await door.state.audit.label(response.headers["x-request-id"])
            assert said["by"] == ("judge" if places["judge"] in allowed else "")
        for name, zone in places.items():
            assert zone in allowed or door.engines[name].requests == []
        assert usable or len(door.engines["small"].requests) + len(door.engines["large"].requests) <= 1
        assert len(await kept(door, home)) == (usable and places["judge"] in allowed)
        assert door.state.labels_running == 0 and not len(door.state.inflight)


async def test_a_cloud_target_is_never_part_of_a_label(home):
    """Even of a key that may spill: the label is cut to the zones inside."""
    keys = [{"id": "front", "sha256": digest(KEY), "residency": "any", "spill": True}]
    async with loop(home, keys=keys) as door:
        said = await ask(door)
        assert said["why"] == "nothing tells which is better"
        own = [door.state.receipts.find(name) for name in door.state.audit.ended_ids]
        mine = next(receipt for receipt in own if receipt["mode"] == labelling.MODE)
        inside = door.state.label_text(door.state.policy.tags["local"])
        assert mine["label"] == inside and mine["key"] == "front"


async def test_a_request_that_may_not_be_stored_where_labels_lie_is_none(home):
    keys = [{"id": "front", "sha256": digest(KEY), "residency": "eu"}]
    async with loop(home, keys=keys, labels={"zone": "elsewhere"}) as door:
        response = await door.chat(ASKED, model="auto")
        assert response.status_code == 200 and len(door.engines["small"].requests) == 1
        assert not door.engines["large"].requests and door.state.receipts._watched == {}


async def test_a_policy_that_comes_in_between_ends_the_label(home):
    """The label was found under another policy: nothing is asked under it."""
    async with loop(home) as door:
        state = door.state
        original = state.receipts.watch

        def watch(request_id: str, told: Any) -> None:
            def later(receipt: Any) -> None:
                state.policy = replace(state.policy, epoch="new")
                told(receipt)

            original(request_id, later)

        state.receipts.watch = watch
        response = await door.chat(ASKED, model="auto")
        assert response.status_code == 200 and not door.engines["large"].requests and state.labels_running == 0


@pytest.mark.parametrize(
    "more",
    [{"n": 2}, {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"model": "m-small"},
     {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]}],
)  # fmt: skip
async def test_what_cannot_be_compared_is_no_label(home, more):
    async with loop(home) as door:
        response = await door.client.post(
            "/v1/chat/completions", json={"model": "auto", "messages": [{"role": "user", "content": "x"}], **more}
        )
        assert response.status_code == 200 and door.state.receipts._watched == {} and not door.engines["large"].requests


async def test_a_failed_request_and_a_busy_cluster_make_none(home):
    async with loop(home) as door:
        door.engines["small"].status = "400 Bad Request"
        assert (await door.chat(ASKED, model="auto")).status_code == 400
        assert not door.engines["large"].requests
    async with loop(home, labels={"idle_ttft_ms": 0.000_001}) as door:
        assert (await door.chat(ASKED, model="auto")).status_code == 200
        assert not door.engines["large"].requests and not len(door.state.inflight)


def test_the_hours_are_kept():
    assert is_between(23 * 60, (22 * 60, 6 * 60)) and is_between(5, (22 * 60, 6 * 60)) and not is_between(720, (22 * 60, 6 * 60))


async def test_outside_the_hours_and_the_share_nothing_is_watched(home, monkeypatch):
    async with loop(home, labels={"between": ["22:00", "06:00"]}) as door:
        settings = door.state.stages.labels
        seen = []
        original = labelling.watch
        monkeypatch.setattr("router.second_stage.watch", lambda state, settings, admitted: seen.append(admitted))
        await door.chat(ASKED, model="auto")
        (admitted,) = seen
        noon, night = 12 * 3600.0, 23 * 3600.0
        assert not labelling.wants_label(door.state, settings, admitted, noon, 0.0)
        assert labelling.wants_label(door.state, settings, admitted, night, 0.0)
        tight = replace(settings, share=0.01)
        assert labelling.wants_label(door.state, tight, admitted, night, 0.0099)
        assert not labelling.wants_label(door.state, tight, admitted, night, 0.01)
        assert original is not None


async def test_only_the_tenants_that_were_named(home):
    keys = [{"id": "front", "sha256": digest(KEY), "tenant": "clinic"}]
    async with loop(home, keys=keys, labels={"tenants": ["bank"]}) as door:
        assert (await door.chat(ASKED, model="auto")).status_code == 200
        assert door.state.receipts._watched == {} and not door.engines["large"].requests


async def test_an_answer_that_fails_is_said_and_nothing_is_kept(home):
    async with loop(home) as door:
        door.engines["large"].status = "500 Internal Server Error"
        assert (await ask(door))["why"] == "did not answer"
        assert await kept(door, home) == [] and door.state.labels_running == 0


@pytest.mark.parametrize("fault", ["follow_up", "make_label", "score_answers"])
async def test_a_fault_of_ours_costs_a_label_and_no_answer(home, monkeypatch, caplog, fault):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(ASKED)

    monkeypatch.setattr(labelling, fault, fail)
    async with loop(home, judge=Judge("spindle")) as door:
        response = await door.chat(ASKED, model="auto")
        assert response.status_code == 200
        async with asyncio.timeout(10):
            while door.state.labels_running or len(door.state.inflight) or "RuntimeError" not in caplog.text:
                await asyncio.sleep(0.01)
        assert SECRET_WORDS[0] not in caplog.text and await kept(door, home) == []
        assert (await door.chat(ASKED, model="auto")).status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [{"zone": "nowhere"}, {"zone": "cloud"}, {"zone": "eu", "judge": "gpt"}, {"zone": "eu", "share": 0},
     {"zone": "eu", "between": ["22:00"]}, {"zone": "eu", "duties": ["none"]}, {}],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"complexity[.\w]*"):
        make_config(complexity={"labels": wrong})


@pytest.mark.parametrize(
    "text", ["prompt\nx\n", "prompt,answer\nx,\n", "prompt,pattern\nx,(\n", "prompt,answer,pattern\nx,a,b\n"]
)
async def test_known_answers_that_cannot_be_read_are_refused_with_their_line(home, text):
    (home / "known.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"known.csv:\d"):
        async with loop(home, labels={"references": str(home / "known.csv")}):
            pytest.fail("it started")


def label_of(text: str, small: float = 0.0, large: float = 1.0, now: float = 1e9) -> Label:
    return make_label(read_features(text), small, large, "import", now)


def test_a_crash_in_the_middle_of_a_line_costs_that_line_only(tmp_path):
    path = tmp_path / "2026-01-a.labels.jsonl"
    append_labels(path, [label_of("one"), label_of("two")])
    path.write_bytes(path.read_bytes()[:-20])
    assert len(list(read_labels(tmp_path))) == 1
    append_labels(path, [label_of("three")])
    assert [list(label.places) for label in read_labels(tmp_path)] == [list(label_of(text).places) for text in ("one", "three")]


@pytest.mark.parametrize(
    "change", [{"small": 2.0}, {"large": -1.0}, {"v": 9}, {"by": "guess"}, {"values": [1.0]}, {"buckets": "AA"}]
)
def test_a_damaged_line_is_named(tmp_path, change):
    path = tmp_path / "2026-01-a.labels.jsonl"
    append_labels(path, [label_of("one"), label_of("two")])
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps(json.loads(second) | change) + "\n")
    with pytest.raises(LabelError, match=r"a.labels.jsonl:2"):
        list(read_labels(tmp_path))


def test_old_months_are_deleted(tmp_path):
    for month in ("2025-01", "2025-11", "2026-11"):
        append_labels(tmp_path / f"{month}-a.labels.jsonl", [label_of("x")])
    gone = prune_labels(tmp_path, 365, 1_795_000_000.0)
    assert [path.name[:7] for path in gone] == ["2025-01"] and len(list(read_labels(tmp_path))) == 2


@pytest.mark.parametrize("days", [36_500, 500_000, 999_999, math.inf])
def test_labels_that_are_kept_for_ever_are_not_deleted(tmp_path, days):
    append_labels(tmp_path / "2020-01-a.labels.jsonl", [label_of("x")])
    assert prune_labels(tmp_path, days, 1_795_000_000.0) == [] and len(list(read_labels(tmp_path))) == 1


def test_the_name_of_the_feature_pass_is_worked_out_once(monkeypatch):
    wanted = label_of("one").features

    def again(text):
        raise AssertionError("read again for a name that does not change")

    monkeypatch.setattr(weights, "read_features", again)
    assert label_of("two").features == wanted == features_digest()


def test_scores_without_a_judge():
    assert score_answers("x", "y", None, None) is None
    assert score_answers("", "y", None, None).large == 1.0
    assert score_answers("{}", "no", None, Demand()).small == 1.0
    assert score_answers("no", "neither", None, Demand()) == score_answers("", " ", None, None)
    assert Reference("Lima").score("The final answer is: Lima.") == 1.0 and Reference("", r"^\d+$").score("four\udc80") == 0.0
    assert meets('```json\n{"a": 1}\n```', Demand(("a",))) and not meets("[1]", Demand(("a",)))
    assert meets('{"a": 1,' + " " * 2_000_000 + '"b": 2}', Demand(("a", "b")))  # one look at each space, not one for each pair


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("A", 1),
        (" b.", -1),
        ("TIE", 0),
        ("Answer B is better: B", -1),
        ("<think>A A A</think>B", -1),
        ("a fine answer", None),
        ("", None),
    ],
)
def test_what_a_judge_says(said, verdict):
    assert read_verdict(said) == verdict


def test_only_two_readable_verdicts_settle():
    assert settle(None, 1) is None and settle(1, None) is None and settle(0, 0).small == 0.5
