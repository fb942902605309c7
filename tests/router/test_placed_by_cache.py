"""The second turn of a conversation goes to the replica that holds the first, and elsewhere when that one is overloaded."""

from msgspec.structs import replace

from router.decide import decide
from router.placement.fleet import Fleet
from router.placement.kv_messages import Beat, Chunks, Hello, TextProfile, pack_hashes
from router.placement.targets import Endpoint, Report
from router.placement.trust import SelfTest
from router.prefixes import Prefixes
from tests.router.builders import NOW, make_facts, make_policy, make_target

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
FIRST = [{"role": "user", "content": "a long question about shelves " * 400}]
SECOND = [*FIRST, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}]


def test_the_second_turn_follows_its_cache_as_far_as_that_pays():
    policy = make_policy()
    targets = [make_target(policy, name, "eu", slots=16) for name in ("a", "b")]
    fleet, prefixes = Fleet(0.0), Prefixes(b"s" * 32)
    fleet.update([Report(target) for target in targets])
    prefixes.update([Report(target) for target in targets])
    facts = replace(make_facts(policy, model="tiny"), prompt_tokens=3000, prompt_bytes=12000)
    holder = targets[1].incarnation
    prefixes.hear(holder, Hello(TextProfile(templates={"default": TEMPLATE})), 0.0)
    prefixes.hear(holder, Chunks(reset=True), 0.0)
    prefixes.hear(holder, Beat(0.1, True, 100, 16), 0.0)
    prefixes.tested(holder, SelfTest.PASSED)
    first = prefixes.chains(Endpoint.CHAT, {"messages": FIRST}, ("tiny",))
    prefixes.hear(holder, Chunks(pack_hashes(first.by_model["tiny"].hashes)), 0.0)

    def choose():
        chains = prefixes.chains(Endpoint.CHAT, {"messages": SECOND}, ("tiny",))
        held = prefixes.held_tokens(chains, facts.prompt_tokens, fleet.places)
        return decide(facts, policy, replace(fleet.view(NOW), cached=held), NOW)

    decision = choose()
    assert decision.chosen.target.incarnation == holder
    for _ in range(60):
        fleet.book(targets[1], 3000, NOW, work=decision.chosen.work, model="tiny")
    assert choose().chosen.target.incarnation == targets[0].incarnation
