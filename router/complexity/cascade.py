"""Small first: does the small model's answer stand, or is the large one asked? Pure functions over what the engine returns.

An engine gives a log-probability per token when asked (`logprobs: true`). A model that is unsure, refuses, stops in the middle
or misses the demanded format is escalated. For a stream only the first `hold_tokens` are held back, and never longer than
`hold_s`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

_REFUSALS = re.compile(
    r"^\W*(i(?:'| a)?m (?:sorry|unable|not able|not sure)"
    r"|i (?:can(?:no|')t|cannot|do not|don't) (?:help|assist|answer|provide|know|have)"
    r"|as an ai|unfortunately,? i|sorry,? (?:but )?i\b|es tut mir leid"
    r"|ich kann (?:das |dir |ihnen )?(?:leider )?nicht|leider kann ich"
    r"|je (?:suis désolé|ne peux pas|ne sais pas)|lo siento)",
    re.I,
)
_REFUSAL_CHARS = 200
_SPACE = re.compile(r"\s+")
_FENCE = re.compile(r"```[a-zA-Z]*\s*")
_BRACE = re.compile(r"\\.|[{}]", re.S)
_MARK = re.compile(r"(?i)(?:final )?answer\s*(?:is)?\s*[:=]?\s*")
TOOL_CALL = "(tool call)"
"""An answer that calls tools is compared as text that begins so and goes on with the calls: not empty, and not to be read."""


class Doubt(msgspec.Struct, frozen=True):
    """When a small answer is not good enough. Log-probabilities are natural; None: not asked.

    `hold_tokens`, `hold_s`: how much of a stream is held back for the check, at most. `agreement`: of `n` sampled answers at
    least this share must agree (self-consistency).
    """

    mean_logprob: float | None = -0.6
    min_logprob: float | None = None
    refusals: bool = True
    format: bool = True
    cut_off: bool = True
    agreement: float | None = None
    hold_tokens: int = 32
    hold_s: float = 1.5


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """`escalate`, why, and the confidence 0..1 it rests on (geometric mean probability per token; NaN unknown)."""

    escalate: bool
    reason: str
    confidence: float = math.nan


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """What is known of an answer. `wants_json`: the request demands a JSON object; `complete`: the answer has ended."""

    logprobs: tuple[float, ...] = ()
    text: str = ""
    finish_reason: str = ""
    wants_json: bool = False
    complete: bool = True


def judge_answer(evidence: Evidence, doubt: Doubt) -> Verdict:
    """Whether to ask the next tier. A log-probability that is no number (-inf, NaN) counts as improbable."""
    logprobs = [max(-100.0, min(0.0, value)) if math.isfinite(value) else -20.0 for value in evidence.logprobs]
    mean = sum(logprobs) / len(logprobs) if logprobs else math.nan
    confidence = math.exp(max(-50.0, mean)) if logprobs else math.nan
    if evidence.complete and not evidence.text.strip():
        return Verdict(True, "the small model gave no answer", confidence)
    if doubt.refusals and is_refusal(evidence.text):
        return Verdict(True, "the small model declined", confidence)
    if doubt.cut_off and evidence.complete and evidence.finish_reason == "length":
        return Verdict(True, "the small model did not come to an end", confidence)
    if doubt.format and evidence.wants_json and not fits_json(evidence.text, evidence.complete):
        return Verdict(True, "the small model's answer is not the JSON asked for", confidence)
    if logprobs and doubt.mean_logprob is not None and mean < doubt.mean_logprob:
        return Verdict(True, f"unsure: mean log-probability {mean:.2f} below {doubt.mean_logprob:.2f}", confidence)
    if logprobs and doubt.min_logprob is not None and min(logprobs) < doubt.min_logprob:
        return Verdict(True, f"unsure: a token with log-probability {min(logprobs):.2f}", confidence)
    return Verdict(False, "the small model's answer stands", confidence)


def check_is_due(tokens: int, held_s: float, ended: bool, doubt: Doubt) -> bool:
    """Whether a held-back stream must be judged now: enough tokens, its end, or the bound on waiting."""
    return ended or tokens >= doubt.hold_tokens or held_s >= doubt.hold_s


def is_refusal(text: str) -> bool:
    """Whether an answer begins like a refusal (English, German, French, Spanish)."""
    return _REFUSALS.match(text[:_REFUSAL_CHARS].strip()) is not None


def fits_json(text: str, complete: bool) -> bool:
    """Whether an answer is JSON; of an unfinished one only that it begins like it."""
    plain = unfenced(text)
    if not complete:
        return not plain or plain[0] in "{["
    try:
        msgspec.json.decode(plain.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def token_logprobs(choice: Any) -> tuple[float, ...]:
    """The log-probabilities of a chat or completions choice, in either of OpenAI's two shapes; () where there are none."""
    found = choice.get("logprobs") if isinstance(choice, dict) else None
    if not isinstance(found, dict):
        return ()
    content = found.get("content")
    if isinstance(content, list):
        values = [token.get("logprob") if isinstance(token, dict) else None for token in content]
    else:
        listed = found.get("token_logprobs")
        values = listed if isinstance(listed, list) else []
    return tuple(_logprob(value) for value in values if value is not None)


