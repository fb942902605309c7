"""One receipt per request: what was asked (no content), what was decided and why, every attempt, and how it ended."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import asdict, replace

from router.decision import Decision, Facts
from router.identity.priority import CLASSES, NORMAL
from router.ledger.shapes import Attempt as Attempt
from router.ledger.shapes import StepRecord as StepRecord
from router.placement.targets import Endpoint
from router.wire.usage_search import NAME

_FIELDS = {
    "prompt_tokens": "prompt_tokens",
    "input_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "output_tokens": "completion_tokens",
    "cached_tokens": "cached_tokens",
    "cache_read_input_tokens": "cached_tokens",
    "reasoning_tokens": "reasoning_tokens",
}
"""Where OpenAI's three shapes and Anthropic's have the counts."""
_TOKENS_PER_AUDIO_S = 100
"""Of a recording an answer counts the seconds; these are the tokens that vLLM counts of Whisper's in a stream."""
_COUNT = re.compile(rb'"(' + "|".join(_FIELDS).encode() + rb')"\s*:\s*(\d{1,12})')
_SCANNER = json.JSONDecoder()
_MOST_OBJECTS = 64
_LONGEST_OBJECT = 4096


CACHE_HIT, CACHE_MISS = "hit", "miss"
MOST_WATCHED = 64


class Receipt(msgspec.Struct, gc=False):
    """The record of one request. `usage` values are -1 while unknown."""

    request_id: str
    received: float
    key: str
    tenant: str
    endpoint: str
    requested_model: str
    epoch: str
    label: str
    label_sources: dict[str, str]
    complexity_tier: str
    complexity_score: float
    prompt_tokens_estimate: int
    candidates: list[dict[str, Any]] = []
    attempts: list[Attempt] = []
    status: int = 0
    code: str = ""
    ended: float = 0.0
    prompt_tokens: int = -1
    completion_tokens: int = -1
    cached_tokens: int = -1
    reasoning_tokens: int = -1
    priority: str = CLASSES[NORMAL]
    capture: str = ""
    """What became of the capture of its payloads; empty where nobody asked for one."""
    context: str = ""
    """What feedback is filed under (domain and expected gain in steps), where the router learns from it."""
    trial: str = ""
    mode: str = ""
    """`cascade`, `vote` or `shadow` where several models were asked: the counts above are the sums over `steps`."""
    steps: list[StepRecord] = []
    cache: str = ""
    """What the response cache had: `hit` or `miss`; "" when it was not asked. A hit has the tokens of the kept answer."""
    waited_ms: int = 0
    """How long it was held in the router's queue."""
    held: str = ""
    """What was predicted for it when it began to wait there."""


def open_receipt(facts: Facts, epoch: str, label_text: str, sources: dict[str, str], now: float) -> Receipt:
    """A receipt with everything that is known before the first decision; `label_text` is the label in names, `sources` who
    contributed which tags to it."""
    return Receipt(
        request_id=facts.request_id,
        received=now,
        key=facts.key.id,
        tenant=facts.key.tenant,
        endpoint=facts.endpoint,
        requested_model=facts.model,
        epoch=epoch,
        label=label_text,
        label_sources=sources,
        complexity_tier=facts.complexity.tier,
        complexity_score=facts.complexity.score,
        prompt_tokens_estimate=facts.prompt_tokens,
        context=facts.complexity.context,
        trial=facts.complexity.trial,
        priority=CLASSES[facts.priority],
    )


def note_wait(receipt: Receipt, decision: Decision, waited_s: float) -> Decision:
    """Keep how long a request waited for this decision, which says so in its reason from then on."""
    waited_ms = round(waited_s * 1e3)
    receipt.waited_ms += waited_ms
    choice = decision.chosen
    if choice is None or not waited_ms:
        return decision
    return replace(decision, chosen=replace(choice, reason=f"{choice.reason}; waited {waited_ms} ms"))


def read_usage(receipt: Receipt, text: bytes) -> None:
    """Take the token counts from an answer, or from what may be usage in it; leave them unknown where there are none.

    An answer may also hold what its client wrote: `usage` as a text, or as a field of a tool's schema. Of several objects the one
    with most tokens counts, so that nobody can make an answer cheaper than it was.
    """
    last = at = text.rfind(NAME)
    if last < 0:
        return
    best: dict[str, int] | None = None
    for _ in range(_MOST_OBJECTS):
        usage = _object_at(text, at + len(NAME))
        if usage is not None:
            found = _by_field(_counts(usage))
            if best is None or _tokens(found) > _tokens(best):
                best = found
        at = text.rfind(NAME, 0, at)
        if at < 0:
            break
    for field, count in (_by_field(_found(text, last)) if best is None else best).items():
        setattr(receipt, field, count)


