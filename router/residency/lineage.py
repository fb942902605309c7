"""Conversation taint: once a conversation carried a stricter label, its follow-ups inherit it.

The book holds keyed hashes (`router.residency.conversation`) and labels in names; a follow-up takes the meet of every label found
for its history. Memory is bounded, the least recently used entries go first, and a store (`lineage_store`) keeps them for the
other routers of the machine and for the next start.

Tags with `requires_lineage` ask for more: with one configured, every conversation is remembered, and one whose previous request
is *not* known (the state was lost, evicted, or the client invented it) is held to all such tags. So losing state closes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from router.policy import Policy
from router.residency.conversation import Conversation
from router.residency.guard import Place
from router.residency.label import Label

CLEAN = "*"
"""The text of an entry that narrows nothing: a conversation that is known, and free."""
_OUTBOX = 10_000


class Store(Protocol):
    """Where entries outlive this process; it answers with what it has, and with nothing when it fails."""

    def get(self, hashes: Iterable[bytes]) -> dict[bytes, str]:
        """The entries there are for these hashes."""

    def put(self, entries: dict[bytes, str], now: float) -> None:
        """Keep entries; an entry that is there already takes the meet."""

    def clock_set(self, seconds: float) -> None:
        """The clock was set ahead by so many seconds: entries are no older for it."""


class Inherited(msgspec.Struct, frozen=True):
    """What a conversation's past adds to a request: a label (None: nothing), and why, for the receipt."""

    label: Label | None
    source: str = ""


NOTHING = Inherited(None)


def meet_texts(a: str, b: str) -> str:
    """The meet of two labels in names (`CLEAN` is the widest)."""
    if a in (CLEAN, b):
        return b
    if b == CLEAN:
        return a
    one, other = Place.from_text(a), Place.from_text(b)
    return Place(
        tuple(zone for zone in one.process if zone in other.process),
        tuple(zone for zone in one.store if zone in other.store),
        tuple(sorted({*one.duties, *other.duties})),
    ).to_text()


class LineageBook:
    """What one router knows of conversations.

    Args:
        entries: how many hashes are held in memory.
        store: where they outlive this process; None for nowhere.
    """

    def __init__(self, entries: int, store: Store | None = None) -> None:
        self._entries = entries
        self._store = store
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self.outbox: deque[tuple[bytes, str]] = deque(maxlen=_OUTBOX)
        """Entries other machines' routers have not been told of; whoever tells them takes them out."""
        self.stored_widest: Callable[[str], Label | None] = lambda _: None
        """Of a tenant the join of the ceilings of its stored keys, which the policy does not know."""

    def __len__(self) -> int:
        return len(self._known)

    def clock_set(self, seconds: float) -> None:
        """The machine's clock was set by so many seconds, back if negative."""
        if seconds > 0.0 and self._store is not None:
            self._store.clock_set(seconds)

    def needs(self, policy: Policy, tenant: str, label: Label) -> bool:
        """Whether a request could inherit anything or leave anything behind: otherwise no hash need be made."""
        return bool(self._known) or self._store is not None or self._is_worth_noting(policy, tenant, label)

    def inherited(self, conversation: Conversation, policy: Policy) -> Inherited:
        """What the history of a request adds to its label under `policy`."""
        asks = policy.lineage_label
        history = {*conversation.prefixes[:-1], *conversation.messages}
        whole = {*conversation.prefixes[-1:], conversation.last} - {b""} if asks is not None else set()
        found = self._look_up(history | whole)
        label: Label | None = None
        for digest, text in found.items():
            if text == CLEAN:
                continue
            known = policy.label_of(Place.from_text(text))
            # The same words sent again are no follow-up, except to a tag that asks for it.
            if digest in history or (asks is not None and known.is_within(asks)):
                label = known if label is None else label.meet(known)
        if asks is not None and conversation.is_continued and not _is_traced(conversation, found):
            return Inherited(asks if label is None else label.meet(asks), "unknown conversation")
        return NOTHING if label is None else Inherited(label, "conversation")

    def record(self, conversation: Conversation, tenant: str, label: Label, policy: Policy, now: float) -> None:
        """Remember a request's label for its follow-ups. Call it before the request is sent anywhere.

        Args:
            conversation: its hashes.
            tenant: the tenant of its key.
            label: its effective label under `policy`.
            policy: the compiled configuration.
            now: UNIX time in seconds.
        """
        if not conversation.prefixes or not self._is_worth_noting(policy, tenant, label):
            return
        narrows = _narrows(policy, tenant, label, self.stored_widest(tenant))
        text = policy.label_text(label) if narrows else CLEAN
        entries = {conversation.prefixes[-1]: text}
        if narrows and conversation.last:
            entries[conversation.last] = text
        fresh = self._take(entries)
        if fresh:
            self.outbox.extend(fresh.items())
            if self._store is not None:
                self._store.put(fresh, now)

    def learn(self, entries: Iterable[tuple[bytes, str]]) -> None:
        """Take entries from another router; they narrow what is known, never widen it."""
        self._take(dict(entries))

    def _is_worth_noting(self, policy: Policy, tenant: str, label: Label) -> bool:
        return policy.lineage_label is not None or _narrows(policy, tenant, label, self.stored_widest(tenant))

    def _take(self, entries: dict[bytes, str]) -> dict[bytes, str]:
        """Enter the meet of old and new; returns what changed."""
        changed = {}
        for digest, text in entries.items():
            before = self._known.get(digest)
            after = text if before is None else meet_texts(before, text)
            if after != before:
                self._known[digest] = changed[digest] = after
            self._known.move_to_end(digest)
        while len(self._known) > self._entries:
            self._known.popitem(last=False)
        return changed

    def _look_up(self, hashes: set[bytes]) -> dict[bytes, str]:
        """Memory and store together: another process may know more of an entry than this one does."""
        found = {}
        for digest in hashes:
            text = self._known.get(digest)
            if text is not None:
                self._known.move_to_end(digest)
                found[digest] = text
        if self._store is not None and hashes:
            stored = self._store.get(hashes)
            self._take(stored)
            for digest, text in stored.items():
                found[digest] = meet_texts(found.get(digest, CLEAN), text)
        return found


def _narrows(policy: Policy, tenant: str, label: Label, stored: Label | None) -> bool:
    """Whether a follow-up with another key of the tenant, or without a tag, could go further than this label.

    Args:
        policy: the compiled configuration.
        tenant: whose request it is.
        label: the request's label.
        stored: how far the tenant's stored keys reach, if it has any.
    """
    if stored is not None and not stored.is_within(label):
        return True
    widest = policy.widest.get(tenant, stored)
    return widest is None or not widest.is_within(label)


def _is_traced(conversation: Conversation, found: dict[bytes, str]) -> bool:
    """Whether the request before this one is known."""
    return conversation.answered > 0 and conversation.prefixes[conversation.answered - 1] in found
