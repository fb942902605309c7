"""What a router makes of agents' messages and of its own requests."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from router.config import ConfigError
from router.fixed_targets import fixed_targets
from router.placement.chunks import chunk_hashes, namespace
from router.placement.kv_messages import Beat, Chunks, Hello, TextProfile, pack_hashes
from router.placement.prefix import CONFIRM_AFTER_S
from router.placement.targets import Address, Endpoint, Kind, Report, Signals, Target
from router.placement.trust import SelfTest, Trust
from router.prefixes import FILLS_CACHE, Prefixes
from router.residency.label import Evidence
from tests.router.builders import make_config

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
PROFILE = TextProfile(templates={"default": TEMPLATE})
BEAT = Beat(0.2, True, 10, 16)
LONG = {"messages": [{"role": "user", "content": "a question " * 300}]}
TEXT = ("<user>" + "a question " * 300).encode()


def a_target(name: str, model: str = "m", kind: Kind = Kind.REPLICA) -> Target:
    return Target(name, name, kind, "local", Evidence(2, 2), Address("127.0.0.1", 1), {model: model})


def prefixes_with(*targets: Target, passed: bool = True) -> Prefixes:
    prefixes = Prefixes(b"s" * 32)
    prefixes.update([Report(target) for target in targets])
    for target in targets:
        if target.kind is Kind.REPLICA:
            prefixes.hear(target.incarnation, Hello(PROFILE), 0.0)
            prefixes.hear(target.incarnation, Chunks(reset=True), 0.0)
            prefixes.hear(target.incarnation, BEAT, 0.0)
            if passed:
                prefixes.tested(target.incarnation, SelfTest.PASSED)
    prefixes.tend(0.0)
    return prefixes


def stored(prefixes: Prefixes, text: bytes = TEXT, model: str = "m", space: bytes | None = None) -> Chunks:
    return Chunks(pack_hashes(chunk_hashes(prefixes.chunk_key(model), space or namespace(), text)))


def share(prefixes: Prefixes, incarnation: str, body=LONG, models=("m",)) -> float:
    return prefixes.cached(prefixes.chains(Endpoint.CHAT, body, models)).share(incarnation)


def test_what_an_agent_tells_is_found_for_the_rendered_prompt():
    prefixes = prefixes_with(a_target("a"), a_target("b"))
    prefixes.hear("a", stored(prefixes), 0.0)
    assert share(prefixes, "a") > 0.85
    assert share(prefixes, "b") == 0
    assert share(prefixes, "a", {**LONG, "cache_salt": "t"}) == 0
    salted = stored(prefixes, space=namespace(salt="t"))
    prefixes.hear("b", salted, 0.0)
    assert share(prefixes, "b", {**LONG, "cache_salt": "t"}) > 0.85


def test_a_decision_gets_tokens_by_place():
    prefixes = prefixes_with(a_target("a"), a_target("b"))
    prefixes.hear("a", stored(prefixes), 0.0)
    chains = prefixes.chains(Endpoint.CHAT, LONG, ("m",))
    held = prefixes.held_tokens(chains, 825, {"b": 0, "a": 1})
    assert list(held) == [1] and 700 < held[1] < 825
    assert prefixes.held_tokens(chains, 825, {"b": 0}) == {}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8), st.booleans()), max_size=12))
def test_what_a_decision_gets_follows_every_change(steps):
    """Places are remembered by who holds what: replicas that come, go and change places must not be taken for others."""
    prefixes = prefixes_with(a_target("a", "m"), a_target("b", "m"), a_target("c", "n"))
    whole = prefixes.chains(Endpoint.CHAT, LONG, ("m", "n"))
    hashes = whole.by_model["m"].hashes
    places = {"a": 0, "b": 1, "c": 2}
    for name, chunks, moves in steps:
        if chunks:
            prefixes.hear(name, Chunks(pack_hashes(hashes[:chunks]), reset=moves), 0.0)
        elif moves:
            places = {other: (place + 1) % 3 for other, place in places.items()}
        else:
            others = [a_target(other, "n" if other == "c" else "m") for other in "abc" if other != name]
            prefixes.update([Report(target) for target in others])
            prefixes.update([Report(target) for target in (*others, a_target(name, "m"))])
        cached = prefixes.cached(whole)
        expected = {places[held]: cached.tokens(held, 825) for held in cached.found if held in places}
        assert prefixes.held_tokens(whole, 825, places) == expected


def test_models_do_not_mix():
    prefixes = prefixes_with(a_target("a", "m"), a_target("b", "n"))
    prefixes.hear("a", stored(prefixes, model="m"), 0.0)
    prefixes.hear("b", stored(prefixes, model="n"), 0.0)
    assert share(prefixes, "a", models=("m", "n")) > 0.85 < share(prefixes, "b", models=("m", "n"))
    assert share(prefixes, "b", models=("m",)) == 0


def test_nothing_of_a_request_is_kept():
    prefixes = prefixes_with(a_target("a"))
    chains = prefixes.chains(Endpoint.CHAT, LONG, ("m",))
    assert "question" not in repr(chains)


def test_a_snapshot_replaces_what_was_said():
    prefixes = prefixes_with(a_target("a"))
    prefixes.hear("a", stored(prefixes), 0.0)
    prefixes.cut("a")
    assert share(prefixes, "a") > 0.85
    prefixes.hear("a", Chunks(reset=True), 1.0)
    assert share(prefixes, "a") == 0
    assert prefixes.trust(a_target("a"), 0.0, 1.0).trust is Trust.DEGRADED
    prefixes.hear("a", BEAT, 1.0)
    assert prefixes.trust(a_target("a"), 0.0, 1.0).trust is Trust.EXACT


def test_trust_goes_with_the_age_of_the_proof():
    prefixes, target = prefixes_with(a_target("a")), a_target("a")
    assert prefixes.trust(target, 0.0, 0.0).trust is Trust.EXACT
    assert prefixes.trust(target, 0.0, 3.0).trust is Trust.EXACT
    assert prefixes.trust(target, 0.0, 4.0).trust is Trust.DEGRADED
    assert prefixes.trust(target, None, 0.0).trust is Trust.BLIND
    prefixes.hear("a", Beat(10.0, True, 10, 16), 5.0)  # the agent lives, but the engine does not answer it
    assert prefixes.trust(target, 0.0, 5.0).trust is Trust.DEGRADED
    assert prefixes.trust(a_target("nobody"), 0.0, 5.0).trust is Trust.DEGRADED


def run_requests(prefixes: Prefixes, number: int, confirm: bool) -> None:
    for i in range(number):
        body = {"messages": [{"role": "user", "content": f"{i} " * 500}]}
        chains = prefixes.chains(Endpoint.CHAT, body, ("m",))
        prefixes.routed(chains, "m", "a")
        prefixes.computed(chains, "m", "a", 0.0)
        if confirm:
            prefixes.hear("a", Chunks(pack_hashes(chains.by_model["m"].hashes)), 0.0)
    prefixes.hear("a", BEAT, CONFIRM_AFTER_S)
    prefixes.tend(CONFIRM_AFTER_S)


@pytest.mark.parametrize(("confirm", "trust"), [(True, Trust.EXACT), (False, Trust.DEGRADED)])
def test_prompts_that_events_never_confirm_degrade(confirm, trust):
    """Such as a template that renders differently in the engine: everything looks fresh, and nothing is ever found."""
    prefixes = prefixes_with(a_target("a"))
    run_requests(prefixes, 20, confirm)
    assert prefixes.trust(a_target("a"), 0.0, CONFIRM_AFTER_S).trust is trust


def test_a_few_unconfirmed_prompts_prove_nothing():
    prefixes = prefixes_with(a_target("a"))
    run_requests(prefixes, 5, confirm=False)
    assert prefixes.trust(a_target("a"), 0.0, CONFIRM_AFTER_S).trust is Trust.EXACT


def test_an_image_conversation_is_found_where_it_was_sent():
    """No text of it is known, so history has to do; also for replicas with events, which would never confirm it."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}
    first = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]}
    second = {"messages": [*first["messages"], {"role": "assistant", "content": "A"}, {"role": "user", "content": "Sure?"}]}
    prefixes = prefixes_with(a_target("a"), a_target("b"))
    chains = prefixes.chains(Endpoint.CHAT, first, ("m",))
    assert not chains.by_model["m"].rendered
    prefixes.routed(chains, "m", "a")
    prefixes.computed(chains, "m", "a", 0.0)
    prefixes.hear("a", BEAT, 100.0)
    prefixes.tend(100.0)
    assert share(prefixes, "a", second) > 0.8
    assert share(prefixes, "b", second) == 0


