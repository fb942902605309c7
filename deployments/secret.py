"""The cluster secret: the one value that passes and guards rest on, the same for every replica of a cluster."""

from __future__ import annotations

import ray

from deployments.credentials import read_secret
from router.config import Secret
from router.residency.guard import new_secret

ACTOR_NAME = "tidegate-secret"
NAMESPACE = "tidegate"
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
    given = read_secret(secret)
    return _held_secret() if given is None else given


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
