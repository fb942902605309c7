"""Running a router: its listeners, its books, its drain. The same for a Serve replica and a plain process."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import uvicorn

from router.app import Discreet, admin_app, model_operations, public_app
from router.config import Config, ConfigError
from router.crash import forbid_core_dumps
from router.identity.books import NoBooks
from router.identity.limits import Limits
from router.identity.stored import Shared
from router.kv_feeds import KvFeeds
from router.ledger.capturing import Capture
from router.ledger.log import AuditLog
from router.ledger.records import RELAX, WEIGHTS
from router.operation_metrics import OperationCollector
from router.peer_link import PeerLink
from router.peer_metrics import PeerCollector
from router.placement.kv_messages import KV_PATH
from router.placement.targets import Report, Target
from router.placement.trust import SelfTest
from router.policy import Policy
from router.policy_source import Loaded, PolicySource
from router.self_test import run_self_test
from router.state import RouterState
from router.teaching import Teaching
from router.wire.listening import make_server, open_socket
from router.wire.sources import Sources

_log = logging.getLogger("tidegate.router")


class RouterProcess:
    """A router that listens on its public and its admin address. Use from inside a running event loop.

    Args:
        config: the validated configuration.
        policy: the same, compiled.
        secret: the cluster secret.
        credentials: bearer tokens of servers that already run, by target id.
        router_id: names this process.
        grace_s: how long running responses may go on while draining.
        audit: the audit log, closed when the router has drained.
        shared: limits and keys shared with other routers, closed likewise; without (the store could not be opened), this router
            keeps its own books, and spends nothing of the budgets for what leaves the cluster, which may be spent already.
        capture: keeps payloads of those who opted in, closed likewise.

    Raises:
        OSError: an address is taken.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        secret: bytes,
        credentials: Mapping[str, str],
        router_id: str,
        grace_s: float = 30.0,
        audit: AuditLog | None = None,
        shared: Shared | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.state = RouterState(config, policy, secret, credentials, router_id)
        self.state.audit = audit
        self.state.record_relaxations()
        self._shared = shared
        self.state.metrics.add(OperationCollector(self.state, shared))
        if capture is not None:
            self.state.capture = capture
            self.state.metrics.watch_captures(capture.counts)
        self.state.fleet.spending.source = NoBooks() if shared is None else shared.books
        if shared is not None:
            self.state.limits, self.state.stored_keys = Limits(shared.books), shared.keys
            self.state.inflight.find_outside = shared.keys.by_id
            self.state.lineage.stored_widest = lambda tenant: shared.keys.widest.get(tenant)
        self._teaching = None if shared is None else Teaching(self.state, shared.feedback)
        self._lessons: asyncio.Task[None] | None = None
        self._servers: list[uvicorn.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._watch: asyncio.Task[None] | None = None
        self.link: PeerLink | None = None
        """Tells other routers of requests, and hears of theirs; None where this is the only one. To be set before `start`."""
        self._telling: asyncio.Task[None] | None = None
        self._grace_s = grace_s
        self._feeds = KvFeeds(self.state.prefixes, lambda target: self.state.own_pass(target, "GET", KV_PATH), self._test)

    def take_reports(self, reports: Sequence[Report]) -> None:
        """The cluster's word for who is up."""
        self.state.take_reports(reports)
        self._feeds.update(reports)

    async def _test(self, target: Target) -> SelfTest:
        return await run_self_test(self.state.prefixes, target, lambda to, path: self.state.own_pass(to, "POST", path))

    def start(self) -> None:
        """Open the listeners and begin to serve."""
        _calm_garbage_collector()
        forbid_core_dumps()
        config = self.state.config
        sockets = [open_socket(config.listen.host, config.listen.port)]
        try:
            sockets.append(open_socket(config.admin.host, config.admin.port))
        except OSError:
            sockets[0].close()
            raise
        listen = config.listen
        public = make_server(
            Discreet(public_app(self.state)),
            direct=model_operations(self.state),
            grace_s=self._grace_s,
            balancers=self.state.proxies if listen.proxy_protocol else None,
            sources=Sources(listen.connections_per_source, self.state.proxies) if listen.connections_per_source else None,
            most_requests=listen.requests_per_connection,
        )
        admin = make_server(Discreet(admin_app(self.state)), grace_s=self._grace_s)
        for server, listener in zip((public, admin), sockets, strict=True):
            self._servers.append(server)
            self._tasks.append(asyncio.get_running_loop().create_task(server.serve(sockets=[listener])))
        self._watch = asyncio.get_running_loop().create_task(self._feeds.run())
        if self.link is not None:
            self._telling = asyncio.get_running_loop().create_task(self.link.run())
            self.state.metrics.add(PeerCollector(self.link))
        if self._teaching is not None:
            self._lessons = asyncio.get_running_loop().create_task(self._teaching.run())

    def take_policy(self, source: PolicySource) -> Loaded | None:
        """Read the policy anew and run under it; one that cannot be used changes nothing and raises an alert.

        Returns:
            What runs from now on; None when nothing changed.
        """
        state = self.state
        try:
            config, _, policy = loaded = source.load()
        except ConfigError as error:
            state.refuse_policy(str(error))
            return None
        if policy.epoch == state.policy.epoch:
            reweighed = policy.weights != state.policy.weights
            if state.policy_alert or reweighed:  # or the fault was taken back
                state.adopt(config, policy, time.time())
            if reweighed:
                _log.warning("weights %s of the complexity model are in use", policy.weights)
                if state.audit is not None:
                    state.audit.event(WEIGHTS, policy.weights, {"epoch": policy.epoch})
            return None
        before, source.running = state.policy.epoch, loaded
        cut = state.adopt(config, policy, time.time())
        if state.audit is not None and source.wider:
            state.audit.event(RELAX, policy.epoch, {"before": before, "wider": source.wider})
        _log.warning("policy %s replaces %s; %d exchanges were cut", policy.epoch, before, cut)
        return loaded

    @property
    def alive(self) -> bool:
        """True while every listener serves."""
        tasks = [*self._tasks, *(task for task in (self._watch, self._telling) if task is not None)]
        return bool(self._tasks) and not any(task.done() for task in tasks)

    async def drain(self, watches: Sequence[asyncio.Future[Any]] = ()) -> None:
        """Stop accepting, let running responses finish within the grace, then close everything.

        Args:
            watches: what follows the cluster and the policy for this router. They go on until the last response has ended, for
                what runs or waits here until then is under the policy of its moment too, and may need an engine that comes up
                meanwhile. Then they are cancelled; how they end is for the caller to ask.
        """
        self.state.draining = True
        self.state.waiting.drain(time.time() + self._grace_s / 2)
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self.link is not None and self._telling is not None:  # so late, because others go by what is still running here
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            self.link.close()
        self.state.pool.close()
        if self._lessons is not None and self._teaching is not None:
            self._lessons.cancel()
            await asyncio.gather(self._lessons, return_exceptions=True)
            await self._teaching.close()
        if self.state.capture is not None:  # before the audit log, which has to hear what was kept
            await asyncio.to_thread(self.state.capture.close)
        if self.state.audit is not None:
            await asyncio.to_thread(self.state.audit.close)
        if self._shared is not None:
            await asyncio.to_thread(self._shared.close)


def _calm_garbage_collector() -> None:
    """Collect cycles seldom, and never look at what start-up left: the hot path makes none, and scanning for them cost 12 %.

    The structs of the hot path are not tracked at all (`gc=False`): they are frozen or flat, so they cannot form a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
