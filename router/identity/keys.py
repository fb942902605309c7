"""One authenticator for every spelling of a credential.

A key is 256 random bits, so a plain SHA-256 of it is a safe thing to store and a dictionary look-up by digest leaks no
timing of the key itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping

from router.identity.networks import Networks
from router.identity.stored import StoredKeys
from router.identity.tokens import TokenVerifier
from router.policy import KeyGrant
from router.residency.sha256 import sha256
from router.wire.client_address import client_address
from router.wire.errors import ApiError, invalid_request
from router.wire.request import Headers

_CREDENTIALS = frozenset({b"authorization", b"x-api-key"})
_MAX_KEY_BYTES = 512
_MAX_TOKEN_BYTES = 8192


def authenticate(
    headers: Iterable[tuple[bytes, bytes]],
    keys: Mapping[bytes, KeyGrant],
    stored: StoredKeys | None = None,
    tokens: TokenVerifier | None = None,
) -> KeyGrant:
    """The grant of the key in `Authorization: Bearer` or `x-api-key`.

    Args:
        headers: request headers, names in lower case.
        keys: grants by SHA-256 digest.
        stored: keys that are not in the configuration.
        tokens: checks JWT bearers.

    Raises:
        ApiError: 401 `invalid_api_key` without a known key; 400 when two different credentials are given.
    """
    found: bytes | None = None
    for name, value in [line for line in headers if line[0] in _CREDENTIALS]:
        if name == b"authorization":
            scheme, _, credential = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise ApiError(401, "invalid_api_key", "Use `Authorization: Bearer <key>`.")
            credential = credential.strip()
        else:
            credential = value.strip()
        if found is not None and found != credential:
            raise invalid_request("Two different credentials were sent; send one.", param="authorization")
        found = credential
    if not found:
        raise ApiError(401, "invalid_api_key", "No API key: send `Authorization: Bearer <key>` or `x-api-key`.")
    grant = keys.get(sha256(found).digest()) if len(found) <= _MAX_KEY_BYTES else None
    if grant is None and tokens is not None and len(found) <= _MAX_TOKEN_BYTES and tokens.looks_like_one(found):
        grant = tokens.find(found, time.time())
    if grant is None and stored is not None and len(found) <= _MAX_KEY_BYTES:
        grant = stored.find(found, time.time())
    if grant is None:
        raise ApiError(401, "invalid_api_key", "This API key is not known here.")
    if grant.expires != math.inf and grant.expires <= time.time():
        raise ApiError(401, "invalid_api_key", "This API key has expired.")
    return grant


class WrongSource(ApiError):
    """401: a valid key was used from an address that it is not for. `key` names it, for the audit log."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(401, "ip_not_authorized", message)
        self.key = key


def check_source(grant: KeyGrant, networks: Networks, peer: str | None, headers: Headers, proxies: Networks) -> None:
    """Refuse a key outside the networks it is for.

    Args:
        grant: the key's grant.
        networks: the addresses it may be used from.
        peer: the other end of the connection; None when it has no IP address.
        headers: request headers, names in lower case.
        proxies: addresses of trusted proxies.

    Raises:
        WrongSource: 401; OpenAI's code for the same.
    """
    address = client_address(peer, headers, proxies)
    if address is None:
        raise WrongSource(grant.id, "This API key is bound to networks, and the address that the request came from is not known.")
    if not networks.holds(address):
        raise WrongSource(grant.id, "This API key may not be used from this address.")
