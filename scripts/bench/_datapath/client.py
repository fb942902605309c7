"""The load generator of last resort, where `wrk` is missing: keep-alive connections, one JSON line at the end.

It costs more CPU per request than `wrk`, so throughput and latency look worse with it; the CPU time of the system under
test does not depend on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import uvloop


class Tally:
    """What all connections have counted."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.latencies: list[float] = []
        self.bytes = self.status_errors = self.socket_errors = 0
        self.over = False


class Connection(asyncio.Protocol):
    """Sends a request, waits for the whole response, and sends the next."""

    def __init__(self, requests: list[bytes], first: int, tally: Tally) -> None:
        """Start with request number `first` of the pool."""
        self.requests, self.turn, self.tally = requests, first, tally
        self.parser = httptools.HttpResponseParser(self)
        self.sent_at = 0.0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment]
        self._next()

    def _next(self) -> None:
        self.turn = (self.turn + 1) % len(self.requests)
        self.sent_at = time.perf_counter()
        self.transport.write(self.requests[self.turn])

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        self.tally.bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.tally.socket_errors += not self.tally.over
            self.transport.close()

    def on_message_complete(self) -> None:
        """Parser: a whole response."""
        if self.tally.over:
            return
        self.tally.latencies.append(time.perf_counter() - self.sent_at)
        self.tally.status_errors += self.parser.get_status_code() > 399
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """A server that hangs up in the middle is an error."""
        self.tally.socket_errors += not self.tally.over


def render(url: str, pool: Path, key: str) -> list[bytes]:
    """The requests, ready to be written."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
    head += "Content-Type: application/json\r\n"
    lines = pool.read_bytes().splitlines()
    return [f"{head}Content-Length: {len(line)}\r\n\r\n".encode() + line for line in lines]


async def load(url: str, requests: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Run the load and return what `load.parse` expects."""
    parts, tally, loop = urlsplit(url), Tally(), asyncio.get_running_loop()
    begin, transports = time.perf_counter(), []
    for number in range(connections):
        made = await loop.create_connection(
            lambda number=number: Connection(requests, number * 7 % len(requests), tally), parts.hostname, parts.port
        )
        transports.append(made[0])
    await asyncio.sleep(seconds)
    tally.over, took = True, time.perf_counter() - begin
    for transport in transports:
        transport.abort()
    ordered = sorted(tally.latencies) or [0.0]
    return {
        "requests": len(tally.latencies),
        "duration_s": round(took, 6),
        "p50_ms": round(ordered[len(ordered) // 2] * 1000, 3),
        "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * 1000, 3),
        "bytes": tally.bytes,
        "status_errors": tally.status_errors,
        "socket_errors": tally.socket_errors,
        "timeouts": 0,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--bodies", type=Path, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    pool = render(options.url, options.bodies, options.key)
    counted = uvloop.run(load(options.url, pool, options.connections, options.seconds))
    print("datapath: " + json.dumps(counted))
