"""What a refit leaves on disk: weights files named by their content, the one in use, and a line for every refit."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from router.complexity.compile import PROMOTED, digest_of_weights

HISTORY = "refits.jsonl"
PROMOTE, KEEP, NOTHING, ROLLBACK = "promoted", "kept", "not compared", "rolled back"


class PromotionError(ValueError):
    """Something in the directory of the labels cannot be used; the text says what."""


class Refit(msgspec.Struct, frozen=True, omit_defaults=True):
    """One refit. `champion` and `challenger` name weights by their content; times are UNIX seconds, qualities points of 0..1."""

    at: float
    outcome: str
    champion: str
    why: str = ""
    challenger: str = ""
    labels: int = 0
    questions: int = 0
    trained: int = 0
    held_out: int = 0
    look: int = 0
    champion_quality: float = 0.0
    challenger_quality: float = 0.0
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    alpha: float = 0.0


class Shelf:
    """The directory of the labels, as far as weights go.

    Args:
        directory: where it is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One refit at a time.

        Raises:
            PromotionError: another one is running, or the directory cannot be used.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (self.directory / ".refit.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield
        except BlockingIOError:
            raise PromotionError(f"{self.directory}: another refit is running") from None

    def history(self) -> list[Refit]:
        """All refits so far, oldest first.

        Raises:
            PromotionError: a line is none.
        """
        path = self.directory / HISTORY
        if not path.is_file():
            return []
        found = []
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                found.append(msgspec.json.decode(line, type=Refit))
            except msgspec.DecodeError as error:
                raise PromotionError(f"{path}:{number}: this line is no refit: {error}") from None
        return found

    def note(self, refit: Refit) -> None:
        """Add a line to the history."""
        with (self.directory / HISTORY).open("ab") as file:
            file.write(msgspec.json.encode(refit) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def looks_at(self, champion: str) -> list[Refit]:
        """The comparisons with this champion since it came into use."""
        found: list[Refit] = []
        for refit in self.history():
            if refit.outcome in (PROMOTE, ROLLBACK):
                found = []
            elif refit.outcome == KEEP and refit.champion == champion:
                found.append(refit)
        return found

    def kept(self, digest: str) -> Path:
        """Where weights lie that were promoted, or tried, once."""
        return self.directory / f"weights-{digest}.tgcw"

    @contextlib.contextmanager
    def tried(self, weights: bytes) -> Iterator[Path]:
        """A file with weights that are only tried, as long as that takes."""
        path = self.directory / f".tried.{os.getpid()}"
        try:
            _write(path, weights)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def keep(self, weights: bytes, digest: str) -> None:
        """Keep weights under their name."""
        path = self.directory / f".kept.{os.getpid()}"
        _write(path, weights)
        path.replace(self.kept(digest))

    def promote(self, digest: str) -> None:
        """Put kept weights in use: one rename, so that routers see the old file or the new one."""
        temporary = self.directory / f".promoted.{os.getpid()}"
        _write(temporary, self.kept(digest).read_bytes())
        temporary.replace(self.directory / PROMOTED)

    def demote(self) -> str:
        """Put back what was in use before the last promotion; returns its name, "" for what the configuration names.

        Raises:
            PromotionError: nothing was promoted, or the weights before are gone.
        """
        promoted = self.directory / PROMOTED
        if not promoted.is_file():
            raise PromotionError("no promoted weights are in use")
        now = digest_of_weights(promoted)
        last = next((refit for refit in reversed(self.history()) if refit.outcome == PROMOTE and refit.challenger == now), None)
        if last is None:
            raise PromotionError(f"the history does not say what was in use before {now}")
        if self.kept(last.champion).is_file():
            self.promote(last.champion)
            return last.champion
        promoted.unlink()
        return ""


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
