"""What the configuration says of findings: which kinds tighten to which label; and the classifier that applies it.

The result is always the meet of the label there was and some of the rules' labels, so it can only be as strict or stricter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

import msgspec

from router.placement.targets import Membership
from router.residency.classify.cache import Outcome, OutcomeCache
from router.residency.classify.detector import Detector, SocketDetector
from router.residency.classify.kinds import CATEGORY, Category, Kind
from router.residency.classify.scan import YIELD_AFTER_S, Scanner
from router.residency.classify.texts import texts_of
from router.residency.label import Evidence, Label, admits

if TYPE_CHECKING:
    from router.config.residency import Classify


class Rules(msgspec.Struct, frozen=True):
    """The compiled section `classify`.

    `rules` are kinds and the label they tighten to; `unknown` is the label for what cannot be judged; `tightest` the meet of all:
    the worst that a scan could say.
    """

    rules: tuple[tuple[frozenset[Kind], Label], ...]
    unknown: Label
    tightest: Label
    read_media: bool = False

    def label_for(self, outcome: Outcome) -> Label | None:
        """What an outcome tightens to; None when nothing speaks against the label there is."""
        labels = [label for kinds, label in self.rules if kinds & outcome.kinds]
        if outcome.unknown:
            labels.append(self.unknown)
        return reduce(Label.meet, labels) if labels else None

    def in_names(self, text_of: Callable[[Label], str]) -> tuple[object, ...]:
        """The same by name, to be compared with another policy's.

        Args:
            text_of: a label in names, under the policy these rules belong to.
        """
        return (*((kinds, text_of(label)) for kinds, label in self.rules), text_of(self.unknown), self.read_media)


class Verdict(msgspec.Struct, frozen=True):
    """What classification says of one request: the label to go on with, and why. For receipts: kinds and reasons, never text."""

    label: Label
    kinds: tuple[str, ...] = ()
    unknown: str = ""


def compile_rules(section: Classify, tags: Mapping[str, Label]) -> Rules | None:
    """The section in bit masks; None when it has no rule, and so nothing is ever scanned.

    Args:
        section: the configuration's section; its names have been checked.
        tags: the labels of the tags.
    """
    if not section.rules:
        return None
    rules = tuple((kinds_of(rule.kinds), tags[rule.meet]) for rule in section.rules)
    every = reduce(Label.meet, (label for _, label in rules))
    unknown = tags[section.unknown] if section.unknown is not None else every
    return Rules(rules, unknown, every.meet(unknown), section.media == "ignore")


def kinds_of(names: Iterable[str]) -> frozenset[Kind]:
    """Kinds behind names of kinds and of categories.

    Raises:
        ValueError: a name is neither.
    """
    kinds: set[Kind] = set()
    for name in names:
        if name in set(Category):
            kinds |= {kind for kind, category in CATEGORY.items() if category == name}
        else:
            kinds.add(Kind(name))
    return frozenset(kinds)


def needed(rules: Rules, label: Label, candidates: Iterable[Evidence], now: float) -> bool:
    """Whether a scan could change where a request may go: whether some candidate is allowed now and would not be under the worst
    that a scan could say. Requests that can only stay at home are not scanned.

    Args:
        rules: the compiled section.
        label: the request's label so far.
        candidates: evidence of the targets that could be chosen.
        now: UNIX time in seconds.
    """
    worst = label.meet(rules.tightest)
    if worst == label:
        return False
    return any(admits(label, evidence, now) and not admits(worst, evidence, now) for evidence in candidates)


def distinct_evidence(membership: Membership) -> tuple[Evidence, ...]:
    """What the targets' evidence is, each kind of it once: a hundred replicas in two zones are two questions to `needed`."""
    known: tuple[Evidence, ...] | None = membership.memo.get("distinct_evidence")
    if known is None:
        known = membership.memo["distinct_evidence"] = tuple({target.evidence for target in membership.targets})
    return known


class Classifier:
    """Scans requests and tightens their labels.

    Args:
        rules: the compiled section.
        scanner: the built-in detector.
        cache: outcomes of texts seen before.
        detector: a second one in a process of its own, asked where the first could judge.
        most: characters of one request that are looked at; more than that is unknown.
    """

    __slots__ = ("_cache", "_detector", "_most", "_scanner", "rules")

    def __init__(
        self, rules: Rules, scanner: Scanner, cache: OutcomeCache, detector: Detector | None = None, most: int = 2_000_000
    ) -> None:
        self._most = most
        self.rules = rules
        self._scanner = scanner
        self._cache = cache
        self._detector = detector

    @property
    def scanner(self) -> Scanner:
        """The built-in detector, for redaction."""
        return self._scanner

    async def tighten(self, label: Label, body: dict[str, Any]) -> Verdict:
        """The label of a request, with what stands in it.

        Args:
            label: the label from all other sources.
            body: the parsed request.
        """
        kinds: set[Kind] = set()
        unknown = ""
        current = label
        worst = label.meet(self.rules.tightest)
        characters, began = 0, time.perf_counter()
        for item in texts_of(body):
            characters += len(item.text)
            outcome = await self._outcome(item.text) if characters <= self._most else Outcome(unknown="budget")
            if time.perf_counter() - began >= YIELD_AFTER_S:
                # A thousand short turns hold the loop as long as one long text would.
                await asyncio.sleep(0)
                began = time.perf_counter()
            if item.opaque and not self.rules.read_media and not outcome.unknown:
                outcome = Outcome(outcome.kinds, "media")
            kinds |= outcome.kinds
            unknown = unknown or outcome.unknown
            tighter = self.rules.label_for(outcome)
            if tighter is not None:
                current = current.meet(tighter)
            if current == worst:
                break
        return Verdict(current, tuple(sorted(kinds)), unknown)

    async def _outcome(self, text: str) -> Outcome:
        if not text:
            return Outcome()
        digest = self._cache.digest(text)
        known = self._cache.get(digest)
        if known is not None:
            return known
        result = await self._scanner.scan_gently(text)
        kinds = {finding.kind for finding in result.findings}
        unknown = result.unknown
        if self._detector is not None and not unknown:
            more = await self._detector.detect(text)
            kinds |= {finding.kind for finding in more.findings}
            unknown = more.unknown
        outcome = Outcome(frozenset(kinds), unknown)
        self._cache.put(digest, outcome)
        return outcome


def make_classifier(section: Classify, tags: Mapping[str, Label], secret: bytes) -> Classifier | None:
    """The classifier of a configuration; None when its section has no rules. Building one takes some 0.2 s.

    Args:
        section: the configuration's section.
        tags: the labels of the tags.
        secret: the cluster secret; the cache's hashes are keyed with it.
    """
    rules = compile_rules(section, tags)
    if rules is None:
        return None
    detector = None
    if section.detector is not None:
        detector = SocketDetector(section.detector.socket, section.detector.timeout_ms / 1e3, section.min_confidence)
    return Classifier(
        rules, Scanner(section.countries, section.min_confidence), OutcomeCache(secret), detector, section.max_characters
    )
