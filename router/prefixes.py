"""What one router knows of its replicas' caches: prompts in, cached shares out; agents' messages in, trust out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from router.placement.chunks import ENDS, chunk_hashes, derive_chunk_key, namespace
from router.placement.kv_messages import Beat, Chunks, Hello, Message, TextProfile, unpack_hashes
from router.placement.prefix import CachedPrefix, PrefixIndex
from router.placement.targets import Endpoint, Kind, Report, Target
from router.placement.trust import SelfTest, Trust, TrustFacts, Verdict, judge_trust
from router.prompt_text import NoText, PromptRenderer, renderer_of

LONGEST_RAW = 64 * 1024
"""Bytes of a request that count where its prompt cannot be rendered: enough to tell conversations apart."""
FILLS_CACHE = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.RESPONSES, Endpoint.MESSAGES})
"""The endpoints whose prompts stay in a KV cache."""
_RAW = ("tools", "system", "instructions", "messages", "prompt", "input")
_JUDGED_BYTES_PER_TOKEN = 12
"""A prompt with fewer bytes than this for each token of a cache block may fill none, so nothing would confirm it."""
_SMOOTHING = 0.15
_ENOUGH = 8
_MOST_HOLDERS = 1024
_BYTES_PER_TOKEN = 4
"""Of text in a cache, about: what a replica's own history is bounded by."""
_CHUNK_BYTES, _CHUNKS_SMOOTHING = 256.0, 0.05
_NO_CACHE = "its prefix cache is switched off"
_ENCODER = msgspec.json.Encoder()


class Chain(msgspec.Struct, frozen=True, gc=False):
    """One prompt as one model sees it: the hashes of its chunks and its length in bytes.

    `rendered` is False where the model's text is not known and the request's own words stand in for it: such a chain is good for
    finding a conversation again where this router has sent it, and for nothing else.
    """

    hashes: tuple[int, ...]
    size: int
    rendered: bool


NO_CHAIN = Chain((), 0, False)


class PromptChains(msgspec.Struct, frozen=True, gc=False):
    """A request's prompt, by model; no text of it is kept."""

    by_model: Mapping[str, Chain] = {}


NO_CHAINS = PromptChains()


class _Replica:
    """One replica as its agent describes it."""

    __slots__ = (
        "beat",
        "beat_at",
        "chunk_bytes",
        "confirmations",
        "confirmed",
        "keeps",
        "limit",
        "model",
        "profile",
        "renderer",
        "says_it_keeps",
        "self_test",
        "whole",
    )

    def __init__(self, model: str) -> None:
        self.model = model
        self.profile: TextProfile | None = None
        self.renderer: PromptRenderer | None = None
        self.beat: Beat | None = None
        self.beat_at = 0.0
        self.whole = False
        self.self_test = SelfTest.PENDING
        self.limit = ""
        self.confirmed = 1.0
        self.confirmations = 0
        self.keeps = True
        """Whether it has a prefix cache: else those that begin alike would all go there, and wait for each other for nothing."""
        self.says_it_keeps = True
        self.chunk_bytes = _CHUNK_BYTES
        """Mean length of the chunks of what is sent there: those of long prompts are longer."""

    def proof_age(self, now: float) -> float | None:
        """Seconds since the engine confirmed its events, by this router's clock; the agent's share travels as an age."""
        if self.beat is None or not self.whole or self.beat.proof_age_s < 0:
            return None
        return self.beat.proof_age_s + max(0.0, now - self.beat_at)


