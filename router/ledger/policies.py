"""The policy as the log keeps it: the whole configuration in canonical JSON, less what a log must not hold.

It is stored once per epoch. Digests of keys and the environment of engines (which may hold credentials) are left out;
neither has a part in a decision.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from router.config import Config, parse_config
from router.policy import KeyGrant, Policy, compile_policy


def policy_text(config: Config) -> bytes:
    """The configuration as it is stored."""
    data = config.model_dump(mode="json")
    for key in data["keys"]:
        _without_digest(key)
    for model in data["models"]:
        model["env"] = {}
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _without_digest(key: dict[str, Any]) -> None:
    """Put the hash of the key's id where the digest of the key stood: distinct, and open to everybody."""
    key["sha256"], key["sha256_file"] = hashlib.sha256(f"key {key['id']}".encode()).hexdigest(), None


def read_policy(text: bytes, epoch: str) -> tuple[Config, Policy]:
    """The configuration and the policy behind a stored text.

    Args:
        text: what `policy_text` made.
        epoch: the epoch it had; a decision may depend on it.

    Raises:
        ConfigError: this version of tidegate does not understand it.
    """
    config = parse_config(json.loads(text), f"the policy of epoch {epoch}")
    return config, replace(compile_policy(config, Path("/")), epoch=epoch)


def compile_without_keys(config: Config) -> Policy:
    """Compile a configuration whose key files may not be at hand: everything but who holds which key.

    Raises:
        ConfigError: as `compile_policy`.
    """
    keys = []
    for key in config.keys:
        data = key.model_dump()
        _without_digest(data)
        keys.append(type(key).model_validate(data))
    return compile_policy(config.model_copy(update={"keys": keys}), Path("/"))


def grants_by_id(policy: Policy) -> dict[str, KeyGrant]:
    """What each key of a policy may do, by the key's id."""
    return {grant.id: grant for grant in policy.keys.values()}
