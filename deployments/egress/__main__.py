"""`python -m deployments.egress --config FILE`: the egress as a process of its own, outside Ray.

Give the router its address as `egress.url` and both the same `secret`. It is the only process that needs the providers' keys
and a route to the outside.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from deployments.credentials import LiveCredentials, read_secret
from deployments.egress.server import EgressServer
from deployments.egress.stored import StoreReader
from router.app import Discreet
from router.config import ConfigError, home, read_args
from router.crash import forbid_core_dumps
from router.policy_source import PolicySource
from router.wire.listening import make_server, open_socket

INCARNATION = "egress"
"""The incarnation of an egress outside Ray: it is named by configuration, so its name does not change."""

POLICY_PERIOD_S = 0.2
"""How often the policy's files are looked at."""
_log = logging.getLogger("tidegate.egress")


async def serve_egress(source: PolicySource, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: no secret, or a credential is missing.
        OSError: the port is taken.
    """
    forbid_core_dumps()
    config, _, policy = source.running = source.load()
    secret = read_secret(config.secret)
    if secret is None:
        raise ConfigError("secret: an egress outside Ray needs `secret.env` or `secret.file`, the same as the router's")
    egress = EgressServer(config, policy, secret, INCARNATION, LiveCredentials(config, home(), "cloud"))
    server = make_server(Discreet(egress.app))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: setattr(server, "should_exit", True))
    listener = open_socket(host, port)
    typer.echo(f"tidegate egress: listening on {host}:{port}", err=True)
    watches = [loop.create_task(_watch_policy(egress, source)), loop.create_task(_watch_store(egress))]
    await server.serve(sockets=[listener])
    for watch in watches:
        watch.cancel()


async def _watch_policy(egress: EgressServer, source: PolicySource) -> None:
    """Take a changed policy file, for ever; one that cannot be used changes nothing and is logged."""
    while True:
        await asyncio.sleep(POLICY_PERIOD_S)
        if source.changed():
            try:
                taken = source.load()
            except ConfigError as error:
                _log.error("policy refused, epoch %s stays: %s", egress.policy.epoch, error)
            else:
                source.running = taken
                try:
                    egress.adopt(taken.config, taken.policy, time.time())
                except Exception as error:  # nobody watches this task: it must see the next policy
                    _log.error("policy refused, epoch %s stays (%s)", egress.policy.epoch, type(error).__name__)


async def _watch_store(egress: EgressServer) -> None:
    """Take news of stored keys, for ever. Not where the policy is watched: a store that hangs must not delay a tighter one."""
    store = StoreReader(home())
    while True:
        policy = egress.policy
        found = await asyncio.to_thread(store.read, egress.config, policy)
        if egress.policy is policy:
            egress.learn(found)
        await asyncio.sleep(POLICY_PERIOD_S)


def main(
    config: Annotated[Path, typer.Option(help="The same file the router runs.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8100,
) -> None:
    """Run the egress."""
    try:
        uvloop.run(serve_egress(PolicySource(read_args(config), home()), host, port))
    except ConfigError as error:
        raise SystemExit(f"tidegate egress: {error}") from None
    except OSError as error:
        raise SystemExit(f"tidegate egress: {error.strerror or error}") from None


if __name__ == "__main__":
    typer.run(main)
