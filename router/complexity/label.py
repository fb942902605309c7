"""One label: how good a small and a large model's answers to one request were, and hashed features of the request. Never text.

Labels lie in files of JSON lines, one file per month and writer, so that a month can be deleted as a whole. The places of hashed
words are sorted: which words were there can be guessed with a dictionary, in which order they stood cannot.
"""

from __future__ import annotations

import fcntl
import math
import os
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from router.complexity.features import NAMES, Features, read_features
from router.complexity.peel import peel_request
from router.complexity.weights import features_digest
from router.complexity.words import BUCKETS
from router.secret_file import make_private_directory

VERSION = 1
SAME, REFERENCE, FORMAT, JUDGE, IMPORT = "same", "reference", "format", "judge", "import"
METHODS = (SAME, REFERENCE, FORMAT, JUDGE, IMPORT)
"""What the scores come from: equal answers, a known answer, a demanded format, a judge model, a file of the operator's."""
SUFFIX = ".labels.jsonl"
_DAY_S = 86400
_LONGEST = 256 * 1024
"""No line is longer than this many bytes."""


class LabelError(ValueError):
    """A file of labels that cannot be used; the text says which line."""


class Label(msgspec.Struct, frozen=True, gc=False):
    """Scores lie in 0..1. `day` is days since 1970; `features` names the feature pass that `values` and `buckets` are of."""

    v: int
    day: int
    features: str
    values: list[float]
    buckets: bytes
    small: float
    large: float
    by: str
    tenant: str = ""
    pair: tuple[str, str] = ("", "")
    """The ids of the two models; empty for what was imported."""

    @property
    def places(self) -> array[int]:
        """The distinct places of hashed words, ascending."""
        return array("H", self.buckets)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Label).decode


def make_label(
    features: Features, small: float, large: float, by: str, now: float, tenant: str = "", pair: tuple[str, str] = ("", "")
) -> Label:
    """A label made of features; `now` is UNIX time in seconds, of which the day is kept."""
    places = array("H", sorted(set(features.buckets)))
    values = [round(float(value), 6) for value in features.values]
    return Label(VERSION, int(now // _DAY_S), features_digest(), values, places.tobytes(), small, large, by, tenant, pair)


def features_of(body: dict[str, Any]) -> Features:
    """The features of a request, as the choice of its tier goes by them."""
    return read_features(peel_request(body).text)


def file_of(directory: Path, writer: str, now: float) -> Path:
    """Where a writer puts the labels of this month."""
    return directory / f"{datetime.fromtimestamp(now, UTC):%Y-%m}-{writer}{SUFFIX}"


def append_labels(path: Path, labels: list[Label]) -> None:
    """Add labels to a file, all in one write.

    Raises:
        OSError: it cannot be written.
    """
    make_private_directory(path.parent)
    lines = b"".join(_encode(label) + b"\n" for label in labels)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        last = os.pread(descriptor, _LONGEST, max(0, size - _LONGEST))
        if last and not last.endswith(b"\n"):  # what a crash left of a write
            os.ftruncate(descriptor, max(0, size - _LONGEST) + last.rfind(b"\n") + 1)
        file.write(lines)


def read_labels(directory: Path) -> Iterator[Label]:
    """All labels in a directory, file by file.

    A last line without an end is what a crash left of a write, and is passed over.

    Raises:
        LabelError: a line is no label.
        OSError: a file cannot be read.
    """
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip() and line.endswith(b"\n"):
                    yield _read(line, f"{path}:{number}")


def prune_labels(directory: Path, keep_days: float, now: float) -> list[Path]:
    """Delete the files of months that ended more than `keep_days` ago; returns them."""
    since = max(0.0, now - keep_days * _DAY_S)  # no label is older than 1970, and a year of three digits would sort behind all
    oldest = f"{datetime.fromtimestamp(since, UTC):%Y-%m}"
    gone = [path for path in sorted(directory.glob(f"*{SUFFIX}")) if path.name[:7] < oldest]
    for path in gone:
        path.unlink()
    return gone


def _read(line: bytes, where: str) -> Label:
    try:
        label = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"{where}: this line is no label: {error}") from None
    fits = label.v == VERSION and label.by in METHODS and len(label.buckets) % 2 == 0
    # A comparison with a NaN is false, so one is refused here, too.
    if not fits or not 0 <= label.small <= 1 or not 0 <= label.large <= 1:
        raise LabelError(f"{where}: this line is no label of version {VERSION}, or its scores are not from 0 to 1")
    if label.features == features_digest() and (len(label.values) != len(NAMES) or not _in_table(label)):
        raise LabelError(f"{where}: its features are not those of the pass that it names")
    return label


def _in_table(label: Label) -> bool:
    return all(map(math.isfinite, label.values)) and max(label.places, default=0) < BUCKETS
