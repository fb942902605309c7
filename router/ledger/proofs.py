"""Proof that one record is in a log, for somebody who has neither the log nor any other record of it.

A proof is one JSON file: the entry, and C2SP's `tlog-proof` (index, path, signed checkpoint).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from router.ledger import records
from router.ledger.checkpoint import Checkpoint, CheckpointError, Verifier, open_note
from router.ledger.journal import read_journal
from router.ledger.merkle import HASH_BYTES, inclusion_proof, is_included, leaf_hash
from router.ledger.reader import LogReader
from router.ledger.records import Record, RecordError

_FORM = "c2sp.org/tlog-proof@v1"


class ProofError(ValueError):
    """A proof that does not hold, or cannot be made; the text says why."""


class Proof(msgspec.Struct, frozen=True):
    """`entry` is the record as it stands in the log (base64), `proof` a tlog-proof, `record` the same for people."""

    entry: str
    proof: str
    record: dict[str, Any]


def prove(log: LogReader, index: int) -> Proof:
    """The proof for one entry, under the log's newest signature.

    Raises:
        ProofError: the entry is not there (any more), or the log has no signature.
    """
    frames = [frame for segment in read_journal(log.root) for frame in segment.frames if frame.end <= log.size]
    found = next((entry for _, entry in log.entries(index, index + 1)), None)
    if found is None or not frames:
        raise ProofError(f"{log.root}: there is no entry {index} (any more)")
    size = frames[-1].end
    path = inclusion_proof(index, size, log.tiles.subtree)
    lines = [_FORM, f"index {index}", *(base64.b64encode(item).decode() for item in path), "", frames[-1].note.decode()]
    record = records.decode(found)
    return Proof(base64.b64encode(found).decode(), "\n".join(lines), records.to_plain(record))


def check_proof(proof: Proof, verifiers: list[Verifier]) -> tuple[Record, Checkpoint]:
    """The record that a proof is about, once it holds under a trusted key.

    Raises:
        ProofError: it does not hold.
    """
    try:
        entry = base64.b64decode(proof.entry, validate=True)
        head, _, note = proof.proof.partition("\n\n")
        form, index, *hashes = head.split("\n")
        path = [base64.b64decode(item, validate=True) for item in hashes]
        number = int(index.removeprefix("index "))
        checkpoint = open_note(note.encode(), verifiers)
        record = records.decode(entry)
    except CheckpointError as error:
        raise ProofError(str(error)) from None
    except (ValueError, binascii.Error, RecordError):
        raise ProofError("the proof is malformed") from None
    if form != _FORM or any(len(item) != HASH_BYTES for item in path):
        raise ProofError("the proof is malformed")
    if not is_included(leaf_hash(entry), number, checkpoint.size, path, checkpoint.root):
        raise ProofError("the record is not in the log that the checkpoint signs")
    if record.n != number or proof.record != _as_json(records.to_plain(record)):
        raise ProofError("what the proof says for people is not what its record says")
    return record, checkpoint


def _as_json(data: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(data))
