"""What changes between two steps of a request must not let it go where its label, its text or its redaction forbids it."""

from __future__ import annotations

from router import handler
from router.placement.targets import Report
from tests.router.builders import digest
from tests.router.conftest import KEY, open_front_door
from tests.router.simulated_engine import answer
from tests.router.test_policy_reload import args_of, source_with

CARD = "4111 1111 1111 1111"
RULES = {"rules": [{"if": ["financial"], "meet": "eu"}]}
ZONES = {"a": "eu", "b": "us"}
KEEP = {"id": "front", "sha256": digest(KEY)}


def take(door, part):
    assert door.router.take_policy(source_with(door, part))


def residency_of(door, **tags):
    return {**args_of(door)["residency"], "tags": {name: {"process": zones} for name, zones in tags.items()}}


def saw(engine, text):
    return any(text.encode() in request["raw"] for request in engine.requests)


def know_only(door, *names):
    """Only these targets run now; returns all there are."""
    targets = door.state.fleet.membership.targets
    door.state.fleet.update([Report(target) for target in targets if target.id in names])
    return targets


async def test_a_text_nobody_had_to_read_is_not_tried_again_where_it_would_have_mattered():
    async with open_front_door(ZONES, classify=RULES) as door:
        targets = know_only(door, "a")

        async def fail(reader, writer):
            door.state.fleet.update([Report(target) for target in targets])
            writer.write(answer(b"{}", "500 Internal Server Error"))
            return True

        door.engines["a"]._hello = fail
        refused = await door.chat(f"please charge {CARD}")
        assert refused.status_code >= 500 and not saw(door.engines["b"], CARD)
        assert door.receipt(refused)["label_sources"]["classifier"] == "not asked: held to the strictest"


async def test_a_policy_that_comes_before_the_scan_begins_does_not_change_what_the_finding_means(monkeypatch):
    async with open_front_door(ZONES) as door:
        demand = {"classify": {"rules": [{"if": ["financial"], "meet": "careful"}]}}
        demand["residency"] = residency_of(door, careful=["eu", "us"])
        demand["residency"]["tags"]["careful"]["require"] = ["zdr"]
        take(door, {**demand, **carrying(door, ["zdr"], a=["zdr"])})
        spawn = door.state.spawn

        def reload_first(work):
            take(door, {**demand, **carrying(door, ["baa", "zdr"], a=["zdr"], b=["baa"])})  # `baa` now has the bit of `zdr`
            spawn(work)

        monkeypatch.setattr(door.state, "spawn", reload_first)
        charged = await door.chat(f"please charge {CARD}")
        assert (charged.status_code, charged.headers["x-tidegate-target"]) == (200, "a")
        assert not saw(door.engines["b"], CARD)


def carrying(door, duties, **carried):
    targets = args_of(door)["targets"]
    return {"duties": duties, "targets": [{**target, "duties": carried.get(target["id"], [])} for target in targets]}


async def test_a_policy_that_comes_during_the_redaction_leaves_the_request_as_it_was(monkeypatch):
    rules = {"rules": [{"if": ["financial"], "meet": "nowhere"}]}
    tags = {"tags": {"nowhere": {"process": ["elsewhere"]}}}
    redacting = {**KEEP, "residency": "any", "redact": {"then": "us"}}
    async with open_front_door({"b": "us", "z": "elsewhere"}, classify=rules, residency=tags, keys=[redacting]) as door:
        know_only(door, "b")
        declassify = handler.declassify

        async def slowly(*args):
            made = await declassify(*args)
            take(door, {"keys": [{**redacting, "redact": {"then": "elsewhere"}}]})
            return made

        monkeypatch.setattr(handler, "declassify", slowly)
        refused = await door.chat(f"please charge {CARD}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "residency_capacity")
        assert door.engines["b"].requests == []


async def test_rules_that_say_more_hold_for_what_is_running():
    body = {"model": "m", "messages": [{"role": "user", "content": "stall"}], "stream": True}
    async with open_front_door({"b": "us", "a": "eu"}) as door:
        know_only(door, "b")
        async with door.client.stream("POST", "/v1/chat/completions", json=body) as response:
            stream = response.aiter_raw()
            got = await anext(stream)
            take(door, {"classify": RULES})
            got += b"".join([chunk async for chunk in stream])
        assert b"policy_revoked" in got and b"[DONE]" not in got


async def test_rules_that_say_the_same_cut_nothing():
    body = {"model": "m", "messages": [{"role": "user", "content": "stall"}], "stream": True}
    async with open_front_door({"b": "us", "a": "eu"}, classify=RULES) as door:
        know_only(door, "b")
        async with door.client.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(response.aiter_raw())
            take(door, {"duties": ["baa"], "classify": RULES})
            [ticket] = door.state.inflight._tickets
            assert ticket.exchange is not None and not ticket.exchange.ended


async def test_what_was_found_binds_the_conversation_when_nobody_looks_any_more():
    async with open_front_door(ZONES, classify=RULES) as door:
        first = [{"role": "user", "content": f"please charge {CARD}"}]
        await door.client.post("/v1/chat/completions", json={"model": "m", "messages": first})
        take(door, {"classify": {"rules": []}})
        assert door.state.classifier is None
        follow_up = [*first, {"role": "assistant", "content": "done"}, {"role": "user", "content": "and now?"}]
        for _ in range(8):
            followed = await door.client.post("/v1/chat/completions", json={"model": "m", "messages": follow_up})
            assert followed.headers["x-tidegate-zone"] == "eu"


OUTSIDE = {"zones": {"eu": {}, "us": {}, "outside": {"external": True}}, "keys": [{**KEEP, "residency": "any"}]}
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}]


async def test_a_models_own_label_forbids_remote_media_too():
    async with open_front_door({"a": "eu"}, **OUTSIDE, residency={"models": {"m": ["eu"]}}) as door:
        for path in ("/v1/chat/completions", "/tidegate/v1/explain"):
            refused = await door.client.post(path, json={"model": "m", "messages": IMAGE})
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "residency_denied")
        assert door.engines["a"].requests == []


async def test_a_requests_label_forbids_remote_media_and_explain_says_so():
    async with open_front_door(ZONES) as door:
        for path in ("/v1/chat/completions", "/tidegate/v1/explain"):
            headers = {"x-tidegate-residency": "eu"}
            refused = await door.client.post(path, json={"model": "m", "messages": IMAGE}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "residency_denied")
        assert door.engines["a"].requests == []


async def test_a_label_that_narrows_before_another_try_forbids_remote_media():
    async with open_front_door(ZONES, **OUTSIDE) as door:

        async def fail(reader, writer):
            take(door, {"keys": [{**KEEP, "residency": "both"}], "residency": residency_of(door, both=["eu", "us"])})
            writer.write(answer(b"{}", "500 Internal Server Error"))
            return True

        door.engines["a"]._hello = door.engines["b"]._hello = fail
        refused = await door.client.post("/v1/chat/completions", json={"model": "m", "messages": IMAGE})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "residency_denied")
        assert sum(len(engine.requests) for engine in door.engines.values()) == 1
