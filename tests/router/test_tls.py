"""Targets over mutual TLS and unix sockets, with real handshakes on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest

from router.compiled import compile_policy
from router.config import ConfigError, parse_config
from router.fixed_targets import address_of
from router.placement.targets import TlsFiles
from router.wire.tls import TlsContexts, make_context
from tests.router.builders import make_config
from tests.router.certificates import Authority
from tests.router.conftest import open_front_door
from tests.router.simulated_engine import SimulatedEngine


@pytest.fixture
def ca(tmp_path):
    return Authority(tmp_path)


def server(name: str, engine: SimulatedEngine, tls: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    url = f"https://127.0.0.1:{engine.port}" if tls is not None else f"http://127.0.0.1:{engine.port}"
    target = {"id": name, "kind": "server", "vouched": True, "url": url, "zone": "eu", "models": {"m": "m"}, "tier": "small"}
    return {**target, **({"tls": tls} if tls is not None else {}), **more}


@contextlib.asynccontextmanager
async def running(*engines: SimulatedEngine):
    try:
        yield
    finally:
        for engine in engines:
            await engine.stop()


def client_files(ca: Authority, server_name: str = "engine.internal") -> dict[str, str]:
    certificate, key = ca.issue("router.internal")
    return {
        "ca_file": str(ca.path),
        "cert_file": str(certificate),
        "key_file": str(key),
        "server_name": server_name,
    }


async def test_certificates_that_are_renewed_in_their_files_are_those_of_the_next_connection(ca, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("router.wire.tls._LOOK_S", 0.0)
    (tmp_path / "new").mkdir()
    later, files = Authority(tmp_path / "new"), TlsFiles(*list(client_files(ca).values())[:3])
    contexts = TlsContexts(tmp_path)
    held = contexts.of(files)  # by an HTTP client, which goes on with it

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        writer.close()

    async def passes(port: int) -> bool:
        assert contexts.of(files) is held
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=held, server_hostname="engine.internal")
            writer.write(b"x")
            passed = await reader.read(1) == b"x"
            writer.close()
        except OSError:  # `ssl.SSLError` is one
            return False
        return passed

    renewed = later.server_context("engine.internal", ask_clients=True)  # all of it is of another authority
    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=renewed) as server:
        port = server.sockets[0].getsockname()[1]
        assert not await passes(port)
        certificate, key = later.issue("router.internal")
        Path(files.ca_file).write_bytes(later.path.read_bytes())
        Path(files.cert_file).write_bytes(certificate.read_bytes())
        assert not await passes(port) and "go on with what was there before" in caplog.text, "its key is not there yet"
        Path(files.key_file).write_bytes(key.read_bytes())
        assert await passes(port)
        Path(files.ca_file).unlink()
        assert await passes(port)
        assert len(caplog.records) == 2, "each change is told once"


async def test_a_client_certificate_opens_the_engine_and_the_connection_is_kept(ca):
    engine = SimulatedEngine()
    await engine.start(tls=ca.server_context("engine.internal", ask_clients=True))
    async with running(engine), open_front_door({}, zones={"eu": {}}, targets=[server("a", engine, client_files(ca))]) as door:
        for wish, stream in (("hello", False), ("stream", True), ("hello", False)):
            response = await door.chat(wish, stream=stream)
            assert response.status_code == 200 and response.headers["x-tidegate-target"] == "a"
        assert len(engine.requests) == 3
        [idle] = door.state.pool._idle.values()
        assert len(idle) == 1, "one connection served all three"
        broken = await door.chat("die-mid", stream=True)
        assert "upstream_error" in broken.text and "[DONE]" not in broken.text


@pytest.mark.parametrize("fault", ["no certificate", "another authority's", "wrong name", "unknown authority", "not tls"])
async def test_a_handshake_that_fails_sends_no_body_and_goes_to_another_target(ca, tmp_path, fault):
    strict, plain = SimulatedEngine(), SimulatedEngine()
    other = Authority(tmp_path, "other-ca")
    files = client_files(ca)
    if fault == "no certificate":
        files = {"ca_file": files["ca_file"], "server_name": files["server_name"]}
    elif fault == "another authority's":
        files |= dict(zip(("cert_file", "key_file"), map(str, other.issue("stranger")), strict=True))
    elif fault == "wrong name":
        files["server_name"] = "somebody.else"
    elif fault == "unknown authority":
        files["ca_file"] = str(other.path)
    await strict.start(tls=None if fault == "not tls" else ca.server_context("engine.internal", ask_clients=True))
    await plain.start()
    targets = [server("a", strict, files), server("b", plain, None)]
    async with running(strict, plain), open_front_door({}, zones={"eu": {}}, targets=targets) as door:
        for _ in range(6):
            response = await door.chat("hello")
            assert response.status_code == 200 and response.headers["x-tidegate-target"] == "b"
        assert strict.requests == [], "not even a head arrived"
        failures = [a["failure"] for a in door.receipt(response)["attempts"] if a["target"] == "a"]
        assert all("127.0.0.1" not in failure for failure in failures)
        alone = [target for target in door.state.fleet.membership.targets if target.id == "a"]
        assert alone[0].address.tls


async def test_without_files_only_the_systems_authorities_are_trusted(ca):
    engine = SimulatedEngine()
    await engine.start(tls=ca.server_context("engine.internal"))
    async with running(engine), open_front_door({}, zones={"eu": {}}, targets=[server("a", engine, {})]) as door:
        assert (await door.chat("hello")).status_code == 503
        assert engine.requests == []


async def test_an_engine_on_a_unix_socket_is_served_and_one_that_is_gone_is_refused(tmp_path):
    engine, path = SimulatedEngine(), tmp_path / "engine.sock"
    await engine.start(uds=str(path))
    targets = [server("a", engine, None, url=f"unix://{path}")]
    async with open_front_door({}, zones={"eu": {}}, targets=targets) as door:
        for wish, stream in (("hello", False), ("stream", True)):
            assert (await door.chat(wish, stream=stream)).status_code == 200
        assert engine.requests[0]["headers"]["host"] == "localhost"
        await engine.stop()
        door.state.pool.close()
        path.unlink(missing_ok=True)
        assert (await door.chat("hello")).status_code == 503


def test_one_context_per_distinct_files_whatever_the_name(ca):
    certificate, key = ca.issue("router.internal")
    contexts = TlsContexts(Path())
    one = TlsFiles(str(ca.path), str(certificate), str(key), "a.internal")
    assert contexts.of(one) is contexts.of(TlsFiles(str(ca.path), str(certificate), str(key), "b.internal"))
    assert contexts.of(None) is contexts.of(TlsFiles()) and contexts.of(None) is not contexts.of(one)
    assert contexts.of(one).verify_mode is ssl.CERT_REQUIRED and contexts.of(one).check_hostname
    assert contexts.of(one).minimum_version >= ssl.TLSVersion.TLSv1_2


def with_target(**changes: Any) -> dict[str, Any]:
    target = {"id": "t", "kind": "server", "vouched": True, "url": "https://x:1", "zone": "eu", "models": {"m": "m"}}
    return {"zones": {"eu": {}, "out": {"external": True}}, "targets": [{**target, **changes}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tls": {"cert_file": "x.pem"}}, "`cert_file` and `key_file` come together"),
        ({"tls": {"ca_fil": "x.pem"}}, "ca_file"),
        ({"tls": {}, "url": "http://x:1"}, "must begin with https://"),
        ({"url": "unix://relative/path"}, "unix:///path/to/socket"),
        ({"url": "unix:///run/x.sock", "kind": "cloud", "zone": "out"}, "a unix socket is on this machine"),
    ],
)
def test_a_tls_block_or_url_that_cannot_be_meant_is_an_error(changes, words):
    with pytest.raises(ConfigError) as error:
        parse_config(with_target(**changes))
    assert words in str(error.value)


def test_missing_and_unusable_files_are_named(ca, tmp_path):
    certificate, key = ca.issue("router.internal")
    _, foreign = ca.issue("another")
    (tmp_path / "empty.pem").write_text("")
    missing = parse_config(with_target(tls={"ca_file": "nowhere.pem"}))
    with pytest.raises(ConfigError, match=r"targets\[0\].tls.ca_file: cannot read .*nowhere.pem"):
        compile_policy(missing, tmp_path)
    egress = make_config(egress={"url": "https://egress:1", "tls": {"ca_file": "nowhere.pem"}})
    with pytest.raises(ConfigError, match=r"egress.tls.ca_file: cannot read"):
        compile_policy(egress, tmp_path)
    for files in (
        TlsFiles("empty.pem"),
        TlsFiles(str(ca.path), "empty.pem", key.name),
        TlsFiles("", certificate.name, foreign.name),
    ):
        with pytest.raises(ConfigError, match=r"targets\[3\].tls.* cannot be used"):
            make_context(files, tmp_path, "targets[3].tls")


def test_addresses_of_all_kinds():
    assert address_of("unix:///run/a.sock").uds == "/run/a.sock"
    secure = address_of("https://x/base")
    assert (secure.port, secure.tls, secure.base_path, secure.tls_files) == (443, True, "/base", None)
