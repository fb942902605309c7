"""Which replica has which prompt prefix in its KV cache: a table from chunk hash to a bit mask of replicas.

Two sources. *Events*: what the agent beside an engine says of its cache; exact, and taken back when a block goes. *Own history*:
what this router has just sent somewhere. It counts at once, so that a burst with one new prefix goes to one place; it is dropped
when the events had time to confirm it. Replicas without events that can be trusted keep their history, as a bounded LRU: the
fallback. What their events say, or did say while they came, is part of it: it is pushed out by what has been sent there since, as
it is in the engine, whose word that it is gone may come late or never.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from operator import and_, or_

import msgspec

from router.placement.chunks import ENDS

CHUNK_COST = 160
"""Bytes of memory per entry of the table, rounded up from what `scripts/bench/prefix` measures."""
MAX_CHUNKS = 256 * 1024 * 1024 // CHUNK_COST
"""Default bound on the table of events."""
HISTORY_CHUNKS = 4096
"""Bound on one replica's history where nobody knows how much its cache holds: about 2 MB of prompt text."""
MOST_HISTORY = 4 * HISTORY_CHUNKS
CONFIRM_AFTER_S = 3.0
"""Events are late by a scheduler step, a flush and a network hop; after this they are not late, they are missing."""
_SWEEP_STEP = 20_000
_NOBODY = repeat(0)


