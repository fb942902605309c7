"""Everything somebody with write access, but without the key, might do to a log; each must be found.

A tampering changes a copy of a log and says what it did, or gives None where it would change nothing.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from router.ledger.checkpoint import Signer
from router.ledger.journal import pack_frame, read_segment
from router.ledger.merkle import leaf_hash
from router.ledger.reader import LogReader, parse_path
from router.ledger.store import LogStore
from router.ledger.tiles import WIDTH, pack_entries, tile_path, unpack_entries

Tampering = Callable[[Path, random.Random], str | None]


def flip_bit(log: Path, rng: random.Random) -> str | None:
    """One bit of any file; larger files get more of the flips, but every file gets some."""
    files = _files(log)
    sizes = [max(200, file.stat().st_size) for file in files]
    file = rng.choices(files, sizes)[0]
    data = bytearray(file.read_bytes())
    if not data:
        return None
    at = rng.randrange(len(data) * 8)
    data[at // 8] ^= 1 << at % 8
    file.write_bytes(data)
    return f"bit {at} of {file.relative_to(log)}"


def truncate(log: Path, rng: random.Random) -> str | None:
    """Cut any file off anywhere."""
    file = rng.choice([file for file in _files(log) if file.stat().st_size])
    size = rng.randrange(file.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(size)
    return f"{file.relative_to(log)} cut to {size} bytes"


def remove_file(log: Path, rng: random.Random) -> str | None:
    """Remove any file that holds records, hashes, blobs or signatures."""
    reader = LogReader(log)
    names = [file for file in _files(log) if _matters(reader, file)]
    file = rng.choice(names)
    file.unlink()
    return f"{file.relative_to(log)} removed"


def add_file(log: Path, rng: random.Random) -> str | None:
    """Put a file where none belongs."""
    names = ["tile/0/999", "tile/entries/998", "tile/0/x001/000", "journal/99999999999999999999", "note", "blobs/" + "0" * 64]
    file = log / rng.choice(names)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(rng.randbytes(64))
    return f"{file.relative_to(log)} added"


def append_garbage(log: Path, rng: random.Random) -> str | None:
    """Add bytes to the end of a file (not of the journal's last: that reads like an append at work)."""
    last = max((log / "journal").iterdir())
    file = rng.choice([file for file in _files(log) if file != last])
    with file.open("ab") as opened:
        opened.write(rng.randbytes(rng.choice([1, 2, 34, 300])))
    return f"bytes after the end of {file.relative_to(log)}"


def _edit_entries(change: Callable[[list[bytes], random.Random], str]) -> Tampering:
    """Change the entries of one bundle or journal segment, and make every hash that needs no key fit again."""

    def tamper(log: Path, rng: random.Random) -> str | None:
        bundles = sorted((log / "tile" / "entries").rglob("*"))
        bundles = [file for file in bundles if file.is_file() and ".p/" not in file.as_posix()]
        if bundles and rng.random() < 0.6:
            file = rng.choice(bundles)
            entries = unpack_entries(file.read_bytes())
            before = list(entries)
            said = change(entries, rng)
            if entries == before:
                return None
            file.write_bytes(pack_entries(entries))
            hashes = log / file.relative_to(log).as_posix().replace("entries", "0", 1)
            hashes.write_bytes(b"".join(leaf_hash(entry) for entry in entries))
            return f"{said} in {file.relative_to(log)}, leaf hashes made anew"
        segment = read_segment(rng.choice(sorted((log / "journal").iterdir())))
        if not segment.frames:
            return None
        longer = [number for number, frame in enumerate(segment.frames) if len(frame.entries) > 1]
        number = rng.choice(longer or range(len(segment.frames)))
        frame = segment.frames[number]
        entries = list(frame.entries)
        said = change(entries, rng)
        if entries == list(frame.entries):
            return None
        frames = [pack_frame(f.first, f.entries, f.note) for f in segment.frames]
        frames[number] = pack_frame(frame.first, entries, frame.note)
        segment.path.write_bytes(b"".join(frames))
        return f"{said} in the append at entry {frame.first}, checksum made anew"

    return tamper


def _drop(entries: list[bytes], rng: random.Random) -> str:
    del entries[rng.randrange(len(entries))]
    return "a record dropped"


def _duplicate(entries: list[bytes], rng: random.Random) -> str:
    at = rng.randrange(len(entries))
    entries.insert(at, entries[at])
    return "a record duplicated"


def _reorder(entries: list[bytes], rng: random.Random) -> str:
    a, b = rng.sample(range(len(entries)), 2) if len(entries) > 1 else (0, 0)
    entries[a], entries[b] = entries[b], entries[a]
    return "two records exchanged"


def _rewrite(entries: list[bytes], rng: random.Random) -> str:
    at = rng.randrange(len(entries))
    changed = bytearray(entries[at])
    changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
    entries[at] = bytes(changed)
    return "a record edited"


drop = _edit_entries(_drop)
duplicate = _edit_entries(_duplicate)
reorder = _edit_entries(_reorder)
rewrite = _edit_entries(_rewrite)


def drop_frames(log: Path, rng: random.Random) -> str | None:
    """Remove whole appends from the journal's end: all that is left is signed and sound."""
    path = max(file for file in (log / "journal").iterdir() if file.stat().st_size)
    segment = read_segment(path)
    if len(segment.frames) < 2:
        return None
    keep = rng.randrange(1, len(segment.frames))
    path.write_bytes(b"".join(pack_frame(f.first, f.entries, f.note) for f in segment.frames[:keep]))
    return f"the last {len(segment.frames) - keep} appends removed"


def swap_bundles(log: Path, rng: random.Random) -> str | None:
    """Exchange two bundles together with their leaf hashes."""
    count = len([p for p in (log / "tile" / "entries").iterdir() if p.is_file()])
    if count < 2:
        return None
    a, b = rng.sample(range(count), 2)
    for level in ("entries", 0):
        first, second = log / tile_path(level, a), log / tile_path(level, b)
        one, two = first.read_bytes(), second.read_bytes()
        if one == two:
            return None
        first.write_bytes(two)
        second.write_bytes(one)
    return f"bundles {a} and {b} exchanged"


def drop_bundle(log: Path, rng: random.Random) -> str | None:
    """Remove a bundle as pruning would, without a record that says so."""
    bundles = -(-LogReader(log).base // WIDTH)
    if not bundles:
        return None
    (log / tile_path("entries", rng.randrange(bundles))).unlink(missing_ok=True)
    return "a bundle removed"


def foreign_key(log: Path, rng: random.Random) -> str | None:
    """Sign everything anew with a key of one's own, and put its verifier key beside it."""
    entries = _all_entries(log)
    shutil.rmtree(log)
    store = LogStore(log, Signer(rng.randbytes(32)))
    victim = rng.randrange(len(entries))
    store.append([entry for number, entry in enumerate(entries) if number != victim])
    store.close()
    return "the log rebuilt without one record under another key"


TAMPERINGS: dict[str, Tampering] = {
    "flip": flip_bit,
    "cut": truncate,
    "remove": remove_file,
    "add": add_file,
    "garbage": append_garbage,
    "drop": drop,
    "duplicate": duplicate,
    "reorder": reorder,
    "rewrite": rewrite,
    "behead": drop_frames,
    "swap": swap_bundles,
    "prune": drop_bundle,
    "resign": foreign_key,
}
"""By name; `rollback` and `fork` need a checkpoint held elsewhere and stand in `rollbacks`."""


def rollbacks(work: Path, signer: Signer, entries: list[bytes], rng: random.Random) -> Iterator[tuple[str, Path, bytes]]:
    """Attacks that leave a log sound in itself, with the checkpoint that an auditor holds.

    Yields:
        A name, the attacked log and the checkpoint held.
    """
    keep = rng.randrange(1, len(entries))
    original, attacked = work / "original", work / "attacked"
    for path in (original, attacked):
        shutil.rmtree(path, ignore_errors=True)
    store = LogStore(original, signer)
    store.append(entries[:keep])
    store.close()
    shutil.copytree(original, attacked)
    store = LogStore(original, signer)
    store.append(entries[keep:])
    held = store.publish()
    store.close()
    yield "rollback", attacked, held
    # Whoever has the key too, and continues an old copy, makes a fork.
    other = list(entries[keep:])
    other[rng.randrange(len(other))] += b"\x00"
    store = LogStore(attacked, signer)
    store.append(other)
    if rng.random() < 0.5:
        store.append([b"more" * rng.randrange(1, 9)] * rng.randrange(1, 2 * WIDTH))
    store.close()
    yield "fork", attacked, held


def _files(log: Path) -> list[Path]:
    return sorted(file for file in log.rglob("*") if file.is_file() and file.name != "lock")


def _matters(log: LogReader, file: Path) -> bool:
    """Partial tiles, `checkpoint`, `key.vkey`, empty segments, tiles that the journal still covers, and a first segment that the
    next rotation would remove repeat what stands elsewhere: losing them loses nothing, and the router makes them again."""
    name = file.relative_to(log.root).as_posix()
    if name.startswith("tile/") and ".p/" not in name:
        level, index = parse_path(name)
        return index * (WIDTH if level == "entries" else WIDTH ** (int(level) + 1)) < log.base
    first, *later = (segment for segment in log.segments if segment.frames)
    if file == first.path and later:
        return first.frames[-1].end > log.size - log.size % WIDTH
    return ".p/" not in name and name not in ("checkpoint", "key.vkey") and file.stat().st_size > 0


def _all_entries(log: Path) -> list[bytes]:
    return [entry for _, entry in LogReader(log).entries()]
