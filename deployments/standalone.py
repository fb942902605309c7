"""A router without Ray: the same front door as a plain process over the fixed targets of its configuration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import typer
import uvloop

from deployments.credentials import LiveCredentials, read_secret
from deployments.server_gauges import ServerGauges
from router.config import Config, ConfigError, home, parse_config, read_args
from router.config.access import place_of
from router.fixed_targets import address_of, fixed_targets
from router.identity.stored import open_shared
from router.ledger.capturing import open_capture
from router.ledger.opening import open_audit
from router.peer_link import PeerLink
from router.placement.fleet import Fleet
from router.placement.peers import News
from router.placement.targets import Report
from router.policy_source import PolicySource
from router.process import RouterProcess
from router.residency.guard import new_secret
from router.wire.tls import TlsContexts

POLICY_PERIOD_S = 0.2
"""How often the policy's files are looked at."""
_ALIVE_PERIOD_S = 1.0
"""How often it is asked whether every part of the router still runs: nobody else would ask, as Serve does under Ray."""
_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104 - nothing is bound by it


class PartEndedError(Exception):
    """A part of the router has ended by itself. Whoever supervises the process starts a whole one."""


def run(config_path: Path, port: int | None = None, admin_port: int | None = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP (the terminal is gone; files are watched without it), then drain.

    Args:
        config_path: a configuration file; its `models` (which need Ray) are ignored, its `targets` are routed to.
        port: overrides `listen.port`.
        admin_port: overrides `admin.port`.

    Raises:
        ConfigError: the file cannot be used, or names no fixed target.
        OSError: a port is taken.
        PartEndedError: the router could not go on as a whole, and has drained.
    """
    args = read_args(config_path)
    config = parse_config(args, str(config_path))
    if port is not None:
        config = config.model_copy(update={"listen": config.listen.model_copy(update={"port": port})})
    if admin_port is not None:
        config = config.model_copy(update={"admin": config.admin.model_copy(update={"port": admin_port})})
    if not config.targets:
        raise ConfigError(f"{config_path}: without Ray there are only `targets`, and this file has none")
    changed = {"listen": config.listen.model_dump(), "admin": config.admin.model_dump()}
    uvloop.run(_serve(PolicySource({**args, **changed}, home())))


async def _serve(source: PolicySource) -> None:
    config, _, policy = source.running = source.load()
    secret = read_secret(config.secret)
    cloud = any(target.kind == "cloud" for target in config.targets)
    if cloud and (secret is None or config.egress.url is None):
        raise ConfigError(
            "cloud targets need the egress: start `python -m deployments.egress --config FILE`, give its address as "
            "`egress.url`, and the same `secret` to both"
        )
    credentials, audit = LiveCredentials(config, home(), "server"), open_audit(config, policy, home())
    name = f"router-{os.getpid()}"
    unique = f"{name}-{secrets.token_hex(4)}"
    shared = open_shared(config, policy, home(), unique)
    capture = open_capture(config, home(), audit)
    router = RouterProcess(config, policy, secret or new_secret(), credentials, name, audit=audit, shared=shared, capture=capture)
    if config.router.peers:
        if secret is None:
            raise ConfigError("`router.peers` needs the same `secret` for all of them: by it routers know each other's word")
        router.state.fleet.news = News(unique)
        router.link = _open_link(router.state.fleet, secret, config.router.peers)
    gauges = ServerGauges(config, credentials, TlsContexts(home()))
    router.take_reports(gauges.fill(_reports(config)))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    router.start()
    listen, admin = config.listen, config.admin
    if others := sharers_of(listen.host, listen.port):
        names = ", ".join(map(str, others))
        typer.echo(
            f"tidegate router: clients of port {listen.port} are shared with the processes {names}, which listen there too",
            err=True,
        )
    typer.echo(
        f"tidegate router: {len(config.targets)} targets, port {listen.port}, admin on {admin.host}:{admin.port}", err=True
    )

    def take_gauges() -> None:
        router.take_reports(gauges.fill([Report(target) for target in router.state.fleet.membership.targets]))

    watching = [loop.create_task(watch) for watch in (_watch_policy(router, source, gauges), gauges.run(take_gauges))]
    await _until(stop, router, watching)
    await router.drain(watching)
    ended = await asyncio.gather(*watching, return_exceptions=True)
    if not stop.is_set():
        why = next((f" ({type(error).__name__})" for error in ended if isinstance(error, Exception)), "")
        raise PartEndedError(f"a part of this router has ended{why}; so has the router, once it had drained")


def sharers_of(host: str, port: int) -> list[int]:
    """Other processes that listen at this address, or one of the two at all addresses, as far as they can be seen.

    `SO_REUSEPORT` lets every process of one user do so and the kernel deals clients out, also to a router that somebody forgot,
    with other keys and another policy.
    """
    try:
        found = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    here = [one for one in found if one.status == psutil.CONN_LISTEN and one.pid and one.laddr.port == port]
    return sorted({one.pid for one in here if one.laddr.ip == host or _EVERYWHERE & {one.laddr.ip, host}} - {os.getpid()})


async def _until(stop: asyncio.Event, router: RouterProcess, watching: Sequence[asyncio.Task[None]]) -> None:
    """Wait for the signal to end, or for a part of the router that has ended without one."""
    while router.alive and not any(task.done() for task in watching):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _ALIVE_PERIOD_S)
            return


def _open_link(fleet: Fleet, secret: bytes, peers: Sequence[str]) -> PeerLink:
    """A link to the routers at these addresses, listening at the first of them that can be had.

    Raises:
        ConfigError: none of them can.
    """
    link, places = PeerLink(fleet, secret), [place_of(text) for text in peers]
    for place in places:
        with contextlib.suppress(OSError):
            link.listen(place)
            link.always_tell(set(places) - {place})
            return link
    raise ConfigError(f"router.peers: none of {', '.join(peers)} can be listened at here: not this machine's, or all taken")


def _reports(config: Config) -> list[Report]:
    egress = address_of(config.egress.url, config.egress.tls) if config.egress.url else None
    return [Report(target) for target in fixed_targets(config, egress, "egress")]


async def _watch_policy(router: RouterProcess, source: PolicySource, gauges: ServerGauges) -> None:
    """Take a changed policy file, and cut what time has come to forbid, for ever."""
    while True:
        await asyncio.sleep(POLICY_PERIOD_S)
        try:
            if source.changed():
                taken = router.take_policy(source)
                if taken is not None:
                    gauges.adopt(taken.config)
                    router.take_reports(gauges.fill(_reports(taken.config)))
            router.state.recheck(time.time())
        except Exception as error:  # nobody watches this task: it must see the next policy
            router.state.refuse_policy(f"it cannot be put into force ({type(error).__name__})")
