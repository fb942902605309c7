"""The choice in words: what was expected of the large model, what the threshold was, and which features moved the number."""

from __future__ import annotations

from typing import Any

from router.complexity.calibrate import Step
from router.complexity.features import Features
from router.complexity.model import Contribution, Model, explain_gain
from router.complexity.peel import Asked

_WORDS = {
    "usual": "what the large model gains on average",
    "wording": "the words and pairs of words",
    "chars": "the length of the question",
    "words": "the number of words",
    "mean_word": "the length of its words",
    "long_words": "the share of long words",
    "very_long_words": "the share of very long words",
    "distinct_words": "how little it repeats itself",
    "upper": "the share of capitals",
    "digits": "the share of digits",
    "maths_signs": "the share of mathematical signs",
    "punctuation": "the share of punctuation",
    "foreign_bytes": "the share of non-ASCII text",
    "numbers": "how many numbers it has",
    "distinct_numbers": "how many different numbers it has",
    "options": "how many choices it offers",
    "sentence_words": "the length of its sentences",
    "statements": "numbered statements",
    "lines": "the number of lines",
}


def feature_in_words(name: str) -> str:
    """A feature's name for people."""
    if name in _WORDS:
        return _WORDS[name]
    if name.startswith("words_"):
        return f"words of {name.removeprefix('words_').replace('_', ' ')}"
    return name.replace("_", " ")


def reasons_of(
    gain: float, taken: Step, tiers: tuple[str, ...], domain: str, sure: float, prefer: str, asked: Asked
) -> tuple[str, ...]:
    """The reasons of a choice by the model, short enough for a header and a receipt; no word of the request is in them."""
    said = [f"expected gain of a larger model {gain:+.3f}"]
    if taken.thresholds:
        boundary = min(taken.tier, len(taken.thresholds) - 1) if taken.tier < len(taken.thresholds) else taken.tier - 1
        side = "above" if taken.tier > boundary else "not above"
        held = (
            f", which holds {taken.shares[min(boundary, len(taken.shares) - 1)]:.0%} beyond `{tiers[boundary]}`"
            if taken.shares
            else ""
        )
        said.append(f"{side} the threshold {taken.thresholds[boundary]:+.3f}{held}")
    if domain != "general":
        said.append(f"domain {domain} ({sure:.0%})" + (f" prefers model {prefer}" if prefer else ""))
    if asked.peeled:
        said.append(f"{asked.peeled} characters of wrapping not judged")
    return tuple(said)


def describe_gain(model: Model, head: int, features: Features, top: int = 5) -> dict[str, Any]:
    """The gain as a sum for `explain`: the largest terms in words, and the rest; they add up to the gain."""
    terms = explain_gain(model, features, model.gains[head])
    shown = terms[:top]
    return {
        "expected_gain": sum(term.weight for term in terms),
        "head": model.gains[head].name,
        "terms": [_term(term) for term in shown],
        "others": sum(term.weight for term in terms[top:]),
    }


def _term(term: Contribution) -> dict[str, Any]:
    return {"feature": term.name, "words": feature_in_words(term.name), "weight": term.weight}
