"""Small configurations, facts and views for tests of the decision."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from router.compiled import compile_policy
from router.config import Config, parse_config
from router.decision import Complexity, Facts
from router.placement.targets import Address, Endpoint, Kind, Load, Membership, Target, View
from router.policy import KeyGrant, Policy
from router.residency.label import Evidence

NOW = 1_800_000_000.0
KEY = "tg_test-key"
SPILL_KEY = "tg_test-spill-key"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def make_config(**changes: Any) -> Config:
    data: dict[str, Any] = {
        "zones": {"eu": {}, "us": {}, "cloud": {"external": True}},
        "duties": ["baa"],
        "residency": {"tags": {"phi": {"process": ["eu"], "require": ["baa"]}}},
        "models": [
            {
                "id": "tiny",
                "source": "x/tiny",
                "tier": "small",
                "replicas": [{"zone": "eu", "gpus": 0}, {"zone": "us", "gpus": 0}],
            },
            {"id": "big", "source": "x/big", "tier": "large", "replicas": [{"zone": "eu", "gpus": 0, "duties": ["baa"]}]},
        ],
        "targets": [
            {
                "id": "provider",
                "kind": "cloud",
                "url": "https://cloud.invalid",
                "zone": "cloud",
                "models": {"tiny": "t-1", "big": "b-1"},
                "price": {"prompt": 1, "completion": 2},
            }
        ],
        "keys": [
            {"id": "plain", "sha256": digest(KEY)},
            {"id": "spiller", "sha256": digest(SPILL_KEY), "residency": "any", "spill": True},
        ],
    }
    return parse_config({**data, **changes})


def make_policy(**changes: Any) -> Policy:
    return compile_policy(make_config(**changes), Path("/nonexistent"))


def grant_of(policy: Policy, key: str = KEY) -> KeyGrant:
    return policy.keys[hashlib.sha256(key.encode()).digest()]


def make_target(policy: Policy, name: str, zone: str, model: str = "tiny", kind: Kind = Kind.REPLICA, **more: Any) -> Target:
    mask = policy.vocabulary.zone_mask([zone])
    duties = policy.vocabulary.duty_mask(more.pop("duties", []))
    return Target(
        id=name,
        incarnation=f"{name}-1",
        kind=kind,
        zone=zone,
        evidence=more.pop("evidence", Evidence(mask, mask, duties)),
        address=Address("127.0.0.1", 1),
        models=more.pop("models", {model: model}),
        **more,
    )


def make_facts(policy: Policy, key: str = KEY, **changes: Any) -> Facts:
    grant = changes.pop("grant", None) or grant_of(policy, key)
    values: dict[str, Any] = {
        "request_id": "req-1",
        "key": grant,
        "endpoint": Endpoint.CHAT,
        "model": "tiny",
        "label": grant.ceiling,
        "complexity": Complexity("small", 0.0),
        "prompt_tokens": 100,
        "prompt_bytes": 400,
    }
    return Facts(**{**values, **changes})


def make_view(*pairs: tuple[Target, Load], **more: Any) -> View:
    targets = tuple(target for target, _ in pairs)
    return View(
        Membership(1, targets),
        tuple(load for _, load in pairs),
        more.get("spilling", frozenset()),
        more.get("spend_left_usd", float("inf")),
    )
