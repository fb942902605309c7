"""The classifier finds what identifies people and opens doors, however it is written, and can only tighten."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import ConfigError
from router.placement.targets import Membership
from router.residency.classify import rule
from router.residency.classify.cache import Outcome, OutcomeCache
from router.residency.classify.detector import Seen, SocketDetector, serve_detector
from router.residency.classify.fold import fold, make_table
from router.residency.classify.kinds import Kind, Scan
from router.residency.classify.rule import Classifier, Rules, compile_rules, distinct_evidence, needed
from router.residency.classify.scan import SLICE, YIELD_AFTER_S, Scanner
from router.residency.classify.texts import texts_of
from router.residency.label import Evidence, Label
from tests.router.builders import make_config, make_policy, make_target

SCANNER = Scanner()
TABLE = make_table()
CARD = "4111 1111 1111 1111"


def kinds(text: str) -> set[str]:
    return {finding.kind.value for finding in SCANNER.scan(text).findings}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"my card is {CARD}", "card"),
        ("5500005555555559", "card"),
        ("amex 3782 822463 10005", "card"),
        ("IBAN DE89 3704 0044 0532 0130 00 bitte", "iban"),
        ("gb29nwbk60161331926819", "iban"),
        ("SSN 123-45-6789", "national_id"),
        ("PESEL 44051401359", "national_id"),
        ("Steuer-ID 86095742719", "tax_id"),
        ("身份证号 11010519491231002X", "national_id"),
        ("DNI 12345678Z", "national_id"),
        ("RSSMRA85T10A562S", "tax_id"),
        ("131052-308T", "national_id"),
        ("NHS 943 476 5919", "health_id"),
        ("MRN: 00123456", "health_id"),
        ("Diagnose: F32.1 G", "diagnosis"),
        ("Passport No. C01X00T47", "passport"),
        ("L898902C36UTO7408122F1204159ZE184226B<<<<<10", "passport"),
        ("geboren am 12. März 1985", "birth_date"),
        ("生年月日：1985年3月12日", "birth_date"),
        ("+49 30 901820", "phone"),
        ("电话 13812345678", "phone"),
        ("bob (at) corp (dot) example", "email"),
        ("login from 93.184.216.34", "ip_address"),
        ("ghp_x7Kq2mVb9TzR4wLc8NpYd3HsJf6GaE1uQoXi", "secret"),
        ("postgres://app:hunter2x@db.internal/x", "secret"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----", "secret"),
        ("the password is hunter2!", "password"),
        ('{"customer_ssn": "123456789"}', "national_id"),
    ],
)
def test_what_is_found(text: str, kind: str):
    assert kind in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "order 4711-1234567 shipped 2024-05-01 10:22:33",
        "upgrade from 10.0.19045.3 to 1.2.3.4 build 20240501",
        "trace 550e8400-e29b-41d4-a716-446655440000",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "ISBN 978-3-16-148410-0",
        "pi is 3.14159265358979, c is 299792458",
        "api_key = 'YOUR_API_KEY_HERE'",
        "password: ********",
        "127.0.0.1:8080 and 192.168.1.20",
        "git clone git@github.com:org/repo.git",
        "a token bucket with 1000 tokens; the password is required",
        "x" * 5000,
        "",
    ],
)
def test_what_is_left_alone(text: str):
    assert kinds(text) == set()


@pytest.mark.parametrize(
    "written",
    [
        "４１１１１１１１１１１１１１１１",
        "٤١١١ ١١١١ ١١١١ ١١١١",
        "4\u200b111\u200b1111\u200b1111\u200b1111",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "4111\u00a01111\u20111111\u20111111",
        "④①①① ①①①① ①①①① ①①①①",
        "4\u03321\u03321\u03321\u0332 1111 1111 1111",
        "𝟒𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏",
        quote(CARD, safe=""),
        "".join(f"&#{ord(c)};" for c in CARD),
        "".join(f"\\u{ord(c):04x}" for c in CARD),
        base64.b64encode(f"card {CARD} of Ann".encode()).decode(),
        base64.b64encode(CARD.replace(" ", "").encode()).decode().rstrip("="),
        CARD.replace(" ", "&nbsp;"),
        "".join(f"&#{ord(c):07d};" for c in CARD),
        "4111 1111 \r\n> 1111 1111",
        "4111-1111-1111-\n1111",
        "4111 1111\u20281111 1111",
        "3782 822463\n10005",
    ],
)
def test_disguises(written: str):
    scan = SCANNER.scan(f"card {written} please")
    [finding] = [f for f in scan.findings if f.kind is Kind.CARD]
    assert f"card {written} please"[finding.start : finding.end] == written


@pytest.mark.parametrize(
    "written",
    [
        "DE89 3704 0044\n0532 0130 00",
        "DE89 3704 0044 \r\n> 0532 0130 00",
        "DE89\u2028370400440532013000",
        "**DE89** 3704 0044 0532 0130 00",
        "DE89&nbsp;3704&nbsp;0044&nbsp;0532&nbsp;0130&nbsp;00",
    ],
)
def test_an_iban_is_found_as_mails_documents_and_web_pages_write_it(written: str):
    assert "iban" in kinds(f"Please pay to {written} by Friday")


def test_a_column_of_numbers_is_no_card():
    assert kinds("\n".join(["4111", "1111", "1111", "1111"] * 50)) == set()


def test_look_alike_letters_do_not_hide_an_iban():
    assert "iban" in kinds("DЕ89370400440532013000".replace("D", "D"))
    assert "iban" in kinds("ＤＥ89 3704 0044 0532 0130 00")


@settings(max_examples=60, deadline=None)
@given(before=st.integers(0, 2 * SLICE + 300), word=st.sampled_from(["a ", "é ", "я ", "日", "\u200dx "]))
def test_an_identifier_is_found_wherever_the_slices_are_cut(before: int, word: str):
    text = (word * before)[:before] + f" {CARD} " + word * 40
    assert any(text[f.start : f.end] == CARD for f in SCANNER.scan(text).findings)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=80))
def test_any_text_can_be_scanned_and_positions_lie_inside(text: str):
    for finding in SCANNER.scan(text).findings:
        assert 0 <= finding.start < finding.end <= len(text)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.data())
def test_a_folded_part_leads_back_to_what_it_was_folded_from(text: str, data: st.DataObject):
    folded = fold(text, TABLE)
    if not folded.text:
        return
    start = data.draw(st.integers(0, len(folded.text) - 1))
    low, high = folded.span(start, start + 1)
    assert folded.text[start] in fold(text[low:high], TABLE).text


def test_text_with_too_many_candidates_is_unknown_not_clean():
    assert SCANNER.scan("+4930901820 " * 2000).unknown == "budget"
    assert SCANNER.scan("4" + "\u200b" * 30 + "111").unknown == "budget"


class Searched(str):
    """A text that counts the characters that searches in it went through."""

    seen = 0

    def find(self, wanted: str, start: int = 0, *end: int) -> int:  # type: ignore[override]
        found = super().find(wanted, start, *end)
        self.seen += (len(self) if found < 0 else found) - start
        return found


@pytest.mark.parametrize("unit", ["PRIVATE KEY", "-----BEGIN PRIVATE KEY", "-----BEGIN PRIVATE KEY-----END"])
def test_a_text_that_often_mentions_keys_is_read_in_linear_time(unit: str):
    text = Searched(unit * 2000)
    SCANNER.scan(text)
    assert text.seen <= 3 * len(text)


async def test_the_loop_gets_its_turn_between_slices():
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await SCANNER.scan_gently("Съешь ещё этих мягких французских булок. " * 2500)
    task.cancel()
    assert turns > 5


def test_countries_limit_what_is_looked_for():
    assert not Scanner(countries=["de"]).scan("44051401359").findings
    assert Scanner(countries=["pl"]).scan("44051401359").findings


# ---- rules


LOCAL, EU, ANY = Label(0b0010, 0b0010), Label(0b0110, 0b0110), Label(0b1110, 0b1110)
RULES = Rules(((frozenset({Kind.CARD}), EU), (frozenset({Kind.SECRET}), LOCAL)), LOCAL, LOCAL)


def make_classifier(**changes: object) -> Classifier:
    return Classifier(RULES, SCANNER, OutcomeCache(b"k" * 32), **changes)  # type: ignore[arg-type]


def chat(*contents: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": content} for content in contents]}


async def test_findings_tighten_and_name_their_kinds():
    verdict = await make_classifier().tighten(ANY, chat("hello", f"charge {CARD}"))
    assert (verdict.label, verdict.kinds, verdict.unknown) == (EU, ("card",), "")
    assert (await make_classifier().tighten(ANY, chat("hello"))).label == ANY


async def test_what_cannot_be_judged_is_the_worst():
    for body in (
        chat("+4930901820 " * 2000),
        chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]),
        {"model": "m", "prompt": [1, 2, 3]},
        {"model": "m", "prompt": [[1, 2], [3]]},
    ):
        verdict = await make_classifier().tighten(ANY, body)
        assert verdict.label == LOCAL and verdict.unknown


async def test_more_than_may_be_looked_at_is_unknown():
    verdict = await make_classifier(most=1000).tighten(ANY, chat("hello ", "word " * 300))
    assert (verdict.label, verdict.unknown) == (LOCAL, "budget")


async def test_many_short_turns_let_the_loop_have_its_turn_too(monkeypatch):
    clock = itertools.count(0.0, YIELD_AFTER_S / 10)
    monkeypatch.setattr(rule, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # each look at it takes its time
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await make_classifier().tighten(ANY, chat(*(f"hello number {i}" for i in range(500))))
    task.cancel()
    assert turns >= 500 // 11, "of ten turns one"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 15), st.integers(0, 15), st.sampled_from(["hi", CARD, "ghp_x7Kq2mVb9TzR4wLc8NpYd3HsJf6GaE1uQoXi"]))
def test_a_verdict_never_widens(process: int, store: int, text: str):
    label = Label(process, store)
    assert asyncio.run(make_classifier().tighten(label, chat(text))).label.is_within(label)


def test_a_scan_is_needed_only_where_it_could_change_the_answer():
    at_home, abroad = Evidence(0b0010, 0b0010), Evidence(0b1000, 0b1000)
    assert needed(RULES, ANY, [at_home, abroad], 0.0)
    assert not needed(RULES, ANY, [at_home], 0.0)
    assert not needed(RULES, LOCAL, [at_home, abroad], 0.0)
    assert not needed(RULES, ANY, [Evidence(0b1000, 0b1000, expires=-1.0)], 0.0)


def test_evidence_is_asked_about_once_for_all_that_share_it():
    policy = make_policy()
    targets = tuple(make_target(policy, f"t{i}", ("eu", "us")[i % 2]) for i in range(20))
    membership = Membership(1, targets)
    assert len(distinct_evidence(membership)) == 2
    assert distinct_evidence(membership) is distinct_evidence(membership)


def test_every_place_a_client_can_write_to_is_read():
    canary = "zq-canary-"
    body = {
        "model": "m",
        "messages": [
            {"role": "system", "content": canary + "1"},
            {"role": "user", "name": canary + "2", "content": [{"type": "text", "text": canary + "3"}]},
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": canary + "4"}}]},
            {"role": "tool", "tool_call_id": canary + "5", "content": canary + "6"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {canary + "7": {"description": canary + "8"}}}}],
        "metadata": {"k": canary + "9"},
        "user": canary + "10",
        "instructions": canary + "11",
        "input": [{"content": [{"type": "input_text", "text": canary + "12"}]}],
        "stop": [canary + "13"],
        "system": [{"type": "text", "text": canary + "14"}],
        "documents": [{"text": canary + "15"}],
        "reasoning_effort": canary + "16",
    }
    everything = "\n".join(item.text for item in texts_of(body))
    assert all(f"{canary}{i}" in everything for i in range(1, 17))


async def test_a_number_split_over_parts_is_one_number():
    parts = [{"type": "text", "text": "card 4111 1111"}, {"type": "text", "text": "1111 1111"}]
    assert (await make_classifier().tighten(ANY, chat(parts))).kinds == ("card",)


async def test_old_turns_come_from_the_cache():
    class Counting:
        calls = 0

        async def detect(self, text: str) -> Scan:
            self.calls += 1
            return Scan()

    detector = Counting()
    classifier = make_classifier(detector=detector)
    await classifier.tighten(ANY, chat("one", "two"))
    await classifier.tighten(ANY, chat("one", "two", "three"))
    assert detector.calls == 3


def test_the_cache_is_bounded_and_keyed():
    cache = OutcomeCache(b"a" * 32, entries=2)
    for text in "abc":
        cache.put(cache.digest(text), Outcome())
    assert len(cache) == 2 and cache.get(cache.digest("a")) is None
    assert OutcomeCache(b"b" * 32).digest("a") != cache.digest("a")


# ---- a detector in a process of its own


async def test_a_detector_behind_a_socket_adds_its_findings(tmp_path: Path):
    async def detect(text: str) -> list[Seen]:
        at = text.find("Ann")
        return [Seen("person", at, at + 3, 0.9)] if at >= 0 else []

    server = await serve_detector(str(tmp_path / "d"), detect)
    detector = SocketDetector(str(tmp_path / "d"), 2.0)
    [finding] = (await detector.detect("Dear Ann")).findings
    assert (finding.kind, finding.start, finding.end) == (Kind.OTHER, 5, 8)
    rules = Rules(((frozenset({Kind.OTHER}), LOCAL),), LOCAL, LOCAL)
    verdict = await Classifier(rules, SCANNER, OutcomeCache(b"k" * 32), detector).tighten(ANY, chat("Dear Ann"))
    assert verdict.label == LOCAL
    server.close()


async def test_a_detector_that_is_dead_slow_or_mad_is_unknown(tmp_path: Path):
    assert (await SocketDetector(str(tmp_path / "none"), 0.5).detect("x")).unknown

    async def sleep(text: str) -> list[Seen]:
        await asyncio.sleep(60)
        return []

    server = await serve_detector(str(tmp_path / "slow"), sleep)
    detector = SocketDetector(str(tmp_path / "slow"), 0.05)
    assert (await detector.detect("x")).unknown == "timeout"
    verdict = await make_classifier(detector=detector).tighten(ANY, chat("x"))
    assert verdict.label == LOCAL
    server.close()

    async def mad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff\xff\xff\xffrubbish")
        writer.close()

    server = await asyncio.start_unix_server(mad, str(tmp_path / "mad"))
    assert (await SocketDetector(str(tmp_path / "mad"), 1.0).detect("x")).unknown
    server.close()


# ---- configuration


def test_the_configuration_names_kinds_categories_and_tags():
    config = make_config(classify={"rules": [{"if": ["phi", "iban"], "meet": "phi"}, {"if": ["secret"], "meet": "local"}]})
    policy = make_policy()
    rules = compile_rules(config.classify, policy.tags)
    assert rules is not None
    assert rules.label_for(Outcome(frozenset({Kind.HEALTH_ID}))) == policy.tags["phi"]
    assert rules.label_for(Outcome(frozenset({Kind.EMAIL}))) is None
    assert rules.label_for(Outcome(unknown="budget")) == rules.tightest == policy.tags["phi"].meet(policy.tags["local"])
    assert compile_rules(make_config().classify, policy.tags) is None


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"rules": [{"if": ["ibann"], "meet": "phi"}]}, "did you mean `iban`"),
        ({"rules": [{"if": ["iban"], "meet": "phy"}]}, "did you mean `phi`"),
        ({"rules": [], "unknown": "nowhere"}, "classify.unknown"),
    ],
)
def test_a_wrong_section_is_refused(section: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        make_config(classify=section)


def test_a_request_in_json_reads_as_its_values():
    body = json.loads('{"messages":[{"role":"user","content":"x"}],"metadata":{"ssn":"123456789"}}')
    assert "national_id" in kinds("\n".join(item.text for item in texts_of(body)))
