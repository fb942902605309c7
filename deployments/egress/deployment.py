"""The egress as a Serve deployment: an HTTP server on its node's address that answers only to passes."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import msgspec
import ray
from ray import serve

from deployments.credentials import LiveCredentials
from deployments.egress.server import EgressServer
from deployments.secret import cluster_secret
from router.app import Discreet
from router.compiled import compile_policy
from router.config import home, parse_config
from router.crash import forbid_core_dumps
from router.policy_source import compile_loaded
from router.residency.guard import StoredCeilings
from router.wire.listening import make_server, open_socket


class EgressFacts(msgspec.Struct, frozen=True):
    """Where the egress listens, and its incarnation."""

    host: str
    port: int
    incarnation: str
    policy: str = ""


class EgressReplica:
    """One egress; Serve starts, checks and replaces it."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]
        forbid_core_dumps()
        config = parse_config(args)
        secret = await asyncio.to_thread(cluster_secret, config.secret)
        self._host = ray.util.get_node_ip_address()
        self._incarnation = f"egress-{secrets.token_hex(8)}"
        credentials = LiveCredentials(config, home(), "cloud")
        self._egress = EgressServer(config, compile_policy(config, home()), secret, self._incarnation, credentials)
        listener = open_socket(self._host, 0)
        self._port = listener.getsockname()[1]
        self._server = make_server(Discreet(self._egress.app))
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def check_health(self) -> None:
        """Called by Serve.

        Raises:
            RuntimeError: the server has ended.
        """
        if self._task.done():
            raise RuntimeError("the egress has stopped serving")

    async def describe(self) -> bytes:
        """`EgressFacts` as MessagePack."""
        return msgspec.msgpack.encode(EgressFacts(self._host, self._port, self._incarnation, self._egress.stamp))

    async def take_policy(self, config: str, glass: str, issued: float, stored: bytes) -> bytes:
        """Run under what a router has taken; what was issued earlier is not taken.

        Args:
            config: the configuration as JSON.
            glass: the text of the break-glass file.
            issued: UNIX time in seconds.
            stored: `StoredCeilings` as MessagePack.

        Raises:
            ConfigError: this node cannot use it (a file of a key is missing here); the policy before goes on.
        """
        if issued >= self._egress.issued:
            taken = await asyncio.to_thread(compile_loaded, parse_config(json.loads(config)), glass, home())
            self._egress.adopt(taken.config, taken.policy, issued, msgspec.msgpack.decode(stored, type=StoredCeilings))
        return self._egress.stamp.encode()

    async def __del__(self) -> None:
        self._server.should_exit = True
        await self._task


def egress_application(args: dict[str, Any]) -> serve.Application:
    """The egress as a Serve application node."""
    options = {
        "name": "egress",
        "num_replicas": 1,
        "ray_actor_options": {"num_cpus": 0.1},
        "logging_config": {"enable_access_log": False},
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_timeout_s": 40.0,
        "max_constructor_retry_count": 2,
    }
    return serve.deployment(EgressReplica).options(**options).bind(args)
