"""Break-glass: a signed, expiring relaxation of one key's ceiling that takes two people.

A relaxation is one line of JSON in the file `break_glass.file`:

    {"id": "inc-42", "key": "clinic", "tags": ["any"], "begins": "2026-11-22T03:00:00Z", "ends": "2026-11-22T05:00:00Z",
     "reason": "fra1 is down", "signatures": {"alice": "<Ed25519, 128 hex digits>", "bob": "..."}}

Each approver signs the same bytes (`statement`): a domain string and the other fields in canonical JSON. The relaxation adds
the meet of `tags` to the key's ceiling while it lasts; whatever else has a say in a label still takes the meet. One line
that does not hold makes the whole file invalid: a relaxation nobody can check must not be overlooked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_DOMAIN = b"tidegate break-glass v1\n"
_POLICY_DOMAIN = b"tidegate wider policy v2\n"
_SKEW_S = 300.0
"""How far the clock it was signed by may be ahead of the one it is read by."""
_FIELDS = ("begins", "ends", "id", "key", "reason", "tags")


class RelaxationError(ValueError):
    """A relaxation that does not hold. The text says which and why."""


class Relaxation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A relaxation whose signatures hold. Times are UNIX seconds."""

    id: str
    key: str
    tags: tuple[str, ...]
    begins: float
    ends: float
    reason: str
    approved_by: tuple[str, ...]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    key: str
    tags: list[str]
    begins: str
    ends: str
    reason: str
    signatures: dict[str, str] = {}


def statement(fields: Mapping[str, Any]) -> bytes:
    """The bytes that approvers sign: everything of a relaxation but its signatures."""
    return _DOMAIN + msgspec.json.encode({name: fields[name] for name in _FIELDS}, order="sorted")


def sign(fields: Mapping[str, Any], private_key: bytes) -> str:
    """One approver's signature of a relaxation, in hex.

    Args:
        fields: id, key, tags, begins, ends and reason, as they stand in the line.
        private_key: the approver's 32 private bytes (Ed25519, RFC 8032).
    """
    return sign_bytes(statement(fields), private_key)


def read_relaxations(text: str, approvers: Mapping[str, str], required: int, max_hours: float) -> tuple[Relaxation, ...]:
    """The relaxations in a file's text, every one checked. Empty lines and lines that begin with `#` are skipped.

    Args:
        text: the file's text.
        approvers: public keys in hex by name.
        required: how many different approvers must have signed.
        max_hours: the longest a relaxation may last.

    Raises:
        RelaxationError: a line that cannot be read, too few valid signatures, a signature that is not valid, an approver
            nobody named, a span that is empty or too long, or an id given twice.
    """
    found: dict[str, Relaxation] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        relaxation = _read_line(line, f"line {number}", approvers, required, max_hours)
        if relaxation.id in found:
            raise RelaxationError(f"line {number}: the id `{relaxation.id}` is there twice")
        found[relaxation.id] = relaxation
    return tuple(found.values())


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Leave to go from one policy to another, wider one; both by the digest of their configuration (`config.digest_of`).

    It ends, or whoever can write the policy could go back to the wider one long after it was given up, and ask nobody.
    """

    before: str
    after: str
    ends: str
    reason: str
    signatures: dict[str, str] = {}

    def statement(self) -> bytes:
        """The bytes that approvers sign."""
        return _POLICY_DOMAIN + msgspec.json.encode([self.before, self.after, self.ends, self.reason])

    def holds(self, now: float, max_hours: float) -> bool:
        """Whether it is for now: it has not ended, and does so within so many hours from `now` (UNIX seconds)."""
        return 0 < _time(self.ends) - now <= max_hours * 3600 + _SKEW_S


def read_approvals(text: str, approvers: Mapping[str, str], required: int) -> tuple[Approval, ...]:
    """The approvals of wider policies in a file's text, one JSON object a line, every one checked.

    Args:
        text: the file's text.
        approvers: public keys in hex by name.
        required: how many different approvers must have signed each.

    Raises:
        RelaxationError: a line that cannot be read, or whose signatures do not hold or are too few.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {number}"
        try:
            approval = msgspec.json.decode(line, type=Approval)
            _time(approval.ends)
        except (msgspec.MsgspecError, ValueError) as error:
            raise RelaxationError(f"{where}: {error}") from None
        _check_signatures(where, approval.signatures, approval.statement(), approvers, required)
        found.append(approval)
    return tuple(found)


def sign_bytes(signed: bytes, private_key: bytes) -> str:
    """An approver's signature in hex; `private_key` is 32 bytes (Ed25519, RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(signed).hex()


def _read_line(line: str, where: str, approvers: Mapping[str, str], required: int, max_hours: float) -> Relaxation:
    try:
        parsed = msgspec.json.decode(line, type=_Line)
        begins, ends = _time(parsed.begins), _time(parsed.ends)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RelaxationError(f"{where}: {error}") from None
    if not (parsed.id and parsed.key and parsed.tags and parsed.reason.strip()):
        raise RelaxationError(f"{where}: id, key, tags and reason must not be empty")
    if not 0 < ends - begins <= max_hours * 3600:
        raise RelaxationError(f"{where}: a relaxation lasts more than nothing and at most {max_hours:g} hours")
    signed = statement(msgspec.to_builtins(parsed))
    _check_signatures(where, parsed.signatures, signed, approvers, required)
    names: Sequence[str] = sorted(parsed.signatures)
    return Relaxation(parsed.id, parsed.key, tuple(parsed.tags), begins, ends, parsed.reason, tuple(names))


def _check_signatures(
    where: str, signatures: Mapping[str, str], signed: bytes, approvers: Mapping[str, str], required: int
) -> None:
    for name, signature in signatures.items():
        _check_signature(where, name, signature, signed, approvers)
    # By key, not by name: the configuration refuses shared keys, this refuses them once more.
    if len({approvers[name] for name in signatures}) < required:
        raise RelaxationError(f"{where}: {required} approvers must sign, {len(signatures)} did")


def _check_signature(where: str, name: str, signature: str, signed: bytes, approvers: Mapping[str, str]) -> None:
    if name not in approvers:
        raise RelaxationError(f"{where}: `{name}` is not an approver")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(approvers[name])).verify(bytes.fromhex(signature), signed)
    except (InvalidSignature, ValueError):
        raise RelaxationError(f"{where}: the signature of `{name}` is not valid for this relaxation") from None


def _time(text: str) -> float:
    """UNIX seconds of an ISO time, which must say its offset: a bare local time would mean another moment elsewhere."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset, such as 2026-11-22T05:00:00Z")
    return moment.timestamp()
