"""Outcome data: rows of a question with a small and a large model's score, read, made unique, and split by question."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from tidegate.outcome_file import EvalError, read_outcomes

from router.complexity.features import NAMES, read_features
from router.complexity.peel import peel_text
from router.complexity.words import BUCKETS

DEFAULT_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
FOLDS = 5
HELD_OUT = 6
"""One question in so many is kept back."""
INNER = 4
"""Folds within a training set."""
_WORDS = re.compile(r"[a-z0-9]+")
_CHOICES = re.compile(r"\n\s*\(?[A-J][.):]\s.*", re.S)


@dataclass(frozen=True)
class Outcomes:
    """One benchmark. `small` and `large` are scores in 0..1; `others` the scores of further models, where there are any."""

    name: str
    prompts: tuple[str, ...]
    subjects: np.ndarray
    keys: np.ndarray
    folds: np.ndarray
    small: np.ndarray
    large: np.ndarray
    models: tuple[str, ...] = ()
    others: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    hand: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    words: sp.csr_matrix = field(default_factory=lambda: sp.csr_matrix((0, BUCKETS)))

    @property
    def gain(self) -> np.ndarray:
        """What is learned: the large model's score minus the small one's."""
        return self.large - self.small

    def __len__(self) -> int:
        return len(self.prompts)

    def with_keys(self, keys: np.ndarray) -> Outcomes:
        """The same rows; which of them are one question is said by other keys."""
        return replace(self, keys=keys)

    def take(self, rows: np.ndarray) -> Outcomes:
        """Some of the rows."""
        return Outcomes(
            self.name,
            tuple(self.prompts[row] for row in rows),
            self.subjects[rows],
            self.keys[rows],
            self.folds[rows],
            self.small[rows],
            self.large[rows],
            self.models,
            self.others[rows] if len(self.others) else self.others,
            self.hand[rows],
            self.words[rows],
        )


def find_data(given: str | None) -> Path:
    """The folder with `outcomes/`: the flag, else TIDEGATE_DATA, else `../shared/data` beside the checkout.

    Raises:
        SystemExit: there is none.
    """
    folder = Path(given or os.environ.get("TIDEGATE_DATA") or DEFAULT_DATA)
    found = folder / "outcomes" if (folder / "outcomes").is_dir() else folder
    if not list(found.glob("*.parquet")):
        raise SystemExit(f"no outcome data under {found}: give --data DIR or set TIDEGATE_DATA")
    return found


def stem_of(prompt: str) -> str:
    """The question without its choices, in plain lower-case words: two spellings of one question have one stem."""
    text = _CHOICES.sub("", prompt)
    return " ".join(_WORDS.findall((text if len(text) >= 20 else prompt).lower()))


def question_key(prompt: str) -> str:
    """Names a question by its stem; the fold comes from it, so a question is in one fold whatever file it is in."""
    return hashlib.sha256(stem_of(prompt).encode()).hexdigest()[:12]


def near_key(prompt: str) -> str:
    """Like `question_key`, but equal for near-duplicates: numbers and word order do not count."""
    words = sorted({word for word in stem_of(prompt).split() if not word.isdigit()})
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:12]


def load_parquet(path: Path) -> Outcomes:
    """One outcome file, without exact repetitions; near-duplicates share a key, so that no split parts them."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(path)
    columns = table.column_names
    rows = table.to_pylist()
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        mark = (row["prompt"], row["subject"])
        if mark not in seen:
            seen.add(mark)
            kept.append(row)
    models = tuple(name for name in columns if name.startswith("m_"))
    return _outcomes(
        path.stem,
        [row["prompt"] for row in kept],
        [row["subject"] for row in kept],
        [row["weak_correct"] for row in kept],
        [row["strong_correct"] for row in kept],
        [int(row["fold"]) for row in kept],
        models,
        np.array([[row[name] for name in models] for row in kept], float) if models else np.zeros((0, 0)),
    )


def load_own(path: Path) -> Outcomes:
    """An operator's own outcomes, in the files that `tidegate train import` and `eval` read.

    Raises:
        SystemExit: the file cannot be read, or a line of it is not as it must be.
    """
    try:
        rows = read_outcomes(path)
    except EvalError as error:
        raise SystemExit(str(error)) from None
    small, large = [row.small for row in rows], [row.large for row in rows]
    return _outcomes(path.stem, [row.prompt for row in rows], [""] * len(rows), small, large, None, (), np.zeros((0, 0)))


def _outcomes(
    name: str,
    prompts: Sequence[str],
    subjects: Sequence[str],
    small: Sequence[float],
    large: Sequence[float],
    folds: Sequence[int] | None,
    models: tuple[str, ...],
    others: np.ndarray,
) -> Outcomes:
    keys = np.array([near_key(prompt) for prompt in prompts])
    if folds is None:
        folds = [int(question_key(prompt), 16) % FOLDS for prompt in prompts]
    hand, words = measure(prompts)
    return Outcomes(
        name, tuple(prompts), np.array(subjects), keys, np.array(folds, int), np.array(small, float), np.array(large, float),
        models, others, hand, words,
    )  # fmt: skip


def measure(prompts: Sequence[str]) -> tuple[np.ndarray, sp.csr_matrix]:
    """The live feature pass over many prompts: hand features, and buckets with the weight 1 / sqrt(number of buckets)."""
    hand = np.zeros((len(prompts), len(NAMES)))
    places: list[int] = []
    ends = [0]
    for row, prompt in enumerate(prompts):
        found = read_features(peel_text(prompt))
        hand[row] = found.values
        places.extend(found.buckets)
        ends.append(len(places))
    counts = np.maximum(1, np.diff(ends))
    weights = np.repeat(1.0 / np.sqrt(counts), np.diff(ends))
    words = sp.csr_matrix((weights, np.array(places, np.int32), np.array(ends)), shape=(len(prompts), BUCKETS))
    return hand, words


def without_questions(train: Outcomes, test_keys: np.ndarray) -> Outcomes:
    """The training rows whose question, or a near-duplicate of it, is not asked in the test."""
    return train.take(np.where(~np.isin(train.keys, test_keys))[0])


def held_out(keys: np.ndarray) -> np.ndarray:
    """Which rows are kept back for one last test: one question in six, by its key, so the same ones in every file."""
    return np.array([int(hashlib.sha256(f"final:{key}".encode()).hexdigest()[:8], 16) % HELD_OUT == 0 for key in keys], bool)


def inner_folds(keys: np.ndarray) -> np.ndarray:
    """A fold for every row of a training set; rows of one question share it."""
    names, inverse = np.unique(keys, return_inverse=True)
    return np.random.default_rng(0).permutation(len(names))[inverse] % INNER
