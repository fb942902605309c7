"""LoRA adapters: named like models, kept to the rules of their base model, sent where they are ready, cached apart."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from router.config import ConfigError
from router.decide import decide
from router.explain import describe_cluster
from router.placement.adapters import LOAD_S, AdapterBook
from router.placement.kv_messages import Beat, Chunks, Hello, TextProfile, pack_hashes
from router.placement.targets import Endpoint, Load, Report, Signals
from router.placement.trust import SelfTest
from router.prefixes import Prefixes
from tests.router.builders import KEY, NOW, SPILL_KEY, digest, make_config, make_facts, make_policy, make_target, make_view
from tests.router.conftest import open_front_door

ADAPTERS = [{"id": "law", "source": "x/law"}, {"id": "med", "source": "x/med"}]
MODELS = [
    {"id": "tiny", "source": "x/tiny", "adapters": ADAPTERS, "replicas": [{"zone": "eu"}, {"zone": "us"}]},
    {"id": "big", "source": "x/big", "replicas": [{"zone": "eu"}, {"zone": "us"}]},
]
NAMES = {name: name for name in ("tiny", "law", "med")}
BASES = {"law": "tiny", "med": "tiny"}


def adapted(**changes):
    return make_policy(**{"models": MODELS, "residency": {}, **changes})


def engine(policy, name, zone="eu", **more):
    return make_target(policy, name, zone, models=NAMES, adapters=BASES, **more)


def test_an_adapter_is_a_model_that_requests_name():
    policy = adapted()
    assert policy.adapters == BASES and {"law", "med", "tiny"} <= policy.models
    target = engine(policy, "a")
    decision = decide(make_facts(policy, model="law"), policy, make_view((target, Load())), NOW)
    assert decision.chosen is not None and decision.chosen.model == "law"
    # A tier is its models; nothing turns to an adapter that nobody named.
    assert decide(make_facts(policy, model="small"), policy, make_view((target, Load())), NOW).chosen.model == "tiny"


def test_only_engines_that_were_started_with_it_serve_an_adapter():
    policy = adapted()
    without = make_target(policy, "plain", "eu")
    refused = decide(make_facts(policy, model="law"), policy, make_view((without, Load())), NOW)
    assert refused.chosen is None and refused.refusal.status == 503
    assert any(candidate.reason == "model: not served here" for candidate in refused.candidates)


def test_a_key_needs_the_adapter_by_name_and_the_base_model_is_not_enough():
    keys = [
        {"id": "plain", "sha256": digest(KEY), "models": ["tiny"]},
        {"id": "s", "sha256": digest(SPILL_KEY), "models": ["law"]},
    ]
    policy = adapted(keys=keys)
    view = make_view((engine(policy, "a"), Load()))
    assert decide(make_facts(policy, model="law"), policy, view, NOW).refusal.code == "model_not_found"
    assert decide(make_facts(policy, SPILL_KEY, model="law"), policy, view, NOW).chosen.model == "law"
    assert decide(make_facts(policy, SPILL_KEY, model="tiny"), policy, view, NOW).refusal.code == "model_not_found"


def test_tags_of_the_base_model_hold_for_its_adapters_and_their_own_add_to_them():
    residency = {
        "tags": {"here": {"process": ["eu"]}, "there": {"process": ["us"]}},
        "models": {"tiny": ["here"], "med": ["there"]},
    }
    policy = adapted(residency=residency)
    view = make_view((engine(policy, "e", "eu"), Load()), (engine(policy, "u", "us"), Load()))
    assert decide(make_facts(policy, model="law"), policy, view, NOW).chosen.target.zone == "eu"
    both = decide(make_facts(policy, model="med"), policy, view, NOW)
    assert both.chosen is None and both.refusal.code == "residency_denied"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"models": [{**MODELS[0], "adapters": [*ADAPTERS, ADAPTERS[0]]}]}, "`law` is there twice"),
        ({"models": [MODELS[0], {**MODELS[1], "adapters": ADAPTERS[:1]}]}, "`law` is there twice"),
        ({"models": [{**MODELS[0], "adapters": [{"id": "tiny", "source": "x"}]}]}, "`tiny` is there twice"),
        ({"models": [{**MODELS[0], "adapters": [{"id": "auto", "source": "x"}]}]}, "name of a tier"),
        ({"models": [{**MODELS[0], "adapters": [{"id": "a b", "source": "x"}]}]}, "use 1 to 128"),
        ({"models": [{**MODELS[0], "adapters": [{"id": "law"}]}]}, r"adapters\[0\]\.source"),
        ({"models": [{**MODELS[0], "task": "pooling"}]}, "cannot have them"),
        ({"keys": [{"id": "k", "sha256": digest(KEY), "models": ["lawyer"]}]}, "did you mean `law`"),
        ({"residency": {"models": {"laws": ["eu"]}}}, "did you mean `law`"),
    ],
)
def test_wrong_adapters_are_refused_by_name(changes, word):
    with pytest.raises(ConfigError, match=word):
        adapted(**changes)


@pytest.mark.parametrize(
    ("server", "word"),
    [
        ({"models": {"m": "m"}, "adapters": {"x": "m"}}, "the adapter `x` is not among"),
        ({"models": {"m": "m", "x": "x"}, "adapters": {"x": "n"}}, "the base model `n` is not among"),
        ({"models": {"m": "m", "x": "x", "y": "y"}, "adapters": {"x": "m", "y": "x"}}, "an adapter itself"),
        ({"models": {"big": "big", "law": "law"}, "adapters": {"law": "big"}}, "`law` is made for `big` here and for `tiny`"),
        ({"models": {"m": "m", "big": "x"}, "adapters": {"big": "m"}}, "`big` is a model of its own"),
        (
            {"kind": "cloud", "zone": "cloud", "vouched": False, "models": {"m": "m", "x": "x"}, "adapters": {"x": "m"}},
            "only a `server`",
        ),
    ],
)
def test_wrong_adapters_of_servers_are_refused_by_name(server, word):
    target = {"id": "s", "kind": "server", "vouched": True, "url": "http://10.0.0.7:1", "zone": "eu", **server}
    with pytest.raises(ConfigError, match=word):
        make_config(models=MODELS, residency={}, targets=[target])


# -- where it is ready


def test_a_replica_that_has_the_adapter_ready_is_preferred_as_far_as_that_pays():
    policy = adapted()
    targets = [engine(policy, name, slots=64) for name in "ab"]
    facts = make_facts(policy, model="law")
    book = AdapterBook()
    book.update([Report(targets[0]), Report(targets[1], Signals(NOW, 1, 0, adapters=("law",), adapter_slots=2))])

    def choose(load):
        loads = (Load(), load)
        view = replace(make_view(*zip(targets, loads, strict=True)), adapter_s=book.delays("law", targets, loads))
        return decide(facts, policy, view, NOW).chosen.target.id

    assert choose(Load()) == "b"
    assert choose(Load(clear_at=NOW + 10 * LOAD_S, inflight=4)) == "a"
    # The base model asks for no adapter: the idle one is as good.
    assert book.delays("tiny", targets, (Load(), Load())) == {}


def test_full_slots_cost_more_than_a_load_and_what_was_used_longest_ago_goes_first():
    policy = adapted()
    target = engine(policy, "a")
    busy = Load(signals=Signals(NOW, 2, 1, adapters=("med", "other"), adapter_slots=2), service_s=3.0)
    free = Load(signals=Signals(NOW, 1, 0, adapters=("med",), adapter_slots=2))
    book = AdapterBook()
    assert book.delays("law", [target], [busy]) == {0: LOAD_S + 3.0}
    assert book.delays("law", [target], [free]) == {0: LOAD_S}
    book.used(target.incarnation, "law", 2)
    assert book.delays("law", [target], [free]) == {}
    book.used(target.incarnation, "med", 2)
    book.used(target.incarnation, "third", 2)
    assert book.ready(target.incarnation) == ("med", "third")
    book.update([])
    assert book.ready(target.incarnation) == ()


def test_many_targets_are_ranked_with_their_adapters():
    policy = adapted()
    targets = [engine(policy, f"e{i:03}", slots=64) for i in range(100)]
    facts = make_facts(policy, model="law")
    view = make_view(*((target, Load()) for target in targets))
    delays = {place: LOAD_S for place in range(100) if place != 77}
    part = decide(facts, policy, replace(view, adapter_s=delays), NOW).chosen.index
    seen = {
        decide(replace(facts, request_id=f"r{i}"), policy, replace(view, adapter_s=delays), NOW).chosen.index for i in range(40)
    }
    assert 77 in seen and part in range(100)


# -- caches


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
BODY = {"messages": [{"role": "user", "content": "a long question about shelves " * 400}]}


def test_what_one_adapter_has_computed_is_cold_for_another_and_for_the_base_model():
    policy = adapted()
    target = engine(policy, "a")
    prefixes = Prefixes(b"s" * 32)
    prefixes.update([Report(target)])
    prefixes.hear(target.incarnation, Hello(TextProfile(templates={"default": TEMPLATE})), 0.0)
    prefixes.hear(target.incarnation, Chunks(reset=True), 0.0)
    prefixes.hear(target.incarnation, Beat(0.1, True, 100, 16), 0.0)
    prefixes.tested(target.incarnation, SelfTest.PASSED)
    law, med, tiny = (prefixes.chains(Endpoint.CHAT, BODY, (name,)) for name in ("law", "med", "tiny"))
    assert law.by_model["law"].rendered
    prefixes.hear(target.incarnation, Chunks(pack_hashes(law.by_model["law"].hashes)), 0.0)
    places = {target.incarnation: 0}
    assert prefixes.held_tokens(law, 3000, places)[0] > 2500
    assert not prefixes.held_tokens(med, 3000, places) and not prefixes.held_tokens(tiny, 3000, places)


def test_without_an_agent_what_was_sent_where_is_remembered_by_adapter_too():
    policy = adapted()
    target = engine(policy, "a")
    prefixes = Prefixes(b"s" * 32)
    prefixes.update([Report(target)])
    law, med = (prefixes.chains(Endpoint.CHAT, BODY, (name,)) for name in ("law", "med"))
    prefixes.routed(law, "law", target.incarnation)
    places = {target.incarnation: 0}
    assert prefixes.held_tokens(law, 3000, places)[0] > 2500 and not prefixes.held_tokens(med, 3000, places)


# -- the front door


async def test_adapters_are_listed_with_their_base_and_reach_the_engine_by_their_own_name():
    async with open_front_door({"a": "eu"}) as probe:
        server = {"id": "a", "kind": "server", "vouched": True, "zone": "eu"}
        server |= {"url": f"http://127.0.0.1:{probe.engines['a'].port}"}
        server |= {"models": {"m": "m", "law": "law-v2"}, "adapters": {"law": "m"}}
        async with open_front_door({"b": "eu"}, targets=[server]) as door:
            listed = {card["id"]: card for card in (await door.client.get("/v1/models")).json()["data"]}
            assert listed["law"]["parent"] == "m" and "parent" not in listed["m"]
            assert (await door.client.get("/v1/models/law")).json()["parent"] == "m"
            answer = await door.chat("hello", model="law")
            assert answer.status_code == 200 and answer.headers["x-tidegate-model"] == "law"
            assert probe.engines["a"].requests[-1]["body"]["model"] == "law-v2"
            unknown = await door.chat("hello", model="lawless")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
            incarnation = door.state.fleet.membership.targets[0].incarnation
            assert door.state.adapters.ready(incarnation) == ("law",)
            door.state.take_reports([Report(door.state.fleet.membership.targets[0], Signals(NOW))])
            told = describe_cluster(door.state)["targets"][0]
            assert told["adapters_ready"] == ["law"]
            # What an idle engine says is told in full, zeros included.
            assert (told["signals"]["running"], told["signals"]["kv_usage"], told["signals"]["adapters"]) == (0, -1.0, ())
