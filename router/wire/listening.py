"""Listening: the sockets, and the uvicorn server that runs the relay protocol over them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any, cast

import uvicorn

from router.identity.networks import Networks
from router.wire.direct import DirectHandler
from router.wire.http_server import RelayProtocol
from router.wire.keepalive import probe
from router.wire.sources import Sources


def open_socket(host: str, port: int) -> socket.socket:
    """A listening TCP socket that several router processes can share (`SO_REUSEPORT`).

    Raises:
        OSError: the address is taken by somebody who does not share it, or cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named, because asyncio turns Nagle's algorithm off only where the protocol is; uvloop does so always.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe(listener)
        listener.bind((host, port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        step = "end what holds it, or choose another port"
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; next step: {step}") from None
    listener.setblocking(False)
    return listener


class _QuietServer(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever runs the loop, and waits for no client without an end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: the owner of the process decides."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: look for clients that take too long, at a tenth of them, so that 10,000 cost no pause."""
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections)[counter % 10 :: 10]:
            if isinstance(connection, RelayProtocol):
                connection.judge(now)
        return await super().on_tick(counter)


def make_server(
    app: Any,
    *,
    direct: Mapping[bytes, DirectHandler] | None = None,
    grace_s: float = 30.0,
    balancers: Networks | None = None,
    sources: Sources | None = None,
    most_requests: int = sys.maxsize,
) -> uvicorn.Server:
    """A uvicorn server over `app` with the relay protocol; run it with `await server.serve(sockets=[...])`.

    Args:
        app: the ASGI application.
        direct: handlers by path for requests that do not go through it.
        grace_s: how long running responses may go on after `server.should_exit` is set.
        balancers: addresses whose connections begin with a PROXY header; None: nobody's do.
        sources: bounds the connections of one source; None: they are not bounded.
        most_requests: how many requests a connection may bring until it is closed.
    """
    config = uvicorn.Config(
        app,
        http=cast(
            Any,
            functools.partial(
                RelayProtocol, direct=direct or {}, balancers=balancers, sources=sources, most_requests=most_requests
            ),
        ),
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.ERROR,  # it would warn of every request that is not HTTP, and those cost a client nothing
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        backlog=4096,
    )
    return _QuietServer(config)
