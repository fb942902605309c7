"""The policy as the log keeps it: the whole configuration in canonical JSON, less what a log must not hold.

It is stored once per epoch. Digests of keys, the environment of engines (which may hold credentials) and the files of TLS are
left out; none has a part in a decision.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from router.compiled import compile_policy
from router.config import Config, parse_recorded
from router.policy import KeyGrant, Policy


def policy_text(config: Config) -> bytes:
    """The configuration as it is stored."""
    data = _without_files(config)
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def _without_files(config: Config) -> dict[str, Any]:
    data = config.model_dump(mode="json")
    for key in data["keys"]:
        # The hash of the key's id in the place of the key's digest: distinct, and open to everybody.
        key["sha256"], key["sha256_file"] = hashlib.sha256(f"key {key['id']}".encode()).hexdigest(), None
    for model in data["models"]:
        model["env"] = {}
    for part in (*data["targets"], data["egress"]):
        part["tls"] = None
    return data


def read_policy(text: bytes, epoch: str) -> tuple[Config, Policy]:
    """The configuration and the policy behind a stored text.

    Args:
        text: what `policy_text` made.
        epoch: the epoch it had; a decision may depend on it.

    Raises:
        ConfigError: this version of tidegate does not understand it.
    """
    config = parse_recorded(json.loads(text), f"the policy of epoch {epoch}")
    return config, replace(compile_policy(config, Path("/")), epoch=epoch)


def external_zones(text: bytes) -> frozenset[str]:
    """The zones outside of a stored policy, whether or not this version of tidegate understands the rest of it."""
    return frozenset(name for name, zone in json.loads(text)["zones"].items() if zone["external"])


def compile_without_keys(config: Config) -> Policy:
    """Compile a configuration whose files of keys and TLS may not be at hand: everything but who holds which key.

    Raises:
        ConfigError: as `compile_policy`.
    """
    return compile_policy(Config.model_validate(_without_files(config)), Path("/"))


def grants_by_id(policy: Policy) -> dict[str, KeyGrant]:
    """What each key of a policy may do, by the key's id."""
    return {grant.id: grant for grant in policy.keys.values()}