def test_servers_without_an_agent_have_a_history():
    server = a_target("old", kind=Kind.SERVER)
    prefixes = prefixes_with(server)
    chains = prefixes.chains(Endpoint.CHAT, LONG, ("m",))
    prefixes.routed(chains, "m", "old")
    prefixes.computed(chains, "m", "old", 0.0)
    prefixes.tend(1000.0)
    assert share(prefixes, "old") > 0.8
    prefixes.update([])
    prefixes.update([Report(server)])
    assert share(prefixes, "old") == 0


def test_where_the_prefix_cache_is_switched_off_nothing_is_taken_to_be_cached():
    """Else all that begin alike would queue up there, to be computed one after the other, while other engines are idle."""
    server = a_target("old", kind=Kind.SERVER)
    prefixes = prefixes_with(server)
    chains = prefixes.chains(Endpoint.CHAT, LONG, ("m",))
    prefixes.routed(chains, "m", "old")
    off, on = (Report(server, Signals(1.0, keeps_prefixes=keeps)) for keeps in (False, True))
    prefixes.update([off])
    assert share(prefixes, "old") == 0, "it was restarted with other options"
    prefixes.routed(chains, "m", "old")
    prefixes.update([Report(server)])
    prefixes.failed(chains, "m", "old")
    assert share(prefixes, "old") == 0, "without gauges the last word holds"
    assert prefixes.trust(server, 0.5, 1.0).reason == "its prefix cache is switched off"
    prefixes.update([on])
    prefixes.routed(chains, "m", "old")
    assert share(prefixes, "old") > 0.8
    prefixes.update([Report(replace(server, keeps_prefixes=False))])
    assert share(prefixes, "old") == 0, "or the configuration says so"
    prefixes.update([Report(server)])
    prefixes.routed(chains, "m", "old")
    assert share(prefixes, "old") > 0.8


