"""Connections to targets: a pool keyed by incarnation, its limits on time enforced by one timer for all."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from router.placement.targets import Address
from router.wire.exchange import DEADLINE, Exchange
from router.wire.tls import TlsContexts
from router.wire.upstream import Connection

_IDLE_LIFETIME_S = 4.0
"""Shorter than uvicorn's 5 s: vLLM closes idle connections then, and a connection closed while we write costs a retry."""
_SWEEP_S = 0.1


class Pool:
    """Idle and busy connections of one router, by target incarnation.

    Args:
        connect_s: how long connecting may take, in seconds.
        tls: the contexts for targets over TLS.
    """

    def __init__(self, connect_s: float, tls: TlsContexts) -> None:
        self._connect_s = connect_s
        self._tls = tls
        self._idle: dict[str, list[Connection]] = {}
        self._busy: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.now: Callable[[], float] = self._loop.time
        self.soon = self._loop.call_soon
        self._sweep()

    def send(self, incarnation: str, address: Address, exchange: Exchange) -> None:
        """Send the exchange's request to a target; the exchange tells its handler how it ended.

        A connection that the target closed while it was idle costs nothing: the request goes out again on a new one.
        """
        connection = self._take_idle(incarnation)
        if connection is None:
            self._connect_for(exchange, incarnation, address)
            return
        exchange.resend = functools.partial(self._connect_for, incarnation=incarnation, address=address)
        self._busy.add(connection)
        connection.start(exchange)

    def _connect_for(self, exchange: Exchange, incarnation: str, address: Address) -> None:
        task = self._loop.create_task(self._connect_and_start(exchange, incarnation, address))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_and_start(self, exchange: Exchange, incarnation: str, address: Address) -> None:
        try:
            connection = await self._connect(incarnation, address)
        except TimeoutError:
            exchange.broken("connecting took too long")
        except OSError as error:
            exchange.broken(f"connection failed ({type(error).__name__})")
        else:
            self._busy.add(connection)
            connection.start(exchange)

    def release(self, connection: Connection, now: float) -> None:
        """Keep a connection for the next exchange with the same incarnation; `now` is the loop's time, in seconds."""
        self._busy.discard(connection)
        connection.idle_since = now
        idle = self._idle.get(connection.incarnation)
        if idle is None:
            idle = self._idle[connection.incarnation] = []
        idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """A connection is gone."""
        self._busy.discard(connection)
        idle = self._idle.get(connection.incarnation)
        if idle and connection in idle:
            idle.remove(connection)

    def close(self) -> None:
        """Drop every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [*self._busy, *(c for idle in self._idle.values() for c in idle)]:
            connection.discard()
        self._idle.clear()

    def _take_idle(self, incarnation: str) -> Connection | None:
        idle = self._idle.get(incarnation)
        oldest = self.now() - _IDLE_LIFETIME_S
        while idle:
            connection = idle.pop()
            if connection.usable and connection.idle_since > oldest and connection.silent:
                return connection
            connection.discard()
        return None

    async def _connect(self, incarnation: str, address: Address) -> Connection:
        def factory() -> Connection:
            return Connection(self, incarnation)

        context = self._tls.of(address.tls_files) if address.tls else None
        name = (address.tls_files.server_name if address.tls_files else "") or address.host if context else None
        async with asyncio.timeout(self._connect_s):
            if address.uds:
                _, connection = await self._loop.create_unix_connection(factory, address.uds)
            else:
                _, connection = await self._loop.create_connection(
                    factory, address.host, address.port, ssl=context, server_hostname=name
                )
        return connection

    def _sweep(self) -> None:
        """Enforce first-byte and idle limits, and drop old idle connections: one timer for all, none per chunk."""
        now = self.now()
        for connection in list(self._busy):
            exchange = connection.exchange
            if exchange is None:
                continue
            connection.note_activity(now)
            if now > exchange.deadline:
                connection.give_up(DEADLINE)
            elif (exchange.body_bytes == 0 or exchange.opening) and now > exchange.first_byte_deadline:
                connection.give_up("no first byte within the limit")
            elif (
                exchange.body_bytes
                and not exchange.opening
                and not connection.paused
                and now - exchange.last_activity > exchange.idle_s
            ):
                connection.give_up("the target went silent in the middle of its response")
        oldest = now - _IDLE_LIFETIME_S
        for idle in self._idle.values():
            for connection in [c for c in idle if c.idle_since <= oldest]:
                connection.discard()
        self._idle = {key: idle for key, idle in self._idle.items() if idle}
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)
