"""The gauges of servers that already run: read from their own `/metrics`, because no supervisor of ours stands beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import httpx
from msgspec.structs import replace

from cluster.vllm_metrics import has_signals, parse_signals, steps_of
from router.config import Config, ConfigError
from router.placement.targets import Address, Kind, Report, Signals, Target
from router.placement.trust import FRESH_SIGNALS_S
from router.wire.tls import TlsContexts

PERIOD_S = 1.0
ANSWER_S = 0.8
"""For the whole page: who needs longer is late, and its next reading begins in time."""
_MOST_PER_S = 64
"""Pages read in a second, over all servers: each costs the router's loop about a millisecond."""
_AGAIN_S = 30.0
"""After an answer that is no page of vLLM's: it may be upgraded, but hardly within seconds."""
_LONGEST_PAGE = 8 << 20
_LONG_PREFILL_S = 10.0
"""A core with running requests that brings no token for so long counts as silent: no supervisor of ours is there to ask it."""


class _Server:
    """One server that is followed."""

    __slots__ = ("client", "due", "path", "signals", "stepped_at", "steps", "target", "token")

    def __init__(self, target: Target, path: str, token: str | None, client: httpx.AsyncClient) -> None:
        self.target, self.path, self.token, self.client = target, path, token, client
        self.signals: Signals | None = None
        self.due = 0.0
        self.steps = -1.0
        self.stepped_at = 0.0

    def take(self, page: bytes, now: float, clock: float) -> None:
        """What its page says; `now` is in UNIX seconds, `clock` in monotonic ones."""
        read, steps = parse_signals(page, now), steps_of(page)
        if steps != self.steps or not steps or not read.running:
            self.steps, self.stepped_at = steps, clock
        silent_s = round(clock - self.stepped_at, 1)
        self.signals = replace(
            read,
            adapters=_as_clients_name(self.target, read.adapters),
            silent_s=silent_s if silent_s >= _LONG_PREFILL_S else 0.0,
        )


class ServerGauges:
    """Reads the gauges of configured servers, again and again, beside the requests.

    A server that has none, or does not answer, stays as it is: placed by what the router has in flight there. That is no
    fault, so nothing is logged; `tidegate status` tells it.

    Args:
        config: the validated configuration; its `targets` say which servers have a page, and under which path.
        credentials: bearer tokens by target id, as requests carry them.
        tls: the contexts that requests to these servers use.
    """

    def __init__(self, config: Config, credentials: Mapping[str, str], tls: TlsContexts) -> None:
        self._credentials, self._tls = credentials, tls
        self._servers: dict[str, _Server] = {}
        self._closing: list[httpx.AsyncClient] = []
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Go by a new configuration's paths from the next `fill` on."""
        self._paths = {target.id: target.metrics_path for target in config.targets if target.metrics_path}

    def fill(self, reports: Sequence[Report]) -> list[Report]:
        """The reports, those of servers with their latest gauges as long as these are fresh; whoever is in them is followed."""
        now = time.time()
        filled: list[Report] = []
        seen: dict[str, _Server] = {}
        for report in reports:
            path = self._paths.get(report.target.id) if report.target.kind is Kind.SERVER else None
            server = None if path is None else self._server(report.target, path)
            if server is None:
                filled.append(report)
                continue
            seen[report.target.incarnation] = server
            signals = server.signals
            fresh = signals is not None and now - signals.sampled_at <= FRESH_SIGNALS_S
            filled.append(Report(report.target, signals if fresh else None, report.kv_port))
        self._closing += [server.client for name, server in self._servers.items() if seen.get(name) is not server]
        self._servers = seen
        return filled

    def _server(self, target: Target, path: str) -> _Server | None:
        """The one that is followed already, unless it is reached in another way now; None where its TLS files cannot be used."""
        known = self._servers.get(target.incarnation)
        token = self._credentials.get(target.secret) if target.secret else None
        if known is not None and (known.target.address, known.token, known.path) == (target.address, token, path):
            if target.address.tls:
                self._tls.of(target.address.tls_files)  # its client goes on with it, renewed
            return known
        try:
            return _Server(target, path, token, open_client(target.address, token, self._tls, ANSWER_S))
        except ConfigError:  # a later policy's: requests to it fail for the same reason, and tell
            return None

    async def run(self, publish: Callable[[], None] = lambda: None) -> None:
        """Read until cancelled.

        Args:
            publish: called after each round in which there was somebody to ask, so that what was read is taken at once.
        """
        try:
            while True:
                began = time.monotonic()
                await self.read()
                if self._servers:
                    publish()
                await asyncio.sleep(max(0.0, began + self._period_s() - time.monotonic()))
        finally:
            self._closing += [server.client for server in self._servers.values()]
            await self._close()

    def _period_s(self) -> float:
        return max(PERIOD_S, len(self._servers) / _MOST_PER_S)

    async def read(self) -> None:
        """One round: ask every server whose turn it is, and wait for their answers, `ANSWER_S` at most."""
        await self._close()
        now = time.monotonic()
        await asyncio.gather(*(self._ask(server) for server in self._servers.values() if server.due <= now))

    async def _ask(self, server: _Server) -> None:
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                server.client.stream("GET", server.path, extensions=sni_of(server.target.address)) as answer,
            ):
                parts, size = [], 0
                async for part in answer.aiter_bytes():
                    parts.append(part)
                    size += len(part)
                    if size > _LONGEST_PAGE:
                        break
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, TimeoutError, OSError):  # also a name that is no name
            return  # late or gone: the gauges grow old, and the breaker and the books see to the rest
        page = b"".join(parts)
        if answer.status_code != 200 or size > _LONGEST_PAGE or not has_signals(page):
            server.signals = None
            # A server that restarts answers 5xx for a while.
            server.due = time.monotonic() + (PERIOD_S if answer.status_code >= 500 else _AGAIN_S)
            return
        server.take(page, time.time(), time.monotonic())

    async def _close(self) -> None:
        closing, self._closing = self._closing, []
        await asyncio.gather(*(client.aclose() for client in closing), return_exceptions=True)


def open_client(address: Address, token: str | None, tls: TlsContexts, answer_s: float) -> httpx.AsyncClient:
    """A client for questions beside the requests: one connection, no proxy of the environment's.

    Args:
        address: the server's.
        token: what it is asked with, as requests carry it.
        tls: the contexts that requests to it use; see `sni_of`, too.
        answer_s: seconds for each step of an answer.

    Raises:
        ConfigError: the files of its TLS cannot be used.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host or "localhost"
    base = f"{'https' if address.tls else 'http'}://{host}" + (f":{address.port}" if address.port else "")
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(
            verify=tls.of(address.tls_files) if address.tls else False,
            uds=address.uds or None,
            limits=httpx.Limits(max_connections=1),
        ),
        base_url=base + address.base_path,
        headers={b"authorization": b"Bearer " + token.encode("latin-1")} if token else {},
        timeout=answer_s,
        trust_env=False,
    )


def sni_of(address: Address) -> dict[str, str]:
    """The `extensions` of a request of such a client: the name that the server's certificate must carry, where one is given."""
    files = address.tls_files
    return {"sni_hostname": files.server_name} if files is not None and files.server_name else {}


def _as_clients_name(target: Target, adapters: Sequence[str]) -> tuple[str, ...]:
    """A server knows its adapters by names of its own; books are kept by those that clients use."""
    ours = {named: model for model, named in target.models.items() if model in target.adapters}
    return tuple(ours.get(name, name) for name in adapters)
