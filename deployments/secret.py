"""The cluster secret: the one value that passes and guards rest on, the same for every replica of a cluster."""

from __future__ import annotations

import os
from pathlib import Path

import ray

from router.config import ConfigError, Secret, home
from router.residency.guard import new_secret

ACTOR_NAME = "tidegate-secret"
NAMESPACE = "tidegate"
MIN_BYTES = 32
_HEAD_NODE = "node:__internal_head__"
_WAIT_S = 180.0


class SecretHolder:
    """A Ray actor that holds the secret for as long as the cluster lives."""

    def __init__(self, secret: bytes) -> None:
        # An argument, not made here: Ray repeats the constructor with the same arguments when it restarts the actor.
        self._secret = secret

    def get(self) -> bytes:
        """The secret."""
        return self._secret


def cluster_secret(secret: Secret) -> bytes:
    """The cluster secret, from where the configuration says, else made once per cluster.

    It blocks; call it in a thread from a coroutine. Whoever holds it can enter every engine, so keep it only where
    passes are issued.

    Args:
        secret: `config.secret`.

    Raises:
        ConfigError: the variable or file is missing, or holds fewer than 32 bytes.
    """
    if secret.env is not None:
        return _long_enough(os.environ.get(secret.env, "").strip().encode(), f"secret.env: the variable `{secret.env}`")
    if secret.file is not None:
        path = home() / Path(secret.file).expanduser()
        try:
            content = path.read_bytes().strip()
        except OSError as error:
            raise ConfigError(f"secret.file: cannot read {path} on this node: {error.strerror}") from None
        return _long_enough(content, f"secret.file: {path}")
    return _held_secret()


def _long_enough(value: bytes, where: str) -> bytes:
    if not value:
        raise ConfigError(f"{where} is not set on this node; every node of the cluster needs the same secret")
    if len(value) < MIN_BYTES:
        raise ConfigError(f"{where} holds {len(value)} bytes; use {MIN_BYTES} or more, e.g. `openssl rand -hex 32`")
    return value


def _held_secret() -> bytes:
    """Get or create: of several that come at once Ray lets one create the actor, and all read that one's secret.

    It stands on the head node, which the cluster cannot do without anyway, so it is not lost with a worker node.
    """
    holder = (
        ray.remote(SecretHolder)
        .options(
            name=ACTOR_NAME,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            resources={_HEAD_NODE: 0.001},
        )
        .remote(new_secret())
    )
    return bytes(ray.get(holder.get.remote(), timeout=_WAIT_S))
