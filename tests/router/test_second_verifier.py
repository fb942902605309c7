"""A second verifier, written from RFC 9162, tlog-tiles and signed-note alone: nothing in it comes from `router.ledger`."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from router.ledger.checkpoint import Signer
from router.ledger.proofs import prove
from router.ledger.reader import LogReader

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _ledger.detect import build_log

SIGNER = Signer(bytes(range(32)))


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word for word, over leaf hashes."""
    if len(leaves) < 2:
        return leaves[0] if leaves else sha(b"")
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:]))


def climb(leaf: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """The root that an inclusion proof leads to, by following its definition from the top."""
    if size == 1:
        assert not path
        return leaf
    k = 1
    while k * 2 < size:
        k *= 2
    if index < k:
        return sha(b"\x01" + climb(leaf, index, k, path[:-1]) + path[-1])
    return sha(b"\x01" + path[-1] + climb(leaf, index - k, size - k, path[:-1]))


def open_signed(note: str, vkey: str) -> tuple[int, bytes]:
    """Size and root of a signed checkpoint, once the key has signed it."""
    name, key_hash, encoded = vkey.strip().split("+", 2)
    key = base64.b64decode(encoded)
    assert sha(name.encode() + b"\n" + key)[:4].hex() == key_hash
    text, _, signature = note.partition("\n\n")
    dash, signer, value = signature.strip().split(" ")
    raw = base64.b64decode(value)
    assert (dash, signer, raw[:4].hex()) == ("\u2014", name, key_hash)
    Ed25519PublicKey.from_public_bytes(key[1:]).verify(raw[4:], (text + "\n").encode())
    _, size, root = text.split("\n")
    return int(size), base64.b64decode(root)


def tile(root: Path, kind: str, index: int, size: int) -> bytes:
    digits = f"{index:03d}"
    assert len(digits) == 3
    width = min(256, size - index * 256)
    return (root / "tile" / kind / (digits if width == 256 else f"{digits}.p/{width}")).read_bytes()


def read_entries(root: Path, size: int) -> list[bytes]:
    entries = []
    for index in range(-(-size // 256)):
        data = tile(root, "entries", index, size)
        while data:
            length = int.from_bytes(data[:2], "big")
            entries.append(data[2 : 2 + length])
            data = data[2 + length :]
    return entries


def verify(root: Path, vkey: str) -> list[bytes]:
    """The entries of a published log; AssertionError or InvalidSignature where it is not what was signed."""
    size, signed = open_signed((root / "checkpoint").read_text(), vkey)
    entries = read_entries(root, size)
    assert len(entries) == size
    leaves = [sha(b"\x00" + entry) for entry in entries]
    for index in range(-(-size // 256)):
        assert tile(root, "0", index, size) == b"".join(leaves[index * 256 : (index + 1) * 256])
    assert tree_hash(leaves) == signed
    return entries


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("second") / "log"
    build_log(root, SIGNER, 4, 300)
    return root


def test_a_log_is_sound_to_a_verifier_that_knows_only_the_specifications(log):
    entries = verify(log, SIGNER.verifier.line)
    assert len(entries) > 600
    assert entries == [entry for _, entry in LogReader(log).entries()]


def test_it_finds_a_changed_entry_and_another_key(log, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    bundle = copy / "tile" / "entries" / "001"
    data = bytearray(bundle.read_bytes())
    data[1000] ^= 1
    bundle.write_bytes(data)
    with pytest.raises(AssertionError):
        verify(copy, SIGNER.verifier.line)
    note = (log / "checkpoint").read_text()
    text, _, signature = note.partition("\n\n")
    origin, size, root = text.split("\n")
    with pytest.raises(InvalidSignature):
        open_signed(f"{origin}\n{int(size) + 1}\n{root}\n\n{signature}", SIGNER.verifier.line)


def test_a_proof_of_ours_leads_to_the_signed_root(log):
    reader = LogReader(log)
    for index in (0, 1, 255, 256, reader.size // 2, reader.size - 1):
        proof = prove(reader, index)
        head, _, note = proof.proof.partition("\n\n")
        form, place, *path = head.split("\n")
        assert (form, place) == ("c2sp.org/tlog-proof@v1", f"index {index}")
        size, root = open_signed(note, SIGNER.verifier.line)
        leaf = sha(b"\x00" + base64.b64decode(proof.entry))
        assert climb(leaf, index, size, [base64.b64decode(item) for item in path]) == root
        assert json.loads(json.dumps(proof.record))["n"] == index