class Prefixes:
    """Owner of the index and of everything that feeds it. Times are seconds of one clock (`time.monotonic`), given by the caller.

    Args:
        secret: the cluster secret; hash keys are derived from it.
        index: the table.
    """

    def __init__(self, secret: bytes, index: PrefixIndex | None = None) -> None:
        self.index = index or PrefixIndex()
        self._secret = secret
        self._replicas: dict[str, _Replica] = {}
        self._renderers: dict[str, PromptRenderer] = {}
        self._keys: dict[str, bytes] = {}
        self._adapters: dict[str, str] = {}
        """LoRA adapters, each with the model whose template and hash key its prompts have."""
        self._places: Mapping[str, int] = {}
        self._places_version = 0
        self._holders: dict[tuple[str, int], tuple[int, ...]] = {}
        """Replicas that serve a model, by their mask in the index: their places, while neither these nor that change."""

    def update(self, reports: Iterable[Report]) -> None:
        """Take the cluster's word for who is there; clouds keep no cache for us."""
        inside = [report for report in reports if report.target.kind is not Kind.CLOUD]
        targets = {report.target.incarnation: report.target for report in inside}
        self._adapters = {name: base for target in targets.values() for name, base in target.adapters.items()}
        self._holders.clear()
        for incarnation in self._replicas.keys() - targets.keys():
            del self._replicas[incarnation]
            self.index.leave(incarnation)
        for incarnation, target in targets.items():
            if incarnation not in self._replicas:
                self._replicas[incarnation] = _Replica(_model_of(target))
                self.index.join(incarnation)
        for report in inside:
            self._keep(report)
        self._choose_renderers()

    # Requests

    def chains(
        self, endpoint: str, body: dict[str, Any], models: Sequence[str], salt_of: Callable[[str], str] | None = None
    ) -> PromptChains:
        """Hash a request's prompt for every model that may serve it.

        Args:
            endpoint: one of `Endpoint`.
            body: the parsed request; it is not changed, and nothing of it is kept.
            models: the models that may answer.
            salt_of: the `cache_salt` that the request will have at a model's engines; None: the one in the body, if any.
        """
        own = body.get("cache_salt")
        salt = own if isinstance(own, str) else ""
        return PromptChains(
            {model: self._chain(endpoint, body, model, salt if salt_of is None else salt_of(model)) for model in models}
        )

    def _chain(self, endpoint: str, body: dict[str, Any], model: str, salt: str) -> Chain:
        base = self._adapters.get(model)
        lora = "" if base is None else model
        model = base or model
        key = self.chunk_key(model)
        renderer = self._renderers.get(model)
        if renderer is not None:
            try:
                prompt = renderer.render(endpoint, {**body, "cache_salt": salt}, lora)
                return Chain(chunk_hashes(key, prompt.space, prompt.text), len(prompt.text), True)
            except NoText:
                pass
        try:
            raw = b"\0".join([part for name in _RAW if (given := body.get(name)) for part in _words(given)])[:LONGEST_RAW]
        except (UnicodeEncodeError, OverflowError, RecursionError):  # what the engine will refuse, or what no text is
            return NO_CHAIN
        space = b"raw\0" + namespace(lora, salt)
        return Chain(chunk_hashes(key, space, raw), len(raw), False)

    def cached(self, chains: PromptChains) -> CachedPrefix:
        """How much of the prompt each replica has, whatever its model."""
        found: dict[str, int] = {}
        size = 0
        for model, chain in chains.by_model.items():
            model = self._adapters.get(model, model)
            size = size or chain.size
            for count, mask in self.index.runs(chain.hashes):
                held = ENDS[count - 1] if chain.size == size else ENDS[count - 1] * size // chain.size
                found.update((name, held) for name in self.index.names(mask) if self._replicas[name].model in (model, ""))
        return CachedPrefix(size, found)

    def held_tokens(self, chains: PromptChains, prompt_tokens: int, places: Mapping[str, int]) -> dict[int, int]:
        """The same for a decision: prompt tokens that a target holds, by its place in the membership; absent: none.

        Args:
            chains: the request's.
            prompt_tokens: its estimated length.
            places: incarnation to place.
        """
        if places is not self._places or self.index.version != self._places_version:
            self._places, self._places_version = places, self.index.version
            self._holders.clear()
        most = max(prompt_tokens - 1, 0)
        found: dict[int, int] = {}
        size = 0
        for model, chain in chains.by_model.items():
            size = size or chain.size
            for count, mask in self.index.runs(chain.hashes):
                held = ENDS[count - 1] if chain.size == size else ENDS[count - 1] * size // chain.size
                held = prompt_tokens * held // size
                found.update(dict.fromkeys(self._places_of(model, mask), held if held < most else most))
        return found

    def _places_of(self, model: str, mask: int) -> tuple[int, ...]:
        """The places of those of a mask that serve a model (remembered: it is mostly the same few masks)."""
        found = self._holders.get((model, mask))
        if found is None:
            base = self._adapters.get(model, model)
            names = [name for name in self.index.names(mask) if self._replicas[name].model in (base, "")]
            if len(self._holders) >= _MOST_HOLDERS:
                self._holders.clear()
            found = self._holders[model, mask] = tuple([self._places[name] for name in names if name in self._places])
        return found

    def routed(self, chains: PromptChains, model: str, incarnation: str) -> None:
        """The request is on its way there. Tell `computed` or `failed` of it later, once."""
        chain, replica = chains.by_model.get(model), self._replicas.get(incarnation)
        if chain is not None and chain.hashes and replica is not None and replica.keeps:
            replica.chunk_bytes += _CHUNKS_SMOOTHING * (chain.size / len(chain.hashes) - replica.chunk_bytes)
            self.index.route(incarnation, chain.hashes)

    def computed(self, chains: PromptChains, model: str, incarnation: str, now: float) -> None:
        """Its first byte came."""
        chain, replica = chains.by_model.get(model), self._replicas.get(incarnation)
        # What was not rendered cannot be confirmed: it stays, as history does, until younger entries push it out.
        if chain is not None and chain.rendered and replica is not None and replica.beat is not None:
            judged = chain.size > replica.beat.block_tokens * _JUDGED_BYTES_PER_TOKEN > 0
            self.index.computed(incarnation, chain.hashes, now, judged)

    def failed(self, chains: PromptChains, model: str, incarnation: str) -> None:
        """It ended there without a byte."""
        chain = chains.by_model.get(model)
        if chain is not None:
            self.index.failed(incarnation, chain.hashes)

    # Agents

    def hear(self, incarnation: str, message: Message, now: float) -> None:
        """A message of a replica's agent.

        Raises:
            ValueError: hashes that are none.
        """
        replica = self._replicas.get(incarnation)
        if replica is None:
            return
        if isinstance(message, Hello):
            replica.profile = message.profile
            replica.renderer = renderer_of(msgspec.json.encode(message.profile))
            replica.limit = message.profile.problem
            self._choose_renderers()
        elif isinstance(message, Chunks):
            if message.reset:
                replica.whole = False
                self.index.clear(incarnation)
            self.index.remove(incarnation, unpack_hashes(message.removed))
            self.index.store(incarnation, unpack_hashes(message.stored))
        elif isinstance(message, Beat):
            replica.beat, replica.beat_at, replica.whole = message, now, True

    def cut(self, incarnation: str) -> None:
        """The connection to its agent is gone: what is known stays as history until it is back."""
        replica = self._replicas.get(incarnation)
        if replica is not None:
            replica.whole = False

    def tested(self, incarnation: str, outcome: SelfTest) -> None:
        """A self-test of the replica ended."""
        replica = self._replicas.get(incarnation)
        if replica is not None:
            replica.self_test = outcome
            replica.confirmed, replica.confirmations = 1.0, 0

    def tend(self, now: float) -> None:
        """Once a second: confirm what was routed, and let go of what nobody needs."""
        for incarnation, replica in self._replicas.items():
            age = replica.proof_age(now)
            verdict = judge_trust(self._facts(replica, Kind.REPLICA, 0.0, age))
            self.index.trust_events(incarnation, verdict.trust is Trust.EXACT)
        for result in self.index.tend(now):
            found = self._replicas.get(result.incarnation)
            if found is not None:
                found.confirmations += 1
                found.confirmed += _SMOOTHING * (float(result.confirmed) - found.confirmed)

    def trust(self, target: Target, signals_age_s: float | None, now: float) -> Verdict:
        """How far a target can be believed now.

        Args:
            target: any target.
            signals_age_s: age of its gauges, None without.
            now: seconds, on the clock of `hear`.
        """
        replica = self._replicas.get(target.incarnation)
        if replica is None:
            return judge_trust(TrustFacts(target.kind, signals_age_s))
        return judge_trust(self._facts(replica, target.kind, signals_age_s, replica.proof_age(now)))

    def describe(self, incarnation: str) -> dict[str, Any]:
        """For people: what the agent says of the cache."""
        replica = self._replicas.get(incarnation)
        if replica is None or replica.beat is None:
            return {}
        return {
            "blocks": replica.beat.blocks,
            "block_tokens": replica.beat.block_tokens,
            "self_test": replica.self_test.value,
            "confirmed": round(replica.confirmed, 3),
        }

    def awaiting_test(self, now: float) -> list[str]:
        """Replicas that would be EXACT if only a self-test had passed."""
        ready = []
        for incarnation, replica in self._replicas.items():
            facts = self._facts(replica, Kind.REPLICA, 0.0, replica.proof_age(now))
            if judge_trust(msgspec.structs.replace(facts, self_test=SelfTest.PASSED, confirmed=1.0)).trust is Trust.EXACT:
                ready.append(incarnation)
        return ready

    def block_tokens(self, incarnation: str) -> int:
        """Tokens in a block of the replica's cache; 0 when not known yet."""
        replica = self._replicas.get(incarnation)
        return replica.beat.block_tokens if replica is not None and replica.beat is not None else 0

    def chunk_key(self, model: str) -> bytes:
        """The hash key of one model's texts."""
        key = self._keys.get(model)
        if key is None:
            if len(self._keys) > 4096:
                self._keys.clear()
            key = self._keys[model] = derive_chunk_key(self._secret, model)
        return key

    def _facts(self, replica: _Replica, kind: Kind, signals_age_s: float | None, proof_age_s: float | None) -> TrustFacts:
        beat = replica.beat
        limit = replica.limit or (beat.note if beat is not None else "") or ("" if replica.keeps else _NO_CACHE)
        confirmed = replica.confirmed if replica.confirmations >= _ENOUGH else 1.0
        complete = beat is not None and beat.complete
        return TrustFacts(kind, signals_age_s, proof_age_s, complete, replica.self_test, confirmed, limit)

    def _keep(self, report: Report) -> None:
        """Whether the replica keeps prefixes, and how many: what the configuration says, and what it said when it last spoke."""
        incarnation, said = report.target.incarnation, report.signals
        replica = self._replicas[incarnation]
        if said is not None:
            replica.says_it_keeps = said.keeps_prefixes
            if said.cache_tokens:
                self.index.make_room(incarnation, round(said.cache_tokens * _BYTES_PER_TOKEN / replica.chunk_bytes))
        keeps = report.target.keeps_prefixes and replica.says_it_keeps
        if replica.keeps and not keeps:
            self.index.clear(incarnation)
        replica.keeps = keeps

    def _choose_renderers(self) -> None:
        """One renderer per model: replicas of a model share its template. In an upgrade the newest that spoke wins."""
        self._renderers = {replica.model: replica.renderer for replica in self._replicas.values() if replica.renderer is not None}


def _words(given: Any) -> Iterator[bytes]:
    """A field of a request, piece by piece, so that a conversation begins as it did when it was shorter. A usual turn goes as it
    is: writing a long text as JSON takes ten times as long as copying it."""
    for turn in given if type(given) is list and type(given[0]) is dict else (given,):
        if type(turn) is str:
            yield turn.encode()
        elif type(turn) is dict and len(turn) == 2 and type(turn.get("content")) is str and type(turn.get("role")) is str:
            yield turn["role"].encode()
            yield turn["content"].encode()
        else:
            yield _ENCODER.encode(turn)


def _model_of(target: Target) -> str:
    """The model whose text a target renders; "" for a server with several."""
    own = [name for name in target.models if name not in target.adapters]
    return own[0] if len(own) == 1 else ""