@pytest.mark.parametrize(("tokens", "kept"), [(0, 30), (12_000, 12), (200_000, 30)])
def test_a_small_cache_has_only_what_was_sent_there_last(tokens, kept):
    """Thirty texts of a thousand tokens: an engine that has room for twelve computes the others anew."""
    server = a_target("old", kind=Kind.SERVER)
    prefixes = prefixes_with(server)
    bodies = [{"messages": [{"role": "user", "content": f"{number} " * 2000}]} for number in range(100, 130)]
    for _ in range(3):
        for body in bodies:
            prefixes.routed(prefixes.chains(Endpoint.CHAT, body, ("m",)), "m", "old")
        prefixes.update([Report(server, Signals(1.0, cache_tokens=tokens * 2))])
    assert sum(share(prefixes, "old", body) > 0.9 for body in bodies) == pytest.approx(kept, abs=2)


def test_a_failed_attempt_is_taken_back():
    prefixes = prefixes_with(a_target("a"))
    chains = prefixes.chains(Endpoint.CHAT, LONG, ("m",))
    prefixes.routed(chains, "m", "a")
    assert share(prefixes, "a") > 0.85
    prefixes.failed(chains, "m", "a")
    assert share(prefixes, "a") == 0


def test_only_what_could_become_exact_is_tested():
    prefixes = prefixes_with(a_target("a"), a_target("b"), passed=False)
    prefixes.hear("b", Hello(TextProfile(problem="no exact text")), 0.0)
    prefixes.hear("b", BEAT, 0.0)
    assert prefixes.awaiting_test(0.0) == ["a"]
    assert prefixes.awaiting_test(10.0) == []


NAMES = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "tool_call_id",
        "self",
        "messages",
        "bos_token",
    ]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["user", "tool", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | NAMES, inner, max_size=5),
    max_leaves=20,
)
BODY_NAMES = st.sampled_from(
    ["messages", "tools", "prompt", "input", "system", "chat_template_kwargs", "reasoning_effort", "documents", "cache_salt"]
)


FUZZED = prefixes_with(a_target("a"))


@settings(max_examples=300)
@given(st.dictionaries(BODY_NAMES, JSON | st.lists(st.dictionaries(NAMES, JSON))), st.sampled_from(sorted(FILLS_CACHE)))
def test_no_body_can_break_it(body, endpoint):
    """What cannot be rendered is the engine's to refuse; here it only is not known."""
    FUZZED.cached(FUZZED.chains(endpoint, body, ("m",)))


def test_strange_bodies_do_no_harm():
    prefixes = prefixes_with(a_target("a"))
    for body in (
        {},
        {"messages": 1},
        {"prompt": [1, 2]},
        {"messages": [None]},
        {"input": {"a": "\ud800"}},
        json.loads("[{}]")[0],
    ):
        for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES):
            prefixes.cached(prefixes.chains(endpoint, body, ("m", "unknown")))
    prefixes.hear("nobody", BEAT, time.monotonic())


def test_the_configuration_says_of_a_server_that_it_has_no_prefix_cache():
    server = {"id": "s", "kind": "server", "url": "http://127.0.0.1:9", "zone": "eu", "models": {"m": "m"}, "vouched": True}
    [target] = fixed_targets(make_config(targets=[{**server, "prefix_cache": False}]), None, "")
    assert not target.keeps_prefixes
    with pytest.raises(ConfigError, match="prefix_cache: only of a `server`"):
        make_config(targets=[{**server, "kind": "cloud", "url": "https://x.invalid", "vouched": False, "prefix_cache": False}])
