"""JWT bearers as an alternative to keys: signed by an issuer whose keys lie in a file, for this audience, and not expired.

Who bears one gets the scopes of a configured key, less what the token's own claim and its tenant take away from them. What a
token grants is remembered by the SHA-256 of the whole token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from copy import copy
from pathlib import Path

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from router.config import ConfigError, Jwt
from router.identity.narrowing import read_narrowing
from router.identity.scopes import bearer_grant
from router.policy import KeyGrant, Policy

_log = logging.getLogger("tidegate.keys")

_REMEMBERED = 10_000
_LOOK_S = 5.0
_MAX_CLAIM = 64


class TokenVerifier:
    """Checks tokens of one issuer.

    Args:
        options: the `jwt` block of the configuration.
        policy: gives the scopes.
        base: directory that relative paths start from.

    Raises:
        ConfigError: the issuer's keys cannot be read, or the key whose scopes are meant is not configured.
    """

    def __init__(self, options: Jwt, policy: Policy, base: Path) -> None:
        self._options = options
        self._path = base / options.jwks_file
        self._grant = _bearers_key(options, policy)
        self._policy = policy
        self._claims = jwt.JWTClaimsRegistry(
            leeway=options.leeway_s,
            iss={"essential": True, "value": options.issuer},
            aud={"essential": True, "value": options.audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._known: dict[bytes, tuple[KeyGrant, float]] = {}
        self._looked = 0.0
        self._read_at = -1.0
        self._keys: KeySet
        self._read_keys()

    def under(self, policy: Policy) -> TokenVerifier:
        """The same under another policy: with the issuer's keys that are known, whatever the file of them is like now.

        Raises:
            ConfigError: the key whose scopes are meant is not configured any more.
        """
        other = copy(self)
        other._grant = _bearers_key(self._options, policy)
        other._policy = policy
        other._known = {}
        return other

    @staticmethod
    def looks_like_one(credential: bytes) -> bool:
        """Three parts with dots between: no key of ours looks like that."""
        return credential.count(b".") == 2

    def find(self, credential: bytes, now: float) -> KeyGrant | None:
        """The grant of a token that is valid at `now` (UNIX seconds), else None."""
        self._look_for_new_keys()
        digest = hashlib.sha256(credential).digest()
        found = self._known.get(digest)
        if found is None:
            found = self._verify(credential)
            if found is None:
                return None
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[digest] = found
        return found[0] if now < found[1] else None

    def _verify(self, credential: bytes) -> tuple[KeyGrant, float] | None:
        try:
            token = jwt.decode(credential, self._keys, algorithms=list(self._options.algorithms))
            self._claims.validate(token.claims)
            subject, expires = str(token.claims["sub"]), float(token.claims["exp"])
        except (JoseError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        tenant: object = self._grant.tenant
        if self._options.tenant_claim is not None:
            tenant = token.claims.get(self._options.tenant_claim)
        if not isinstance(tenant, str) or not 0 < len(tenant) <= _MAX_CLAIM or not tenant.isprintable():
            return None
        # Receipts and the audit log get a name that says who it was only to those who know the subject.
        name = hashlib.sha256(f"{self._options.issuer}\0{subject}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        claim = None if self._options.scopes_claim is None else token.claims.get(self._options.scopes_claim)
        try:
            grant = bearer_grant(self._grant, f"jwt-{name}", tenant, read_narrowing(claim), self._policy)
        except ValueError:
            return None
        return grant, min(expires + self._options.leeway_s, grant.expires)

    def _look_for_new_keys(self) -> None:
        moment = time.monotonic()
        if moment - self._looked < _LOOK_S:
            return
        self._looked = moment
        try:
            self._read_keys()
        except ConfigError as error:
            if not isinstance(error.__context__, FileNotFoundError):
                _log.error("keys: %s; the keys that were known stay", error)
            elif self._read_at >= 0.0:
                # Who takes the file away wants no token to be taken any more: nothing else says so without a restart.
                _log.error("keys: jwt.jwks_file: %s is gone; no token is taken until it is back", self._path)
                self._keys, self._read_at = KeySet([]), -1.0
                self._known.clear()

    def _read_keys(self) -> None:
        """Read the issuer's keys when the file has changed; what was verified with the old ones is verified again."""
        try:
            changed = self._path.stat().st_mtime
            if changed == self._read_at:
                return
            data = json.loads(self._path.read_bytes())
            if any(key.get("kty") == "oct" or "d" in key for key in data["keys"]):
                raise ConfigError(f"jwt.jwks_file: {self._path} holds secret keys; it must hold public ones only")
            self._keys = KeySet.import_key_set(data)
        except ConfigError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, JoseError) as error:
            raise ConfigError(f"jwt.jwks_file: {self._path} holds no key set: {type(error).__name__}") from None
        self._read_at = changed
        self._known.clear()


def _bearers_key(options: Jwt, policy: Policy) -> KeyGrant:
    """The key whose scopes every bearer has."""
    grant = next((grant for grant in policy.keys.values() if grant.id == options.key), None)
    if grant is None:
        raise ConfigError(f"jwt.key: there is no key `{options.key}`")
    return grant
