"""The Router deployment: a Serve replica that opens the public port itself, so that no byte of a request passes through Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cluster.labels import zone_of
from deployments.asking import ask_all
from deployments.credentials import LiveCredentials
from deployments.demand import demand_on, encode_demand
from deployments.handing_over import LIMIT_S, await_successor, is_kept
from deployments.membership import GuardPolicies, Membership
from deployments.news import hear_announcement, tell_in_rounds
from deployments.secret import cluster_secret
from deployments.server_gauges import ServerGauges
from router.config import Config, home
from router.identity.stored import open_shared
from router.ledger.capturing import open_capture
from router.ledger.opening import open_audit
from router.peer_link import PeerLink
from router.placement.peers import News
from router.placement.targets import Report
from router.policy_source import Loaded, PolicySource
from router.process import RouterProcess
from router.state import RouterState
from router.wire.tls import TlsContexts

DEPLOYMENT = "router"
GRACE_S = 30.0
POLICY_PERIOD_S = 0.2
DEMAND_PERIOD_S = 1.0
LINEAGE_PERIOD_S = 0.1
_ANSWER_S = 2.0
_log = logging.getLogger("ray.serve")


class RouterReplica:
    """One router. Several on a node share its public port (`SO_REUSEPORT`); old and new ones overlap in an upgrade."""

    async def __init__(  # type: ignore[misc]
        self, args: dict[str, Any], engines: Sequence[DeploymentHandle], egress: DeploymentHandle | None
    ) -> None:
        self._source = PolicySource(args, home())
        config, _, policy = loaded = self._source.load()
        secret = await asyncio.to_thread(cluster_secret, config.secret)
        actor = ray.get_runtime_context().get_actor_id() or ""
        credentials = LiveCredentials(config, home(), "server")
        audit = open_audit(config, policy, home())
        shared = await asyncio.to_thread(open_shared, config, policy, home(), f"router-{actor}")
        capture = open_capture(config, home(), audit)
        self._process = RouterProcess(config, policy, secret, credentials, f"router-{actor[:8]}", GRACE_S, audit, shared, capture)
        state = self._process.state
        state.find_elsewhere = self._ask_peers
        self._gauges = ServerGauges(config, credentials, TlsContexts(home()))
        self._guards = GuardPolicies(loaded, time.time(), state.stored_ceilings())
        self._node = ray.get_runtime_context().get_node_id()
        labels = ray.get_runtime_context().get_node_labels()
        state.stand_in(zone_of(labels, config.residency.zone_label, config.zones))
        self._membership = Membership(config, policy, engines, egress, self._update, self._guards)
        if config.router.replicas > 1:
            state.fleet.news = News(actor[:16] or state.router_id)
            self._process.link = _open_link(state, secret)
        self._watch: asyncio.Task[None] | None = None

    async def reconfigure(self, part: Any) -> None:
        """Called by Serve after the constructor, and again whenever `user_config` changes; nothing is restarted for it.

        The listeners open after the first time, so that nothing is served under less than the whole policy.

        Raises:
            ConfigError: the first one cannot be used. A later one changes nothing then, and raises an alert.
        """
        self._source.offer(part)
        if self._watch is not None:
            self._take_policy()
            return
        loaded = self._source.load()
        self._process.state.adopt(loaded.config, loaded.policy, time.time())
        self._hand_over(loaded)
        self._source.running = loaded
        self._process.start()
        self._watch = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Watch the cluster and the policy's files for ever."""
        watches = [self._membership.run(), self._gauges.run(), self._watch_policy(), self._tell_lineage(), self._tell_demand()]
        if self._process.link is not None:
            watches.append(tell_in_rounds(self._process.link, self._broadcast_news))
        await asyncio.gather(*watches)

    async def _watch_policy(self) -> None:
        while True:
            await asyncio.sleep(POLICY_PERIOD_S)
            if self._source.changed():
                self._take_policy()
            self._tell_of_stored_keys()
            self._process.state.recheck(time.time())

    async def _tell_lineage(self) -> None:
        """Tell the other routers, on whatever machine, of conversations whose follow-ups may come to them, for ever."""
        outbox = self._process.state.lineage.outbox
        while True:
            await asyncio.sleep(LINEAGE_PERIOD_S)
            news = list(outbox)
            outbox.clear()
            if news:
                with contextlib.suppress(TimeoutError, DeploymentUnavailableError):  # a follow-up there finds the past unknown
                    told = self._peers().broadcast("learn_lineage", news)
                    await told.results_async(timeout_s=_ANSWER_S, return_exceptions=True)

    async def learn_lineage(self, news: list[tuple[bytes, str]]) -> None:
        """Take what another router knows of conversations: keyed hashes and labels, nothing that was said."""
        self._process.state.lineage.learn(news)

    async def _broadcast_news(self, announcement: bytes) -> bool:
        try:
            told = self._peers().broadcast("take_news", announcement)
            answers = await told.results_async(timeout_s=_ANSWER_S, return_exceptions=True)
        except (TimeoutError, DeploymentUnavailableError):  # the gauges will show them
            return False
        return all(answer is True for answer in answers)

    async def take_news(self, announcement: bytes) -> bool:
        """Where another router (or this one) listens, and what it does; True when that is heard without this."""
        link = self._process.link
        return link is not None and hear_announcement(link, self._process.state.fleet, announcement, time.time())

    async def _tell_demand(self) -> None:
        """Tell the engines of deployments that scale what waits for them here, for ever."""
        state = self._process.state
        while True:
            await asyncio.sleep(DEMAND_PERIOD_S)
            adapters = state.policy.adapters
            scaled = {model.id for model in state.config.models for part in model.replicas if part.max_count is not None}
            for handle, facts in self._membership.engines():
                models = frozenset(fact.model for fact in facts)
                if models.isdisjoint(scaled):
                    continue
                models |= {name for name, base in adapters.items() if base in models}
                demand = demand_on(state, [fact.incarnation for fact in facts], models, time.time())
                with contextlib.suppress(TimeoutError, DeploymentUnavailableError):  # the next one comes in a second
                    told = handle.broadcast("take_demand", state.router_id, encode_demand(demand))
                    await told.results_async(timeout_s=_ANSWER_S, return_exceptions=True)

    def _take_policy(self) -> None:
        loaded = self._process.take_policy(self._source)
        if loaded is not None:
            self._hand_over(loaded)
            # Not awaited: a guard that hangs must not delay the next change.
            self._process.state.spawn(self._membership.hand_on())

    def _tell_of_stored_keys(self) -> None:
        """Let the guards know of keys that were made, changed or revoked in the store."""
        state = self._process.state
        if self._guards.renew(state.stored_ceilings(), time.time()):
            state.spawn(self._membership.hand_on())

    def _hand_over(self, loaded: Loaded) -> None:
        self._guards.adopt(loaded, time.time(), self._process.state.stored_ceilings())
        self._membership.adopt(loaded.config, loaded.policy)
        self._gauges.adopt(loaded.config)

    def _update(self, reports: Sequence[Report]) -> None:
        self._process.take_reports(self._gauges.fill(reports))

    async def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: a listener, or the watch over the cluster, has ended.
        """
        if self._watch is not None and not self._process.alive:
            raise RuntimeError("a listener of this router has stopped")
        if self._watch is not None and self._watch.done():
            raise RuntimeError("this router has stopped watching the cluster")

    async def find_receipt(self, request_id: str) -> dict[str, Any] | None:
        """This replica's receipt of a request, if it has one."""
        return self._process.state.receipts.find(request_id)

    def _peers(self) -> DeploymentHandle:
        context = serve.get_replica_context()
        return serve.get_deployment_handle(context.deployment, context.app_name)

    async def describe(self) -> tuple[str, str]:
        """Who this is, and on which node: asked only of replicas that Serve counts as running, and those listen."""
        return self._process.state.router_id, self._node

    async def _find_others(self) -> list[str]:
        """The nodes of the other routers that listen."""
        try:
            answers = await ask_all(self._peers(), "describe", timeout_s=_ANSWER_S)
        except (TimeoutError, DeploymentUnavailableError):
            return []
        return [answer[1] for answer in answers if isinstance(answer, tuple) and answer[0] != self._process.state.router_id]

    async def _ask_peers(self, request_id: str) -> dict[str, Any] | None:
        try:
            answers = await ask_all(self._peers(), "find_receipt", request_id, timeout_s=_ANSWER_S)
        except (TimeoutError, DeploymentUnavailableError):
            return None
        return next((answer for answer in answers if isinstance(answer, dict)), None)

    async def __del__(self) -> None:
        if getattr(self, "_watch", None) is None:  # it never started; its error is what should be read, not one from here
            return
        assert self._watch is not None
        context = serve.get_replica_context()
        await await_successor(self._find_others, lambda: is_kept(context.app_name), self._node)
        await self._process.drain([self._watch])


