"""Tenant isolation in the KV cache: the salt under which an engine may share cached prefixes.

vLLM folds `cache_salt` into the hash of a prompt's first block, so requests share cached prefixes only under the same salt.
Without one, a tenant can time whether another sent a prefix ("Early Bird", arXiv 2409.20002). The salt names tenant and
label, never what a client sent: its own `cache_salt` is folded in and can only separate further.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from router.placement.targets import Endpoint
from router.residency.keyed_hash import keyed_hash

FIELD = "cache_salt"
SALTED = frozenset(
    {
        Endpoint.CHAT,
        Endpoint.COMPLETIONS,
        Endpoint.RESPONSES,
        Endpoint.MESSAGES,
        Endpoint.EMBEDDINGS,
        Endpoint.RERANK,
        Endpoint.SCORE,
    }
)
"""Where vLLM 0.32 and later take a salt in the body."""


def salt_key(secret: bytes) -> bytes:
    """The key that salts are made with: derived from the cluster secret, so every router makes the same ones."""
    return hmac.digest(secret, b"cache-salt", "sha256")


def cache_salt(key: bytes, tenant: str, label_text: str, client_salt: object = None) -> str:
    """The salt of one request: HMAC-SHA256 over tenant, label and the client's own salt, as 64 hex digits.

    Args:
        key: from `salt_key`.
        tenant: the tenant of the request's key.
        label_text: the effective label in names.
        client_salt: what the client sent as `cache_salt`; anything that is no non-empty text counts as none.
    """
    own = client_salt.encode("utf-8", "surrogatepass") if isinstance(client_salt, str) else b""
    # Each part with its length: no tenant, label or client can spell the border of another.
    of, under = tenant.encode(), label_text.encode()
    return keyed_hash(key).hexdigest(b"%d:%b%d:%b%d:%b" % (len(of), of, len(under), under, len(own), own))


def with_cache_salt(body: bytes, parsed: dict[str, Any], salt: str) -> bytes:
    """`body` with its top-level `cache_salt` set to `salt`; only a client's own one costs encoding anew.

    Args:
        body: the request as it is about to be sent; its model may differ from `parsed`'s.
        parsed: the request as the client sent it.
        salt: from `cache_salt`.
    """
    if FIELD not in parsed:
        start = body.index(b"{") + 1
        comma = b"," if body[start:].lstrip()[:1] != b"}" else b""
        return b'%b"cache_salt":"%b"%b%b' % (body[:start], salt.encode(), comma, body[start:])
    return json.dumps({**json.loads(body), FIELD: salt}, separators=(",", ":")).encode()
