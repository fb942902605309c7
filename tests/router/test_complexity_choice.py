"""Rules, shares, pins: the choice is total and ordered, the same for the same input, and never touches residency."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from router.complexity.books import ComplexityBooks
from router.complexity.calibrate import WINDOW, Wish, first_track, share_for_loss, step, upper_quantile
from router.complexity.choose import Asker, judge_request, start_track
from router.complexity.peel import MAX_CHARS, MAX_SEARCHED, peel_request, peel_text
from router.complexity.pin import conversation_key, keep_or_raise
from router.complexity.rules import first_match
from router.config import ConfigError
from router.decide import decide
from router.decision import Complexity
from router.explain import describe_complexity, describe_decision
from router.facts import gather_facts, judge_complexity
from router.placement.targets import Endpoint, Kind, Load
from tests.router.builders import NOW, SPILL_KEY, grant_of, make_facts, make_policy, make_target, make_view

RULES = [
    {"name": "night", "when": {"between": ["22:00", "06:00"]}, "tier": "small"},
    {"name": "images", "when": {"images": True}, "model": "big"},
    {"name": "code", "when": {"code": True, "min_tokens": 5}, "tier": "large"},
    {"name": "german", "when": {"languages": ["de"]}, "tier": "large"},
    {"name": "asked", "when": {"headers": {"X-Depth": "deep"}}, "tier": "large"},
    {"name": "tools", "when": {"tools": True}, "leave": True},
    {"name": "short", "when": {"max_tokens": 3}, "tier": "small"},
]
DAY = 1_800_014_400.0  # 12:00 UTC
POLICY = make_policy(complexity={"rules": RULES, "share": 0.3})
PLAN = POLICY.plan


def ask(text, **more):
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **more}


def judged(body, now=DAY, tokens=50, **asker):
    return judge_request(body, tokens, PLAN, start_track(PLAN), Asker("k", "t", now, **asker))


def test_the_first_rule_that_matches_decides():
    assert judged(ask("```x = 1```")).rule == "code"
    assert judged(ask("```x = 1```"), tokens=4).rule == ""
    assert judged(ask("```x = 1```"), now=DAY + 11 * 3600).rule == "night"
    assert judged(ask("Was ist die Hauptstadt von Frankreich und wie groß ist sie?")).rule == "german"
    assert judged(ask("hi"), headers={"x-depth": "deep"}).rule == "asked"
    picture = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "```"}]
    found = judged(ask(picture))
    assert (found.rule, found.model) == ("images", "big")
    assert judged(ask([{"image_url": {"url": "x"}}])).rule == "images", "vLLM takes parts that do not name their type, too"
    assert judged(ask("hi", tools=[{}]), tokens=2).rule == ""  # `leave` ends the rules: `short` is not reached
    assert judged(ask("hi"), tokens=2).rule == "short"
    assert "rule `short` asks for tier small" in judged(ask("hi"), tokens=2).reasons


anything = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=40) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "type", "messages", "format"]), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = st.dictionaries(
    st.sampled_from(["messages", "prompt", "input", "tools", "response_format", "system", "instructions", "text"]), anything
)


@given(bodies, st.integers(0, 10**7), st.floats(0, 4e9))
@settings(max_examples=200, deadline=None)
def test_any_body_gets_one_tier_and_the_same_again(body, tokens, now):
    first = judged(body, now, tokens)
    assert first.tier in PLAN.tiers and first.reasons
    assert first == judged(body, now, tokens)


@given(st.permutations(range(len(RULES))), st.text(max_size=60), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_rules_are_ordered_whatever_their_order(order, text, tokens):
    from router.complexity.features import read_features
    from router.complexity.rules import matches, read_shape

    body = ask(text)
    asked = peel_request(body)
    shape = read_shape(body, asked, read_features(asked.text), tokens, "general", "k", "t", DAY, {})
    rules = tuple(PLAN.rules[i] for i in order)
    expected = next((rule for rule in rules if matches(rule, shape)), None)
    assert first_match(rules, shape) is expected


@given(
    st.text(max_size=80), st.sampled_from(["", "small", "large", "no-such-tier"]), st.sampled_from(["", "tiny", "big", "no-such"])
)
@settings(max_examples=100, deadline=None)
def test_complexity_never_widens_what_residency_allows(text, tier, model):
    phi = POLICY.tags["phi"].meet(grant_of(POLICY, SPILL_KEY).ceiling)
    targets = [
        (make_target(POLICY, "eu-big", "eu", "big", duties=["baa"]), Load()),
        (make_target(POLICY, "eu-tiny", "eu", "tiny"), Load()),
        (make_target(POLICY, "us-big", "us", "big", duties=["baa"]), Load()),
        (make_target(POLICY, "out", "cloud", kind=Kind.CLOUD, models={"tiny": "t", "big": "b"}, duties=["baa"]), Load()),
    ]
    facts = make_facts(POLICY, SPILL_KEY, model="auto", label=phi, complexity=Complexity(tier, 0.0, (text,), model))
    decision = decide(facts, POLICY, make_view(*targets), NOW)
    assert decision.chosen is None or decision.chosen.target.id == "eu-big"
    live = gather_facts("r", grant_of(POLICY), Endpoint.CHAT, ask(text), phi, POLICY)
    assert live.label is phi


def test_a_preferred_model_comes_first_where_it_may_serve():
    view = make_view((make_target(POLICY, "a", "eu", "tiny"), Load()), (make_target(POLICY, "b", "eu", "big"), Load()))
    small = make_facts(POLICY, model="auto", complexity=Complexity("small", 0.0))
    assert decide(small, POLICY, view, NOW).chosen.model == "tiny"
    assert decide(replace(small, complexity=Complexity("small", 0.0, (), "big")), POLICY, view, NOW).chosen.model == "big"


def test_what_may_not_stand_in_a_configuration():
    for section, message in (
        ({"rules": [{"name": "x", "tier": "huge"}]}, "unknown tier `huge`"),
        ({"rules": [{"name": "x", "model": "huge"}]}, "unknown model `huge`"),
        ({"rules": [{"name": "x"}]}, "exactly one of"),
        ({"rules": [{"name": "x", "tier": "small"}, {"name": "x", "tier": "large"}]}, "same name"),
        ({"rules": [{"name": "x", "tier": "small", "when": {"between": ["25:00", "1"]}}]}, "two times of day"),
        ({"rules": [{"name": "x", "tier": "small", "when": {"between": ["22:00", "22:00"]}}]}, "there is no time"),
        ({"rules": [{"name": "x", "tier": "small", "when": {"min_tokens": 9, "max_tokens": 8}}]}, "no prompt has"),
        (
            {"rules": [{"name": "x", "tier": "small", "when": {"domains": ["cooking"]}}]},
            "unknown domain `cooking`; there",
        ),
        ({"rules": [{"name": "x", "tier": "small", "when": {"languages": ["DE"]}}]}, "unknown language `DE`; there are en, de"),
        ({"rules": [{"name": "x", "tier": "small", "when": {"lenght": 3}}]}, "unknown key"),
        ({"tiers": ["small", "small"]}, "named twice"),
        ({"share": 1.5}, "between 0 and 1"),
        ({"share": {"tiny": 0.5}}, "no tier above the smallest"),
        ({"share": 0.3, "price": 0.1}, "one of `share`"),
        ({"share": 0.3, "weights": "none.tgcw"}, "cannot read the weights"),
        ({"share": 0.3, "head": "other"}, "no gain `other`"),
        ({"domains": {"cooking": "big"}}, "unknown domain `cooking`"),
        ({"domains": {"code": "huge"}}, "unknown model `huge`"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_policy(complexity=section)


def test_without_a_wish_the_first_rule_decides_as_before():
    assert make_policy().plan is None
    only_rules = make_policy(complexity={"rules": [{"name": "deep", "when": {"min_tokens": 100}, "tier": "large"}]})
    assert judge_complexity(ask("hello"), 5, only_rules).tier == "small"
    assert judge_complexity(ask("hello"), 500, only_rules).tier == "large"


def test_explain_says_what_moved_the_gain():
    policy = make_policy(complexity={"share": 0.3})
    body = ask("How many apples are left if Ann eats 3 of 12 apples each day?")
    facts = gather_facts("r", grant_of(policy), Endpoint.CHAT, body, grant_of(policy).ceiling, policy)
    decision = decide(facts, policy, make_view((make_target(policy, "a", "eu"), Load())), NOW)
    shown = describe_decision(facts, decision, policy, ())["complexity"]
    assert "expected gain" in shown["reasons"][0] and "threshold" in shown["reasons"][1]
    gain = describe_complexity(body, facts, policy)["gain"]
    assert sum(term["weight"] for term in gain["terms"]) + gain["others"] == pytest.approx(gain["expected_gain"], abs=1e-6)
    assert gain["expected_gain"] == pytest.approx(facts.complexity.score, abs=1e-4)


def run_share(track, wish, gains, boundaries=1):
    tiers = []
    for gain in gains:
        taken = step(track, wish, gain, boundaries)
        track = taken.track
        tiers.append(taken.tier)
    return track, tiers


@given(st.integers(0, 1000), st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.9]))
@settings(max_examples=30, deadline=None)
def test_a_share_is_held_before_and_300_requests_after_a_shift(seed, share):
    dice = random.Random(seed)
    track = first_track(tuple(i / 100 for i in range(101)), 1)
    track, before = run_share(track, Wish(shares=(share,)), [dice.gauss(0.1, 0.1) for _ in range(1000)])
    assert abs(sum(before) / 1000 - share) <= 0.02
    mean, spread = dice.uniform(-1, 1), dice.choice([0.0, 0.01, 0.5])
    track, after = run_share(track, Wish(shares=(share,)), [dice.gauss(mean, spread) for _ in range(1300)])
    assert abs(sum(after[300:]) / 1000 - share) <= 0.02
    assert len(track.window) <= WINDOW and sorted(track.window) == list(track.ordered)


def test_three_tiers_hold_two_shares():
    dice = random.Random(1)
    _, tiers = run_share(first_track((0.0,) * 101, 2), Wish(shares=(0.4, 0.1)), [dice.random() for _ in range(3000)], 2)
    late = tiers[500:]
    assert abs(late.count(2) / 2500 - 0.1) < 0.02 and abs(late.count(1) / 2500 - 0.3) < 0.02


def test_no_more_quality_is_given_up_than_allowed():
    dice = random.Random(2)
    gains = [dice.gauss(0.05, 0.1) for _ in range(3000)]
    _, tiers = run_share(first_track((0.0,) * 101, 1), Wish(max_loss=0.02), gains)
    lost = sum(max(0.0, gain) for gain, tier in zip(gains[300:], tiers[300:], strict=True) if tier == 0) / 2700
    assert 0.01 < lost <= 0.025
    assert share_for_loss([], 0.1) == 1.0 and share_for_loss([0.1, 0.2], 1.0) == 0.0 and upper_quantile([], 0.3) == 0.0
    assert step(first_track((0.0,) * 101, 1), Wish(price=0.1), 0.2, 1).tier == 1


def test_wrappers_are_peeled_off():
    wrapped = "<system-reminder>long rules " + "x " * 500 + "</system-reminder>\nfix the typo"
    assert peel_text(wrapped) == "fix the typo"
    assert peel_text("<environment_details>a</environment_details><task>add a test</task>") == "add a test"
    assert peel_text("why is <context> never closed?") == "why is <context> never closed?"
    template = "Use the context.\nContext:\n" + "words " * 200 + "\nQuestion: What is the capital of Peru?"
    assert peel_text(template) == "What is the capital of Peru?"
    assert len(peel_text("z" * 8_000_000)) <= MAX_CHARS + 1
    only = {"messages": [{"role": "user", "content": "the question"}, {"role": "user", "content": "<context>x</context>"}]}
    assert peel_request(only).text == "the question"
    assert peel_request({"messages": [{"role": "assistant", "content": "x"}]}).text == ""
    assert peel_request({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hey"}]}]}).text == "hey"


@pytest.mark.parametrize(
    "text",
    [
        ("<task>" + " " * 7000) * 2 + "</x>",  # an expression that takes spaces in three places took a quarter of an hour
        "<task>" * 2000 + "</query>",
        "<query>" * 1000 + "<env>" * 1000 + "</task>",
        "<task> \n</task>" * 900,
    ],
)
def test_tags_that_say_nothing_leave_a_text_as_it_is(text):
    assert peel_text(text) == text.strip()


# No line breaks: a line that begins with `<query>` is the label of a template.
_PIECES = ["<task>", "</task>", "<query>", "</query>", "why", " ", "\t", "z" * 5000]
_TAGGED = re.compile(r"<(task|query)>\s*(.{1,8000}?)\s*</\1>", re.S)


@given(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
@example("<task> " + "z" * 8000 + "\n</task>")
@example("<task>" + "z" * 8001 + "</task><query>why</query>")
@settings(deadline=None)
def test_the_first_pair_of_tags_with_a_text_in_it_is_the_question(text):
    assume(not re.search(r"<(task|query)>\s*</\1>", text) and len(text) <= MAX_CHARS)
    found = _TAGGED.search(text)
    assert peel_text(text) == (found[2] if found else text.strip())


def test_earlier_turns_are_looked_at_until_enough_has_been_read():
    def asked(count):
        wrappers = [{"role": "user", "content": "<env>" + "x" * MAX_CHARS + "</env>"}] * count
        return peel_request({"messages": [{"role": "user", "content": "the question"}, *wrappers]}).text

    most = MAX_SEARCHED // MAX_CHARS
    assert asked(most - 1) == "the question"
    assert asked(most) == ""


def talk(*texts):
    turns = []
    for text in texts:
        turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return {"model": "auto", "messages": turns[:-1]}


def test_a_conversation_keeps_its_model_until_it_becomes_harder():
    pinned, _ = keep_or_raise(None, 0, 0.0, (0.1,), "", 1, 0.0)
    same, why = keep_or_raise(pinned, 1, 0.11, (0.1,), "", 3, 1.0)
    assert same.tier == 0 and "not clearly" in why
    up, _ = keep_or_raise(same, 1, 0.2, (0.1,), "", 5, 2.0)
    assert up.tier == 1
    assert keep_or_raise(up, 0, -0.5, (0.1,), "", 7, 3.0)[0].tier == 1  # never down again
    assert keep_or_raise(up, 0, -0.5, (0.1,), "", 7, 9999.0)[0].tier == 0  # but after an hour's sleep judged anew


@given(st.lists(st.floats(-0.3, 0.5), min_size=2, max_size=30))
def test_a_conversation_changes_its_tier_at_most_once_per_boundary(gains):
    pinned, tiers = None, []
    for turn, gain in enumerate(gains):
        pinned, _ = keep_or_raise(pinned, int(gain > 0.1), gain, (0.1,), "", turn * 2 + 1, float(turn))
        tiers.append(pinned.tier)
    assert tiers == sorted(tiers)


def test_books_remember_counts_and_hashes_only():
    books = ComplexityBooks()
    secret_text = "Patient Smith has a rash"
    for _ in range(5):
        books.judge(talk(secret_text, "and now?"), 20, PLAN, Asker("k", "t", DAY))
    assert "Smith" not in repr(vars(books)) and "rash" not in repr(vars(books))
    assert conversation_key(talk("a"), "k", b"s") != conversation_key(talk("a"), "other", b"s")
    assert conversation_key(talk("a"), "k", b"s") == conversation_key(talk("a", "b"), "k", b"s")
    assert conversation_key({"prompt": "x"}, "k", b"s") is None