def _open_link(state: RouterState, secret: bytes) -> PeerLink:
    """A link at this node's own address; one that listens nowhere where the node lets nobody listen."""
    link = PeerLink(state.fleet, secret)
    host = ray.util.get_node_ip_address()
    try:
        link.listen((host, 0))
    except OSError as error:
        _log.warning("tidegate: no datagram socket on %s (%s): routers tell each other by Serve, later", host, error.strerror)
    return link


def router_application(
    config: Config, args: dict[str, Any], engines: Sequence[serve.Application], egress: serve.Application | None
) -> serve.Application:
    """The routers as a Serve application node over the engines and the egress."""
    actor: dict[str, Any] = {"num_cpus": config.router.cpus}
    if config.router.label_selector:
        actor["label_selector"] = config.router.label_selector
    options = {
        "name": DEPLOYMENT,
        "num_replicas": config.router.replicas,
        "ray_actor_options": actor,
        "user_config": {},  # Serve calls `reconfigure` only where there is one
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": LIMIT_S + GRACE_S + 10.0,
        "max_constructor_retry_count": 3,
        "max_ongoing_requests": 1000,
        "logging_config": {"enable_access_log": False},  # one line per `describe` would bury what matters
    }
    return serve.deployment(RouterReplica).options(**options).bind(args, list(engines), egress)
