"""The first complexity rule: how much model a request seems to need, from its shape alone.

A handful of weighted, readable features give a score in 0..1 and the reasons in words. It reads at most the ends of the
last user turn, so its cost is bounded; a later, learned prior replaces the weights, not the seam.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from router.complexity.peel import MAX_TURNS, text_of
from router.decision import Complexity

_HEAD_CHARS = 1500
_TAIL_CHARS = 500
_WORK = frozenset(
    """prove proof derive stepwise analyse analyze analysis compare critique refactor debug optimise optimize design architect
    architecture diagnose diagnosis differential contract clause liability liabilities theorem integral equation algorithm
    complexity tradeoff tradeoffs beweise beweis analysiere vergleiche entwirf démontre démontrez démontrer analysez analyser
    comparez comparer demuestra analiza diseña""".split()  # noqa: SIM905 - read as a word list
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".,;:!?()[]{}<>\"'`*_/\\|=+-#~\n\t\r", " "))
_CODE = ("```", "\ndef ", "\nclass ", "\nimport ", "#include", "SELECT ", "();", "){", ") {", "=>", "</", "public static")
_MATHS_SYMBOLS = re.compile(r"[∑∫√≤≥≠≈∂∀∃∈π]")
_MATHS_TERMS = re.compile(r"[0-9] ?[*^/] ?[0-9]")
_LATEX = ("\\frac", "\\int", "\\sum", "\\begin{", "\\sqrt")


def judge(body: dict[str, Any], prompt_tokens: int, tiers: Sequence[str], threshold: float, large_above: int) -> Complexity:
    """Score a parsed request.

    Args:
        body: the parsed request.
        prompt_tokens: estimated prompt length.
        tiers: tier names, smallest first.
        threshold: score from which the largest tier is asked for; tiers in between split the range below evenly.
        large_above: prompt length in tokens from which length alone asks for the largest tier.

    Returns:
        The tier, the score and the reasons with their weights.
    """
    text = last_user_text(body)
    sample = text if len(text) <= _HEAD_CHARS + _TAIL_CHARS else text[:_HEAD_CHARS] + text[-_TAIL_CHARS:]
    parts = list(_weigh(body, sample, prompt_tokens, large_above))
    score = min(1.0, sum(weight for weight, _ in parts))
    reasons = tuple(f"{why} (+{weight:.2f})" for weight, why in parts) or ("short and plain (+0.00)",)
    return Complexity(_tier_of(score, tiers, threshold), round(score, 4), reasons)


def _tier_of(score: float, tiers: Sequence[str], threshold: float) -> str:
    if score >= threshold or len(tiers) == 1:
        return tiers[-1]
    return tiers[min(len(tiers) - 2, int(score / threshold * (len(tiers) - 1)))] if threshold else tiers[-1]


def _weigh(body: dict[str, Any], sample: str, prompt_tokens: int, large_above: int) -> Any:
    length = min(1.0, prompt_tokens / large_above) * 0.5
    if length >= 0.05:
        yield round(length, 4), f"about {prompt_tokens} prompt tokens"
    if work := len(_WORK.intersection(sample.lower().translate(_PUNCTUATION).split())):
        yield min(0.45, 0.2 * work), f"{work} words that ask for analysis"
    if any(mark in sample for mark in _CODE):
        yield 0.25, "code"
    if _has_maths(sample):
        yield 0.2, "mathematics"
    if body.get("tools"):
        yield 0.2, "tools"
    if isinstance(body.get("response_format"), dict) and body["response_format"].get("type") == "json_schema":
        yield 0.1, "a JSON schema to fill"
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > 8:
        yield 0.1, "a long conversation"
    if sample.count("?") > 2:
        yield 0.1, "several questions"


def _has_maths(sample: str) -> bool:
    """Symbols, LaTeX, or arithmetic between numbers; each regex runs only where a cheap test says that it could match."""
    if not sample.isascii() and _MATHS_SYMBOLS.search(sample):
        return True
    if "\\" in sample and any(mark in sample for mark in _LATEX):
        return True
    return ("*" in sample or "^" in sample or "/" in sample) and _MATHS_TERMS.search(sample) is not None


def last_user_text(body: dict[str, Any]) -> str:
    """The text of the last user turn of a chat, or the prompt or input of the other endpoints; "" where there is none.

    As in `router.complexity.peel`, of very many parts some at both ends are read: a prompt may be a million token ids.
    """
    turns = body.get("messages")
    given = body.get("prompt", body.get("input", ""))
    if turns is None and isinstance(given, list) and any(isinstance(turn, dict) and "role" in turn for turn in given[:MAX_TURNS]):
        turns = given  # the `input` of /v1/responses may be a conversation
    if isinstance(turns, list):
        for turn in reversed(turns):
            if isinstance(turn, dict) and turn.get("role") == "user":
                return text_of(turn.get("content"))
        return ""
    return text_of(given)