def _by_field(counts: list[tuple[str, int]]) -> dict[str, int]:
    """Counts by the receipt's names; of several spellings the first."""
    found: dict[str, int] = {}
    for name, count in counts:
        found.setdefault(_FIELDS[name], count)
    return found


def _tokens(found: dict[str, int]) -> int:
    """What a usage object amounts to; -1 for one without counts."""
    return found.get("prompt_tokens", 0) + found.get("completion_tokens", 0) if found else -1


def _object_at(tail: bytes, after_name: int) -> dict[str, Any] | None:
    """The object behind a name, None where none is whole. The scanner has just read the request: it is in the processor's
    caches, which the regular expressions, used for what is unusual, are not."""
    start = tail.find(b"{", after_name, after_name + 8)
    if start < 0 or tail[after_name:start].strip() != b":":
        return None
    try:
        found, _ = _SCANNER.raw_decode(tail[start : start + _LONGEST_OBJECT].decode("latin-1"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _found(tail: bytes, start: int) -> list[tuple[str, int]]:
    """The same from a text that is no whole object."""
    return [(name.decode(), int(count)) for name, count in _COUNT.findall(tail, start)]


def _counts(usage: dict[str, Any]) -> list[tuple[str, int]]:
    """Counts by name, in the order of the text, those of inner objects included."""
    counts = []
    for name, value in usage.items():
        if type(value) is dict:
            counts += _counts(value)
        elif name in _FIELDS and type(value) in (int, float) and 0 <= value < 10**12:
            counts.append((name, int(value)))
        elif name == "seconds" and usage.get("type") == "duration" and type(value) in (int, float) and 0 <= value < 10**9:
            counts.append(("prompt_tokens", int(value * _TOKENS_PER_AUDIO_S)))
    return counts


def used_tokens(receipt: Receipt) -> int | None:
    """Tokens a request used; 0 when nothing was answered or the cache did, None when something was but nobody counted. What
    nobody counts of a recording is what was estimated: next to nothing was reserved for it."""
    if receipt.cache == CACHE_HIT:
        return 0
    if receipt.prompt_tokens >= 0:
        return receipt.prompt_tokens + max(0, receipt.completion_tokens)
    began = any(attempt.first_byte and 200 <= attempt.status < 300 for attempt in receipt.attempts)
    if began and receipt.endpoint == Endpoint.TRANSCRIPTIONS:
        return receipt.prompt_tokens_estimate
    return None if began else 0


class ReceiptBook:
    """The latest receipts in memory, found by request id; the oldest goes when `capacity` is reached."""

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._receipts: OrderedDict[str, tuple[Receipt, Decision | None]] = OrderedDict()
        self._watched: dict[str, Callable[[Receipt], None]] = {}
        self._claimed: WeakValueDictionary[str, Any] = WeakValueDictionary()
        """Ids that clients chose, of requests in flight. Weak, so that no way out of a request can keep its id."""

    def __contains__(self, request_id: str) -> bool:
        """Whether an id is taken: by a request in flight that claimed it, or by a receipt."""
        return request_id in self._receipts or request_id in self._claimed

    def claim(self, request_id: str, holder: object) -> None:
        """Keep an id from being given to another request for as long as `holder` lives."""
        self._claimed[request_id] = holder

    def disclaim(self, request_id: str) -> None:
        """Give an id back at once: an error's traceback may keep its holder for a while."""
        self._claimed.pop(request_id, None)

    def add(self, receipt: Receipt, decision: Decision | None) -> None:
        """Keep a receipt together with its last decision; candidates are written out only when somebody asks."""
        self._receipts[receipt.request_id] = (receipt, decision)
        if len(self._receipts) > self._capacity:
            self._receipts.popitem(last=False)
        if self._watched and (told := self._watched.pop(receipt.request_id, None)) is not None:
            told(receipt)

    def watch(self, request_id: str, told: Callable[[Receipt], None]) -> None:
        """Tell somebody when a request is over; they must not raise. Beyond `MOST_WATCHED` at a time nobody is told."""
        if len(self._watched) < MOST_WATCHED:
            self._watched[request_id] = told

    def find(self, request_id: str) -> dict[str, Any] | None:
        """The receipt as plain data, or None."""
        found = self._receipts.get(request_id)
        if found is None:
            return None
        receipt, decision = found
        data: dict[str, Any] = msgspec.to_builtins(receipt)
        data["attempts"] = [asdict(attempt) for attempt in receipt.attempts]
        data["steps"] = [asdict(step) for step in receipt.steps]
        if decision is not None:
            data["candidates"] = msgspec.to_builtins(decision.candidates)
        return data
