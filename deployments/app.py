"""`build`: the whole of tidegate as one Serve application, from the `args` of `serve_config.yaml`."""

from __future__ import annotations

from typing import Any

from ray import serve

from deployments.egress.deployment import egress_application
from deployments.engine import engine_application
from deployments.router import router_application
from router.config import home, parse_config
from router.policy_source import PolicySource


def build(args: dict[str, Any]) -> serve.Application:
    """Routers over engines, and the egress when there are cloud targets.

    Args:
        args: the mapping under `args:`; see `router.config.Config`.

    Raises:
        ConfigError: the mapping cannot be used; nothing has been started then.
    """
    config = PolicySource(parse_config(args, "serve_config.yaml") and args, home()).load().config
    engines = [engine_application(config, model, replicas) for model in config.models for replicas in model.replicas]
    needs_egress = config.egress.url is None and any(target.kind == "cloud" for target in config.targets)
    egress = egress_application(args) if needs_egress else None
    return router_application(config, args, engines, egress)
