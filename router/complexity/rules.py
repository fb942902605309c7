"""Rules that come before the model: an ordered list, the first that matches decides, and the last word is the model's.

A rule looks at the shape of a request (length, language, code, tools ...), the key and the clock; it pins a model or a tier, or
leaves the choice to the model. It never touches the residency label: what it asks for is screened like any other wish.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec

from router.complexity.features import Features
from router.complexity.language import guess_language
from router.complexity.peel import Asked
from router.content_parts import IMAGES, is_part_of

_CODE = (
    "```",
    "\ndef ",
    "\nclass ",
    "\nimport ",
    "#include",
    "SELECT ",
    "();",
    "){",
    ") {",
    "=>",
    "</",
    "public static",
    "Traceback (",
)
_LATEX = ("\\frac", "\\int", "\\sum", "\\begin{", "\\sqrt", "\\boxed")
_MATHS_SYMBOLS = re.compile(r"[∑∫√≤≥≠≈∂∀∃∈π]")
_MATHS_TERMS = re.compile(r"[0-9] ?[*^/=] ?[0-9]")
_SCAN_CHARS = 4000


class Shape(msgspec.Struct, frozen=True, gc=False):
    """What rules can ask about; no text. `minute` is the minute of the UTC day, `headers` are those that some rule names."""

    tokens: int
    language: str
    code: bool
    maths: bool
    tools: bool
    json_schema: bool
    images: bool
    system: bool
    turns: int
    domain: str
    key: str
    tenant: str
    minute: int
    weekday: int
    headers: dict[str, str]


class Rule(msgspec.Struct, frozen=True):
    """A compiled rule: every condition that is set must hold. None and empty mean: not asked.

    Exactly one of `model`, `tier` and `leave` is set. `minutes` may run over midnight (1320, 360): from 22:00 to 06:00 UTC.
    """

    name: str
    model: str = ""
    tier: str = ""
    leave: bool = False
    min_tokens: int | None = None
    max_tokens: int | None = None
    min_turns: int | None = None
    languages: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    code: bool | None = None
    maths: bool | None = None
    tools: bool | None = None
    json_schema: bool | None = None
    images: bool | None = None
    system: bool | None = None
    minutes: tuple[int, int] | None = None
    weekdays: frozenset[int] = frozenset()
    headers: tuple[tuple[str, str], ...] = ()


def first_match(rules: tuple[Rule, ...], shape: Shape) -> Rule | None:
    """The first rule whose conditions all hold, or None: then the model decides."""
    for rule in rules:
        if matches(rule, shape):
            return rule
    return None


def matches(rule: Rule, shape: Shape) -> bool:
    """Whether every condition of a rule holds."""
    return _numbers_match(rule, shape) and _flags_match(rule, shape) and _names_match(rule, shape)


def _numbers_match(rule: Rule, shape: Shape) -> bool:
    if rule.min_tokens is not None and shape.tokens < rule.min_tokens:
        return False
    if rule.max_tokens is not None and shape.tokens > rule.max_tokens:
        return False
    if rule.min_turns is not None and shape.turns < rule.min_turns:
        return False
    if rule.weekdays and shape.weekday not in rule.weekdays:
        return False
    return rule.minutes is None or is_between(shape.minute, rule.minutes)


def is_between(minute: int, minutes: tuple[int, int]) -> bool:
    """Whether a minute of the day lies in a span, which may run over midnight; its end is excluded."""
    start, end = minutes
    return start <= minute < end if start <= end else minute >= start or minute < end


def _flags_match(rule: Rule, shape: Shape) -> bool:
    return (
        rule.code in (None, shape.code)
        and rule.maths in (None, shape.maths)
        and rule.tools in (None, shape.tools)
        and rule.json_schema in (None, shape.json_schema)
        and rule.images in (None, shape.images)
        and rule.system in (None, shape.system)
    )


def _names_match(rule: Rule, shape: Shape) -> bool:
    return (
        (not rule.languages or shape.language in rule.languages)
        and (not rule.domains or shape.domain in rule.domains)
        and (not rule.keys or shape.key in rule.keys)
        and (not rule.tenants or shape.tenant in rule.tenants)
        and all(shape.headers.get(name, "") == value for name, value in rule.headers)
    )


def read_shape(
    body: dict[str, Any],
    asked: Asked,
    features: Features,
    tokens: int,
    domain: str,
    key: str,
    tenant: str,
    now: float,
    headers: dict[str, str],
) -> Shape:
    """The shape of a request. `now` is UNIX time in seconds; `tokens` the estimated length of the whole prompt."""
    sample = asked.text if len(asked.text) <= _SCAN_CHARS else asked.text[: _SCAN_CHARS // 2] + asked.text[-_SCAN_CHARS // 2 :]
    moment = datetime.fromtimestamp(now, UTC)
    return Shape(
        tokens=tokens,
        language=guess_language(sample),
        code=any(mark in sample for mark in _CODE),
        maths=has_maths(sample),
        tools=bool(body.get("tools")) or bool(body.get("functions")),
        json_schema=_asks_schema(body),
        images=_has_images(body),
        system=asked.system,
        turns=asked.turns,
        domain=domain,
        key=key,
        tenant=tenant,
        minute=moment.hour * 60 + moment.minute,
        weekday=moment.weekday(),
        headers=headers,
    )


def has_maths(sample: str) -> bool:
    """Symbols, LaTeX, or arithmetic between numbers; each regex runs only where a cheap test says that it could match."""
    if not sample.isascii() and _MATHS_SYMBOLS.search(sample):
        return True
    if "\\" in sample and any(mark in sample for mark in _LATEX):
        return True
    return any(sign in sample for sign in "*^/=") and _MATHS_TERMS.search(sample) is not None


def _asks_schema(body: dict[str, Any]) -> bool:
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") in ("json_schema", "json_object"):
        return True
    text = body.get("text")
    shape = text.get("format") if isinstance(text, dict) else None
    return (isinstance(shape, dict) and shape.get("type") == "json_schema") or "guided_json" in body


def _has_images(body: dict[str, Any]) -> bool:
    turns = body.get("messages", body.get("input"))
    if not isinstance(turns, list):
        return False
    for turn in turns[-64:]:
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, list) and any(isinstance(part, dict) and is_part_of(part, IMAGES) for part in content[:64]):
            return True
    return False