class CachedPrefix(msgspec.Struct, frozen=True, gc=False):
    """How much of one prompt is cached where: bytes of text by incarnation; who is missing has nothing of it."""

    prompt_bytes: int = 0
    found: Mapping[str, int] = {}

    def share(self, incarnation: str) -> float:
        """The cached part of the prompt on one replica, 0 to 1."""
        return self.found.get(incarnation, 0) / self.prompt_bytes if self.prompt_bytes else 0.0

    def tokens(self, incarnation: str, prompt_tokens: int) -> int:
        """The same in tokens, of a prompt of `prompt_tokens`; an engine always computes the last token itself."""
        if not self.prompt_bytes:
            return 0
        return min(prompt_tokens * self.found.get(incarnation, 0) // self.prompt_bytes, max(prompt_tokens - 1, 0))


class Confirmation(msgspec.Struct, frozen=True, gc=False):
    """What became of one routed prompt: whether its replica's events confirmed it."""

    incarnation: str
    confirmed: bool


class _Pending(msgspec.Struct, gc=False):
    due: float
    slot: int
    incarnation: str
    hashes: tuple[int, ...]
    judged: bool


class PrefixIndex:
    """The table of one router process. One owner, no locks, no clock: times are seconds on one clock of the caller's.

    Args:
        max_chunks: bound on the entries that come from events; the ones that were not routed or stored for longest go first.
        history_chunks: bound on the history of a replica for which `make_room` gives no other.
    """

    def __init__(self, max_chunks: int = MAX_CHUNKS, history_chunks: int = HISTORY_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._history_chunks = history_chunks
        self._stored: OrderedDict[int, int] = OrderedDict()
        self._routed: dict[int, int] = {}
        self._recent: dict[int, dict[int, int]] = {}
        """By slot, the oldest first. Plain dictionaries: taking an entry out and putting it in again costs half of what it costs
        an `OrderedDict`, and every request does that for each of its chunks."""
        self._rooms: dict[int, int] = {}
        """By slot, the bound on its history where it has one of its own."""
        self._pending: deque[_Pending] = deque()
        self._counts: dict[int, int] = {}
        """By slot, how much of the table is a replica's: as many entries as its cache has room for, once that is full."""
        self._slot_of: dict[str, int] = {}
        self._names: list[str] = []
        self.version = 0
        """Grows whenever a replica joins or leaves."""
        self._free: list[int] = []
        self._exact = 0
        self._known = 0
        self._retired = 0
        self._to_sweep: list[int] = []
        self._sweeping = 0
        self._hidden = 0
        """Replicas whose entries in the table are not read: their history goes by them."""
        self._doubted = 0
        """Replicas whose events are trusted no more: the next sweep takes their entries over into their history."""
        self._moved: dict[int, list[int]] = {}
        """The entries that the present sweep has found of such replicas, by slot, the youngest first."""

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def history_entries(self) -> int:
        """Entries of all replicas' histories."""
        return sum(len(recent) for recent in self._recent.values())

    def history_of(self, incarnation: str) -> int:
        """Entries of one replica's history."""
        slot = self._slot_of.get(incarnation)
        return 0 if slot is None else len(self._recent[slot])

    # Replicas

    def join(self, incarnation: str) -> None:
        """Make room for a replica. Joining twice changes nothing."""
        if incarnation in self._slot_of:
            return
        if self._free:
            slot = self._free.pop()
            self._names[slot] = incarnation
        else:
            slot = len(self._names)
            self._names.append(incarnation)
        self._slot_of[incarnation] = slot
        self.version += 1
        self._recent[slot] = {}
        self._counts[slot] = 0
        self._known |= 1 << slot

    def leave(self, incarnation: str) -> None:
        """Forget a replica. Its bits are ignored at once, and swept out of the table by `tend`."""
        slot = self._slot_of.pop(incarnation, None)
        if slot is None:
            return
        bit = 1 << slot
        for chunk in self._recent.pop(slot):
            self._unroute(chunk, bit)
        self._rooms.pop(slot, None)
        self._names[slot] = ""
        self.version += 1
        self._known &= ~bit
        self._exact &= ~bit
        self._forget_doubt(slot)
        self._retired |= bit

    def make_room(self, incarnation: str, chunks: int) -> None:
        """A replica's cache holds so many chunks (`MOST_HISTORY` at most count): more of its history are gone from there."""
        slot = self._slot_of.get(incarnation)
        if slot is not None:
            self._rooms[slot] = min(MOST_HISTORY, max(1, chunks))

    def trust_events(self, incarnation: str, exact: bool) -> None:
        """Say whether a replica's events are complete and fresh: then its history is only for what they had no time to confirm.

        Else what they said becomes history, a moment later (`tend`).
        """
        slot = self._slot_of.get(incarnation)
        if slot is None or bool(self._exact >> slot & 1) is exact:
            return
        self._exact ^= 1 << slot
        if not exact:
            self._doubted |= 1 << slot
        else:
            self._forget_doubt(slot)
            # What was history until now is in the events, or it is gone.
            recent, self._recent[slot] = self._recent[slot], {}
            for chunk in recent:
                self._unroute(chunk, 1 << slot)

    # Events

    def store(self, incarnation: str, chunks: Iterable[int]) -> None:
        """These chunks are in the replica's cache now."""
        slot = self._slot_of.get(incarnation)
        if slot is None:
            return
        bit, table = 1 << slot, self._stored
        chunks = tuple(chunks)
        for chunk in reversed(chunks):  # as in `_remember`
            mask = table.get(chunk, 0)
            if not mask & bit:
                table[chunk] = mask | bit
                self._counts[slot] += 1
            table.move_to_end(chunk)
        while len(table) > self._max_chunks:
            mask = table.popitem(last=False)[1] & self._known
            while mask:
                lowest = mask & -mask
                self._counts[lowest.bit_length() - 1] -= 1
                mask ^= lowest
        if not self._exact & bit:
            self._remember(slot, chunks)
            if not self._doubted & bit and slot not in self._moved:
                self._hidden |= bit

    def remove(self, incarnation: str, chunks: Iterable[int]) -> None:
        """These chunks are not in the replica's cache any more. Chunks it never had are fine."""
        slot = self._slot_of.get(incarnation)
        if slot is None:
            return
        keep, bit, table = ~(1 << slot), 1 << slot, self._stored
        routed, recent = self._routed, self._recent[slot]
        for chunk in chunks:
            mask = table.get(chunk, 0)
            if mask & bit:
                self._counts[slot] -= 1
                if mask & keep:
                    table[chunk] = mask & keep
                else:
                    del table[chunk]
            if chunk in routed and recent.pop(chunk, None) is not None:
                self._unroute(chunk, bit)

    def clear(self, incarnation: str) -> None:
        """The replica's cache is empty, or what was said of it so far does not count."""
        if incarnation in self._slot_of:
            exact = bool(self._exact >> self._slot_of[incarnation] & 1)
            self.leave(incarnation)
            self.join(incarnation)
            self.trust_events(incarnation, exact)

    # Requests

    def find(self, hashes: Sequence[int], prompt_bytes: int) -> CachedPrefix:
        """How much of a prompt each replica has: the longest run of chunks from the beginning.

        Args:
            hashes: `chunk_hashes` of the prompt.
            prompt_bytes: length of the whole prompt's text in bytes.
        """
        runs = self.runs(hashes)
        return CachedPrefix(prompt_bytes, {name: ENDS[count - 1] for count, mask in runs for name in self.names(mask)})

    def depths(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """The same in chunks, for hashes that are cut otherwise: leading ones held, by incarnation; who has none is missing."""
        return {name: count for count, mask in self.runs(hashes) for name in self.names(mask)}

    def runs(self, hashes: Sequence[int]) -> list[tuple[int, int]]:
        """How many leading chunks are held, the fewest first, and by whom, as a mask for `names`. Nobody is in two of them.

        All replicas are followed at once, so this takes as long for many of them as for one.
        """
        masks = map(self._routed.get, hashes, _NOBODY)
        if self._stored:
            stored = map(self._stored.get, hashes, _NOBODY)
            masks = map(or_, masks, map(and_, stored, repeat(~self._hidden)) if self._hidden else stored)
        found = []
        alive = self._known
        depth = 0
        for holders in masks:
            if alive & holders != alive:
                if depth:
                    found.append((depth, alive & ~holders))
                alive &= holders
                if not alive:
                    return found
            depth += 1
        if depth:
            found.append((depth, alive))
        return found

    def names(self, mask: int) -> Iterator[str]:
        """The replicas of a mask; it says the same of them while `version` does."""
        while mask:
            lowest = mask & -mask
            yield self._names[lowest.bit_length() - 1]
            mask ^= lowest

    def route(self, incarnation: str, hashes: tuple[int, ...]) -> None:
        """A request with this prompt is on its way to a replica: until its events say so, assume that it will have it.

        Tell `computed` or `failed` of the same prompt later, once.
        """
        slot = self._slot_of.get(incarnation)
        if slot is None or not hashes:
            return
        self._remember(slot, hashes)
        stored = self._stored
        if stored:
            for chunk in reversed(hashes):
                if chunk in stored:
                    stored.move_to_end(chunk)

    def computed(self, incarnation: str, hashes: tuple[int, ...], now: float, judged: bool = True) -> None:
        """The replica has answered with a first byte, so the prompt is in its cache: events should say so soon.

        Args:
            incarnation: the replica.
            hashes: as given to `route`.
            now: seconds on the clock that `tend` is called with.
            judged: whether missing events would mean anything; a prompt shorter than a block of the cache has none.
        """
        slot = self._slot_of.get(incarnation)
        if slot is not None and hashes:
            self._pending.append(_Pending(now + CONFIRM_AFTER_S, slot, incarnation, hashes, judged))

    def failed(self, incarnation: str, hashes: tuple[int, ...]) -> None:
        """The replica never computed the prompt."""
        slot = self._slot_of.get(incarnation)
        if slot is not None:
            self._drop(slot, hashes)

    def tend(self, now: float) -> list[Confirmation]:
        """What has to be done now and then (every second): confirm or drop what was routed, sweep out who has left.

        Returns:
            For each prompt that a replica with complete events had time to confirm: whether it did.
        """
        results = []
        while self._pending and self._pending[0].due <= now:
            pending = self._pending.popleft()
            if self._slot_of.get(pending.incarnation) != pending.slot or not self._exact >> pending.slot & 1:
                continue
            bit = 1 << pending.slot
            if pending.judged:
                results.append(Confirmation(pending.incarnation, bool(self._stored.get(pending.hashes[0], 0) & bit)))
            self._drop(pending.slot, pending.hashes)
        self._sweep()
        return results

    def _remember(self, slot: int, hashes: Sequence[int]) -> None:
        bit, recent, routed = 1 << slot, self._recent[slot], self._routed
        # From its end: a beginning without its end is worth something, so it is the last to be forgotten, as in the engine.
        for chunk in reversed(hashes):
            count = recent.pop(chunk, 0)
            recent[chunk] = count + 1
            if not count:  # else its bit is there
                routed[chunk] = routed.get(chunk, 0) | bit
        if len(recent) > self._rooms.get(slot, self._history_chunks):
            self._trim(slot)

    def _trim(self, slot: int) -> None:
        recent = self._recent[slot]
        room = max(self._rooms.get(slot, self._history_chunks), self._counts[slot])
        # All at once: looking for the first entry of a dictionary passes over every one that was taken out before it.
        for chunk in list(islice(recent, max(0, len(recent) - room))):
            del recent[chunk]
            self._unroute(chunk, 1 << slot)

    def _drop(self, slot: int, hashes: Iterable[int]) -> None:
        recent = self._recent[slot]
        for chunk in hashes:
            count = recent.get(chunk, 0)
            if count > 1:
                recent[chunk] = count - 1
            elif count:
                del recent[chunk]
                self._unroute(chunk, 1 << slot)

    def _unroute(self, chunk: int, bit: int) -> None:
        mask = self._routed.get(chunk, 0) & ~bit
        if mask:
            self._routed[chunk] = mask
        else:
            self._routed.pop(chunk, None)

    def _forget_doubt(self, slot: int) -> None:
        self._doubted &= ~(1 << slot)
        self._hidden &= ~(1 << slot)
        self._moved.pop(slot, None)

    def _sweep(self) -> None:
        """Pass over the table a slice at a time, at once it would hold up every request: retired bits go, and the entries of
        replicas whose events are doubted become their history."""
        if not self._to_sweep:
            self._end_sweep()
            if not (self._retired or self._doubted):
                return
            self._sweeping, self._retired = self._retired, 0
            self._moved = {slot: [] for slot in self._slot_of.values() if self._doubted >> slot & 1}
            self._doubted = 0
            self._to_sweep = list(self._stored)
        table, keep = self._stored, ~self._sweeping
        batch, self._to_sweep = self._to_sweep[-_SWEEP_STEP:], self._to_sweep[:-_SWEEP_STEP]
        for chunk in reversed(batch):
            mask = table.get(chunk)
            if mask is None:
                continue
            if mask & keep:
                table[chunk] = mask & keep
            else:
                del table[chunk]
            for slot, moved in self._moved.items():
                if mask >> slot & 1:
                    moved.append(chunk)

    def _end_sweep(self) -> None:
        if self._sweeping:
            self._free += [i for i in range(len(self._names)) if self._sweeping >> i & 1]
            self._sweeping = 0
        for slot, moved in self._moved.items():
            recent = self._recent[slot]
            older = [chunk for chunk in reversed(moved) if chunk not in recent and self._stored.get(chunk, 0) >> slot & 1]
            self._recent[slot] = dict.fromkeys(older, 1) | recent
            for chunk in older:
                self._routed[chunk] = self._routed.get(chunk, 0) | 1 << slot
            self._trim(slot)
            self._hidden |= 1 << slot
        self._moved = {}
