"""The least that a router in Python can cost: bytes from one socket to another on uvloop, with nothing read and nothing decided.

Each client connection has one connection to an engine, and whatever comes on one goes out on the other. It routes nothing and
would lose a request whenever an engine closes: it is a floor for `scripts/bench/datapath`, not a peer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Iterator

import uvloop


class Upstream(asyncio.Protocol):
    """The engine's side."""

    def __init__(self, client: Client) -> None:
        """For one client."""
        self.client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what has waited for it."""
        self.client.upstream = transport  # type: ignore[assignment]
        self.client.upstream.writelines(self.client.waiting)

    def data_received(self, data: bytes) -> None:
        """On to the client."""
        self.client.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client's goes with it."""
        self.client.transport.close()


class Client(asyncio.Protocol):
    """The client's side."""

    def __init__(self, ports: Iterator[int]) -> None:
        """`ports` gives the engine of each connection in turn."""
        self.ports = ports
        self.waiting: list[bytes] = []
        self.upstream: asyncio.Transport | None = None
        self.transport: asyncio.Transport
        self.connecting: asyncio.Task[object]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connect to an engine."""
        loop = asyncio.get_running_loop()
        self.transport = transport  # type: ignore[assignment]
        connected = loop.create_connection(lambda: Upstream(self), "127.0.0.1", next(self.ports))
        self.connecting = loop.create_task(connected)

    def data_received(self, data: bytes) -> None:
        """On to the engine."""
        if self.upstream is None:
            self.waiting.append(data)
        else:
            self.upstream.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine's goes with it."""
        self.connecting.cancel()
        if self.upstream is not None:
            self.upstream.abort()


async def _main(port: int, engines: list[int]) -> None:
    ports = itertools.cycle(engines)
    await asyncio.get_running_loop().create_server(lambda: Client(ports), "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("engines", type=int, nargs="+", help="ports of the engines")
    options = parser.parse_args()
    uvloop.run(_main(options.port, options.engines))
