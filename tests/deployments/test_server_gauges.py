"""Servers that already run tell their gauges by themselves: who has some is DEGRADED, who has none or is late stays BLIND."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time

import httpx
import pytest

from deployments import server_gauges
from deployments.server_gauges import ServerGauges
from router.config import ConfigError, parse_config
from router.fixed_targets import fixed_targets
from router.placement.targets import Report
from router.wire.tls import TlsContexts
from tests.deployments.test_standalone_peers import LIMIT_S, start, until, write_config
from tests.router.builders import digest
from tests.router.certificates import Authority
from tests.router.conftest import KEY
from tests.router.simulated_engine import SimulatedEngine

PAGE = (
    b"# TYPE vllm:num_requests_running gauge\n"
    b'vllm:num_requests_running{engine="0",model_name="m"} %d\n'
    b'vllm:num_requests_waiting{engine="0",model_name="m"} 1.0\n'
    b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
)
LORA = b'vllm:lora_requests_info{max_lora="2",running_lora_adapters="theirs",waiting_lora_adapters=""} 1.7e+09\n'
SERVER = {"id": "a", "kind": "server", "vouched": True, "zone": "here", "models": {"m": "m"}}


def config_of(*servers):
    return parse_config({"zones": {"here": {}}, "targets": [{**SERVER, **server} for server in servers]})


def reports_of(config):
    return [Report(target) for target in fixed_targets(config, None, "")]


@contextlib.asynccontextmanager
async def engine_with(page, **how):
    engine = SimulatedEngine()
    engine.gauges = page
    await engine.start(**how)
    try:
        yield engine
    finally:
        await engine.stop()


async def read_once(config, tmp_path, credentials=()):
    gauges = ServerGauges(config, dict(credentials), TlsContexts(tmp_path))
    gauges.fill(reports_of(config))
    await gauges.read()
    signals = [report.signals for report in gauges.fill(reports_of(config))]
    gauges.fill([])
    await gauges.read()  # closes what was opened
    return signals


def test_a_server_that_brings_no_token_while_requests_run_is_silent():
    server = server_gauges._Server(reports_of(config_of({"url": "http://127.0.0.1:1"}))[0].target, "/metrics", None, None)
    steps, clock, told = b'vllm:iteration_tokens_total_count{engine="0",model_name="m"} %d\n', 5.0, []
    for running, count, seconds in [(3, 7, 0), (3, 7, 9), (3, 7, 3), (3, 8, 1), (0, 8, 60), (3, 8, 1), (3, 8, 11), (3, None, 60)]:
        clock += seconds
        server.take(PAGE % running + (steps % count if count is not None else b""), 1e9, clock)
        told.append(server.signals.silent_s)
    assert told == [0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 12.0, 0.0]


async def test_gauges_are_read_with_the_servers_credential_and_its_adapters_have_our_names(tmp_path):
    async with engine_with(PAGE % 3 + LORA) as engine:
        lora = {"models": {"m": "m", "ours": "theirs"}, "adapters": {"ours": "m"}, "credential": {"env": "UNUSED"}}
        config = config_of({"url": f"http://127.0.0.1:{engine.port}", **lora})
        (signals,) = await read_once(config, tmp_path, {"a": "s3cret-\xe4"}.items())
    assert (signals.running, signals.waiting, signals.kv_usage) == (3, 1, 0.25)
    assert (signals.adapters, signals.adapter_slots) == (("ours",), 2)
    assert abs(time.time() - signals.sampled_at) < LIMIT_S
    assert [headers["authorization"] for headers in engine.asked_gauges] == ["bearer s3cret-\xe4"]


async def test_tls_is_spoken_as_requests_speak_it_and_the_name_is_verified(tmp_path):
    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("engine.internal"))
    async with engine_with(PAGE % 3, tls=context) as engine:
        url = f"https://127.0.0.1:{engine.port}"
        right, wrong = ({"ca_file": str(authority.path), "server_name": name} for name in ("engine.internal", "other.internal"))
        config = config_of({"url": url, "tls": right}, {"id": "b", "url": url, "tls": wrong})
        known, impostor = await read_once(config, tmp_path)
    assert known.running == 3 and impostor is None and len(engine.asked_gauges) == 1


async def test_a_unix_socket_and_a_path_of_its_own_under_the_servers_url(tmp_path):
    async with engine_with(PAGE % 2, uds=str(tmp_path / "e.sock")) as near, engine_with(PAGE % 5) as far:
        config = config_of(
            {"url": f"unix://{tmp_path}/e.sock"},
            {"id": "b", "url": f"http://127.0.0.1:{far.port}/engines/7", "metrics": "/own/metrics"},
        )
        first, second = await read_once(config, tmp_path)
    assert (first.running, second.running) == (2, 5)
    assert [one.asked_gauges[0]["path"] for one in (near, far)] == ["/metrics", "/engines/7/own/metrics"]


@pytest.mark.parametrize("page", [None, b"sglang:num_running_reqs 3\n", b"\xff\x00", b""])
async def test_who_has_no_page_of_vllms_is_not_taken_for_idle_and_is_not_asked_again_soon(page, tmp_path, caplog):
    async with engine_with(page) as engine:
        config = config_of({"url": f"http://127.0.0.1:{engine.port}"})
        gauges = ServerGauges(config, {}, TlsContexts(tmp_path))
        with caplog.at_level(logging.INFO, "tidegate"):
            for _ in range(3):
                assert gauges.fill(reports_of(config)) == reports_of(config)
                await gauges.read()
    assert len(engine.asked_gauges) == 1 and not [r for r in caplog.records if r.name.startswith("tidegate")]


async def test_who_is_not_wanted_to_is_never_asked(tmp_path):
    async with engine_with(PAGE % 3) as engine:
        assert await read_once(config_of({"url": f"http://127.0.0.1:{engine.port}", "metrics": False}), tmp_path) == [None]
    assert engine.asked_gauges == []


async def test_a_server_that_hangs_holds_nobody_else_up_and_its_last_gauges_count_until_they_are_old(tmp_path, monkeypatch):
    async with engine_with(PAGE % 3) as engine, engine_with(PAGE % 4) as other:
        urls = (f"http://127.0.0.1:{one.port}" for one in (engine, other))
        config = config_of(*({"id": name, "url": url} for name, url in zip("ab", urls, strict=True)))
        gauges = ServerGauges(config, {}, TlsContexts(tmp_path))
        gauges.fill(reports_of(config))
        await gauges.read()
        first, seen = gauges.fill(reports_of(config))
        engine.hangs = True
        began = time.monotonic()
        await gauges.read()
        assert time.monotonic() - began < LIMIT_S
        later, newer = gauges.fill(reports_of(config))
        assert later == first and newer.signals.sampled_at > seen.signals.sampled_at
        now = first.signals.sampled_at + server_gauges.FRESH_SIGNALS_S + 0.1
        monkeypatch.setattr(server_gauges.time, "time", lambda: now)
        assert gauges.fill(reports_of(config))[0].signals is None


@pytest.mark.parametrize("url", ["http://nowhere..example:80", "http://" + "a" * 70 + ".example", "http://xn--zz---.example"])
async def test_an_address_that_no_resolver_takes_keeps_nobody_from_the_others_gauges(url, tmp_path):
    async with engine_with(PAGE % 3) as engine:
        good = {"id": "b", "url": f"http://127.0.0.1:{engine.port}"}
        none, signals = await read_once(config_of({"url": url}, good), tmp_path)
    assert none is None
    assert signals.running == 3


async def test_a_new_policy_takes_a_server_and_its_connection_away(tmp_path):
    async with engine_with(PAGE % 3) as engine:
        config = config_of({"url": f"http://127.0.0.1:{engine.port}"})
        gauges = ServerGauges(config, {}, TlsContexts(tmp_path))
        gauges.fill(reports_of(config))
        await gauges.read()
        assert gauges.fill(reports_of(config))[0].signals is not None
        changed = config_of({"url": f"http://127.0.0.1:{engine.port}", "metrics": False})
        gauges.adopt(changed)
        assert gauges.fill(reports_of(changed))[0].signals is None
        await gauges.read()
    assert len(engine.asked_gauges) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": "metrics"}, "begins with"),
        ({"metrics": "//else.where/m"}, "begins with"),
        ({"metrics": "/m\r\nx: y"}, "begins with"),
        ({"metrics": False, "kind": "cloud", "vouched": False}, "only a `server`"),
    ],
)
def test_what_cannot_be_meant_is_an_error(change, words):
    with pytest.raises(ConfigError, match=words):
        config_of({"url": "http://127.0.0.1:1", **change})


@pytest.mark.timeout(180)
async def test_a_router_process_reckons_with_what_others_do_there_and_forgets_it_when_the_gauges_stop(tmp_path):
    async def told():
        with contextlib.suppress(httpx.ConnectError):
            page = (await client.get(f"http://127.0.0.1:{router.admin}/tidegate/v1/cluster")).json()
            return [(target["trust"], (target["signals"] or {}).get("running")) for target in page["targets"]]

    async def is_told(wanted):
        return await told() == wanted

    async with engine_with(PAGE % 60) as busy, engine_with(PAGE % 0) as idle, httpx.AsyncClient(timeout=LIMIT_S) as client:
        config = write_config(tmp_path, {"a": busy, "b": idle}, [], keys=[{"id": "client", "sha256": digest(KEY)}])
        (tmp_path / "one").mkdir()
        router = await start(config, tmp_path, "one")
        try:
            await until(lambda: is_told([("DEGRADED", 60), ("DEGRADED", 0)]))
            for _ in range(3):
                assert (await router.chat(client, "hello")).status_code == 200
            assert (len(busy.requests), len(idle.requests)) == (0, 3)
            busy.gauges = None
            await until(lambda: is_told([("BLIND", None), ("DEGRADED", 0)]))
        finally:
            router.process.kill()
            await asyncio.wait_for(router.process.wait(), LIMIT_S)