def _logprob(value: Any) -> float:
    """NaN for what is no number: it must not pass for a sure token."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def token_logprobs_mean(logprobs: Sequence[float]) -> float:
    """Confidence 0..1 of an answer (geometric mean probability per token), -1 where nothing is known."""
    confidence = judge_answer(Evidence(tuple(logprobs), "-"), Doubt()).confidence
    return confidence if logprobs else -1.0


def agreement(answers: Sequence[str]) -> tuple[str, float]:
    """The most common answer after normalising, and the share of answers that say it; ties go to the first."""
    if not answers:
        return "", 0.0
    plain = [plain_answer(answer) for answer in answers]
    best, count = max(Counter(plain).items(), key=lambda item: (item[1], -plain.index(item[0])))
    return answers[plain.index(best)], count / len(answers)


def plain_answer(text: str) -> str:
    """An answer for comparison; case and space do not count, except in calls of tools, which are compared as they are.

    It is JSON in its canonical form, else what is boxed or stands after `answer:`, else the last line. Where that says nothing
    (a closing bracket or fence), or is the end of a block of code or markup, it is the whole text: answers that only end alike
    are different answers.
    """
    if text.startswith(TOOL_CALL):
        return text
    bare = unfenced(text)
    found = canonical_json(bare) if bare[:1] in ("{", "[") else None
    if found is not None:
        return found.casefold()
    said = _plain(_conclusion(text))
    if any(map(str.isalnum, said)):
        return said
    return _plain(bare) or _SPACE.sub(" ", text).strip()


def canonical_json(text: str) -> str | None:
    """JSON without what does not count: space, the order of keys, and how a number is written; None where it is none."""
    try:
        value = json.loads(text, parse_float=_canonical_number, parse_constant=str)
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None


def _canonical_number(written: str) -> int | float | str:
    value = float(written)
    if not math.isfinite(value):
        return written
    return int(value) if value.is_integer() else value


def unfenced(text: str) -> str:
    """A text without the fence around it. One expression for both ends would take quadratic time on a long run of spaces."""
    text = text.strip()
    opening = _FENCE.match(text)
    return text[opening.end() if opening else 0 :].removesuffix("```").rstrip()


def _conclusion(text: str) -> str:
    boxed = text.rfind("\\boxed{")
    if boxed >= 0:
        return _to_closing_brace(text[boxed + 7 :])
    marked = _MARK.split(text[-2000:])
    if len(marked) > 1 and marked[-1].strip():
        return marked[-1]
    last = text.strip().rsplit("\n", 1)[-1]
    ends_a_block = last.lstrip().startswith("</") or text.count("```") % 2
    return "" if ends_a_block else last


def _to_closing_brace(text: str) -> str:
    """What stands before the brace that closes one opened before the text; where none does, its first line."""
    depth = 1
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if not depth:
            return text[: brace.start()]
    return text.split("\n", 1)[0]


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip().lstrip("*`$\"' ").rstrip(" .*`$\"'").casefold()
