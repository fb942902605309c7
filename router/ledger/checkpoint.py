"""Checkpoints: what a log says of itself at one moment, signed so that nobody else can say it.

The form is C2SP's: a `tlog-checkpoint` (origin, size, root) as a `signed-note` with an Ed25519 signature. A verifier needs
the verifier key only, one line of text that can be kept anywhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from router.ledger.merkle import HASH_BYTES
from router.secret_file import read_secret_file

_ED25519 = b"\x01"
_DASH = "\u2014 "
KEY_NAME = "tidegate-audit"


class CheckpointError(ValueError):
    """A checkpoint or a key cannot be read or trusted. The text says which and why."""


class Checkpoint(msgspec.Struct, frozen=True):
    """The state of a log: `origin` names it, `root` is the Merkle root over its first `size` entries."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The part that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


class Verifier:
    """Checks signatures of one public key."""

    def __init__(self, name: str, public: bytes) -> None:
        self.name = name
        self.public = public
        self.key_id = hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]
        self._key = Ed25519PublicKey.from_public_bytes(public)

    @property
    def line(self) -> str:
        """The verifier key as C2SP's signed-note writes it: `name+hash+base64(type || key)`."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    def has_signed(self, text: str, signature: bytes) -> bool:
        """True when `signature` (key id and signature) is this key's over `text`."""
        if signature[:4] != self.key_id:
            return False
        try:
            self._key.verify(signature[4:], text.encode())
        except InvalidSignature:
            return False
        return True


class Signer:
    """Signs checkpoints; holds the private key and shows it nowhere."""

    def __init__(self, seed: bytes, name: str = KEY_NAME) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = Verifier(name, self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Signer({self.verifier.line!r})"

    def sign(self, checkpoint: Checkpoint) -> bytes:
        """The checkpoint as a signed note."""
        text = checkpoint.text()
        signature = base64.b64encode(self.verifier.key_id + self._key.sign(text.encode())).decode()
        return f"{text}\n{_DASH}{self.verifier.name} {signature}\n".encode()


def read_verifier(line: str) -> Verifier:
    """The verifier behind one line of text.

    Raises:
        CheckpointError: it is no Ed25519 verifier key, or its hash does not fit.
    """
    name, _, rest = line.strip().partition("+")
    encoded = rest.partition("+")[2]
    data = _decode(encoded)
    if not name or data is None or len(data) != 33 or data[:1] != _ED25519:
        raise CheckpointError("this is not a verifier key: one looks like `tidegate-audit+0123abcd+A...=`")
    try:
        verifier = Verifier(name, data[1:])
    except ValueError:
        raise CheckpointError("this verifier key holds no Ed25519 public key") from None
    if verifier.line != line.strip():
        raise CheckpointError("this verifier key's hash does not fit its key: it was changed or mistyped")
    return verifier


def read_verifiers(path: Path) -> list[Verifier]:
    """The verifier keys in a file, one a line.

    Raises:
        CheckpointError: the file cannot be read, or holds none.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: no verifier key can be read: {_reason(error)}") from None
    if not lines:
        raise CheckpointError(f"{path}: the file is empty; it should hold a verifier key")
    try:
        return [read_verifier(line) for line in lines]
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def open_note(note: bytes, verifiers: list[Verifier]) -> Checkpoint:
    """The checkpoint in a signed note, once one of the verifiers has signed it.

    The note must be written exactly as it would be written anew, so that no bit of it is free. Lines of further signers
    (witnesses) are allowed.

    Raises:
        CheckpointError: malformed, or signed by none of the keys.
    """
    try:
        text, _, signatures = note.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise CheckpointError("the checkpoint is not text") from None
    checkpoint = _read_text(text + "\n")
    if not signatures.endswith("\n"):
        raise CheckpointError("the checkpoint is cut off")
    signed = False
    for line in signatures[:-1].split("\n"):
        name, _, encoded = line.removeprefix(_DASH).partition(" ")
        data = _decode(encoded)
        if not line.startswith(_DASH) or not name or data is None or len(data) < 5:
            raise CheckpointError("a signature line of the checkpoint is malformed")
        signed = signed or any(v.name == name and v.has_signed(checkpoint.text(), data) for v in verifiers)
    if not signed:
        raise CheckpointError("the checkpoint is not signed by a key that is trusted here")
    return checkpoint


def _read_text(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 4 or not lines[0] or not lines[1].isascii() or not lines[1].isdigit():
        raise CheckpointError("the checkpoint is malformed: it has an origin, a size and a root")
    root = _decode(lines[2])
    if root is None or len(root) != HASH_BYTES or str(int(lines[1])) != lines[1]:
        raise CheckpointError("the checkpoint is malformed: its size or root cannot be read")
    return Checkpoint(lines[0], int(lines[1]), root)


def _decode(text: str) -> bytes | None:
    """Base64 in its one canonical spelling, else None."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if base64.b64encode(data).decode() == text else None


def load_signer(path: Path) -> Signer:
    """The signer whose seed (64 hex digits) is in a file; a missing file is made, readable by its owner only.

    Raises:
        CheckpointError: the file cannot be read or made, or holds something else.
    """
    try:
        return Signer(read_secret_file(path, make=True))
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: the audit log's signing key cannot be read: {_reason(error)}") from None
    except ValueError:
        raise CheckpointError(f"{path}: this is not a signing key of an audit log (64 hex digits)") from None


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"
