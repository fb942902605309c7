"""Labels with a truth that is known: which requests need the large model, and how noisy the scores are."""

from __future__ import annotations

import random

from router.complexity.features import read_features
from router.complexity.label import Label, make_label

EASY = ["bread", "garden", "holiday", "weather", "recipe", "birthday", "kitchen", "football", "painting", "music"]
HARD = ["integral", "theorem", "plaintiff", "statute", "molecule", "enzyme", "compiler", "recursion", "eigenvalue", "tort"]
PLAIN = [
    "please",
    "tell",
    "me",
    "about",
    "the",
    "a",
    "of",
    "in",
    "what",
    "how",
    "would",
    "you",
    "say",
    "more",
    "and",
    "so",
    "that",
    "this",
]
NOW = 1_800_000_000.0


PAIR = ("m-small", "m-large")


def planted(count: int, seed: int, *, routable: bool, by: str = "judge", pair: tuple[str, str] = PAIR) -> list[Label]:
    """`routable`: the large model is better on hard words only. Otherwise it is as much better on everything, by chance."""
    dice = random.Random(seed)
    labels = []
    for number in range(count):
        hard = dice.random() < 0.5
        words = dice.sample(HARD if hard else EASY, 3) + dice.sample(PLAIN, 8) + [f"case{number}x{seed}"]
        dice.shuffle(words)
        wins = dice.random() < ((0.8 if hard else 0.1) if routable else 0.45)
        scores = (0.0, 1.0) if wins else dice.choice([(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
        labels.append(make_label(read_features(" ".join(words)), *scores, by, NOW, pair=pair))
    return labels
