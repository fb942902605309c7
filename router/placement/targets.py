"""Targets, what is known of them, and the frozen view a decision is made on.

These small types are the one thing `router` and `cluster` share: `cluster` says what is up (`Report`), the router keeps
its own books beside it (`Load`), and `decide()` sees both as an immutable `View`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from router.placement.breaker import CLOSED, Breaker
from router.placement.profile import EngineProfile
from router.residency.label import Evidence, Label


class Kind(StrEnum):
    """What stands behind a target's address."""

    REPLICA = "replica"
    """A vLLM replica that Ray Serve runs for us; a guard inside it checks the pass."""
    SERVER = "server"
    """An OpenAI-compatible server that already ran; the operator vouches for its port."""
    CLOUD = "cloud"
    """A provider outside the cluster, entered only through the egress."""


CLOUD = Kind.CLOUD
"""For what every request passes: before Python 3.12 an attribute of an enum costs as much as a call."""


class Endpoint(StrEnum):
    """The model operations a target may offer; the value is the path under the target's base."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"
    RESPONSES = "/v1/responses"
    MESSAGES = "/v1/messages"
    COUNT_TOKENS = "/v1/messages/count_tokens"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"
    TOKENIZE = "/tokenize"
    DETOKENIZE = "/detokenize"
    TRANSCRIPTIONS = "/v1/audio/transcriptions"


GENERATION = frozenset(
    {
        Endpoint.CHAT,
        Endpoint.COMPLETIONS,
        Endpoint.RESPONSES,
        Endpoint.MESSAGES,
        Endpoint.COUNT_TOKENS,
        Endpoint.TOKENIZE,
        Endpoint.DETOKENIZE,
    }
)
NO_PREFILL = frozenset({Endpoint.TOKENIZE, Endpoint.DETOKENIZE, Endpoint.COUNT_TOKENS})
"""What the server beside the engine answers: it waits in no queue, fills no cache, and says nothing of how fast that is."""
POOLING = frozenset({Endpoint.EMBEDDINGS, Endpoint.RERANK, Endpoint.SCORE, Endpoint.TOKENIZE, Endpoint.DETOKENIZE})
OFFERED: dict[str, frozenset[str]] = {
    "generate": GENERATION,
    "pooling": POOLING,
    "transcription": frozenset({Endpoint.TRANSCRIPTIONS}),
}
"""What a model offers, by its `task` in the configuration."""


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files for TLS towards a target. Empty: the system's trust store, no certificate of our own, the URL's host name."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""


class Address(msgspec.Struct, frozen=True):
    """Where to connect: TCP `host` and `port`, or a unix socket path in `uds`. `base_path` goes before every path.

    `tls_files` says how TLS is spoken where the system's trust store alone is not the answer.
    """

    host: str = ""
    port: int = 0
    uds: str = ""
    tls: bool = False
    base_path: str = ""
    tls_files: TlsFiles | None = None


class Price(msgspec.Struct, frozen=True):
    """US dollars per million tokens."""

    prompt: float = 0.0
    completion: float = 0.0


class Prefill(msgspec.Struct, frozen=True):
    """The other half of a pair: an engine that computes prompts of at least `min_tokens` tokens (of what is not cached)."""

    address: Address
    min_tokens: int


class Target(msgspec.Struct, frozen=True):
    """An address with evidence: a place that can serve some models.

    `models` maps the model ids clients use to the name the target itself knows. `slots` is how many sequences it works on
    at once and `context_tokens` its context length; 0 means unknown. `zone` is a name for people and receipts; what counts
    for residency is `evidence`.
    """

    id: str
    incarnation: str
    kind: Kind
    zone: str
    evidence: Evidence
    address: Address
    models: dict[str, str]
    endpoints: frozenset[str] = GENERATION
    context_tokens: int = 0
    slots: int = 0
    price: Price = Price()
    secret: str = ""
    """Name of the configured bearer credential for a `SERVER`; never the credential itself."""
    token_ids: bool = False
    """It returns the token ids of a stream on request and takes ids as a prompt, as vLLM does: its streams can be carried on."""
    salted: bool = False
    """It takes a `cache_salt`, and so keeps the cached prefixes of tenants apart."""
    adapters: dict[str, str] = {}
    """Which of `models` are LoRA adapters, each with its base model."""
    prefill: Prefill | None = None
    """Set where long prompts are computed by another engine first, which hands over their keys and values."""
    keeps_prefixes: bool = True
    """False: it has no prefix cache, by the configuration."""


class Signals(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What the machine says of itself, with the UNIX time it was read. Fractions are 0..1, -1 means not known."""

    sampled_at: float
    running: int = 0
    waiting: int = 0
    kv_usage: float = -1.0
    gpu_utilisation: float = -1.0
    gpu_memory: float = -1.0
    gpu_temperature_c: float = -1.0
    adapters: tuple[str, ...] = ()
    """LoRA adapters that its running and waiting requests use."""
    adapter_slots: int = 0
    """How many adapters it can apply at once (`--max-loras`); 0: none, or not known."""
    preemptions: int = 0
    """Requests it has thrown out of its KV cache since it started, to be computed again."""
    gpu_power: float = -1.0
    """Share of the power limit."""
    gpu_throttle: float = 1.0
    """How many times faster a GPU's clock could run, were it not for heat or a failing power supply."""
    gpu_faults: int = 0
    """GPUs with memory errors, bad memory that waits for a reset, or a critical XID."""
    deferred: int = 0
    """Of those waiting, how many wait for something other than room: an adapter's turn, keys and values on their way."""
    keeps_prefixes: bool = True
    """False: its prefix cache is switched off, so nothing that was sent there is cached there."""
    cache_tokens: int = 0
    """Tokens that its KV cache has room for; 0: not known."""
    silent_s: float = 0.0
    """For how long its core has not answered, in seconds, though its server does."""


class Report(msgspec.Struct, frozen=True):
    """One member of the cluster as it describes itself: the target and its latest signals (None: never read).

    `kv_port` is where the agent beside it tells what its KV cache holds, on the target's host; 0: there is none.
    """

    target: Target
    signals: Signals | None = None
    kv_port: int = 0


LONG_S = 10.0
"""Seconds that a long answer takes: prefills next to it count over that time."""
FRESH_S = 1.0
"""After so many seconds of an answer without prefills beside it, the tokens it got at full pace make up for a slow stretch."""


class Load(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A router's books on one target, and the signals that correct them.

    `inflight` counts the requests this router knows of there, its own and those its peers told it of; `unstarted` are those
    with no byte back yet and `unstarted_tokens` their prompt tokens. `foreign` is the work of anybody else: the last gauges
    less the known share at that moment, of which `foreign_waiting` had not begun. `down_until` is a UNIX time: before it the
    target is not offered work, because nothing answered there. `breaker` is what its answers say of its health. Running
    estimates are 0 before the first observation.
    """

    inflight: int = 0
    unstarted: int = 0
    unstarted_tokens: int = 0
    foreign: int = 0
    foreign_waiting: int = 0
    clear_at: float = 0.0
    """UNIX time at which the prefills booked here were expected to be done; 0 where none are."""
    queue_s: float = 0.0
    """Seconds of booked prefills behind the one being worked on: the wait is never less than this."""
    context_tokens: int = 0
    """Tokens that the requests in flight look back on, by their prompts and the answers expected."""
    kv_tokens: int = 0
    """KV-cache tokens the requests in flight were booked with: what was not cached, and their answers."""
    work_s: float = 0.0
    """Seconds of prefill given to this target lately, decaying; as it was at `work_at` (UNIX time)."""
    work_at: float = 0.0
    ttft_s: float = 0.0
    service_s: float = 0.0
    prefill_tps: float = 0.0
    slowdown: float = 0.0
    """Learned: how many times longer prefills take here than the profile says."""
    pace_slowdown: float = 0.0
    """Learned: the same for decode steps."""
    profile: EngineProfile | None = None
    failures: int = 0
    down_until: float = 0.0
    signals: Signals | None = None
    breaker: Breaker = CLOSED
    long_work_s: float = 0.0
    """As `work_s`, over `LONG_S`: what the pace of long answers comes to."""
    fresh: float = 0.0
    """Answers that have just begun, each counting less with its age (`FRESH_S`); as it was at `fresh_at` (UNIX time)."""
    fresh_at: float = 0.0
    throttle: float = 1.0
    """How many times slower it computes than it would at full clock, as its GPUs say; what is learned comes on top."""
    harm: float = 0.0
    """Learned: how many answers of its model miss their pace per unit of `router.placement.predict.pressure`."""
    foreign_weight: float = 1.0
    """How much of the wait there is, by our first tokens, that foreign waiting requests should make: gauges can be stuck, or
    count what waits for something else. Without any of ours there to tell, they are believed ever less."""
    begun_at: float = 0.0
    """UNIX time at which the requests in flight whose answers have begun did so, on average; 0 where none has."""
    silent_s: float = 0.0
    """For how long its core has not answered, in seconds, as of its last signals."""

    def wait_s(self, now: float) -> float:
        """Seconds until the prefills booked here are expected to be done."""
        return max(self.queue_s, self.clear_at - now, 0.0)


class Work(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What a request is expected to ask of the target it was given to; the books are kept in these terms.

    Times in seconds; `prefill_s` are those by which the prefills booked there grow.
    """

    prefill_s: float
    ttft_s: float
    tau_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    limit_s: float = 0.0
    whole: bool = False
    """The answer comes in one piece, not as a stream: when its first token was there nobody sees."""


class Membership(msgspec.Struct, frozen=True, eq=False):
    """All targets the router knows, in a fixed order, and a number that grows with every change.

    `memo` belongs to `router.screen`: results that follow from these targets and the policy alone.
    """

    version: int
    targets: tuple[Target, ...]
    memo: dict[Any, Any] = msgspec.field(default_factory=dict)


class View(msgspec.Struct, frozen=True, gc=False):
    """Everything `decide()` may know about the outside at one moment; `loads[i]` belongs to `membership.targets[i]`."""

    membership: Membership
    loads: tuple[Load, ...]
    spilling: frozenset[tuple[Label, tuple[str, ...]]] = frozenset()
    """Labels and models whose last decision found their local targets saturated (hysteresis)."""
    spend_left_usd: float = 0.0
    """What this router may still spend outside today, for this request's key; infinite when no budget is set."""
    cached: Mapping[int, int] = {}
    """Prompt tokens of this request that a target holds, by its place in the membership; absent: none."""
    output_tokens: Mapping[str, int] = {}
    """Answer tokens to expect, by model (learned); absent: unknown."""
    margin_s: float = 0.0
    """What predictions of the first token must be increased by so that nine in ten are kept (learned)."""
    pace_share: float = 1.0
    """Share of the pace limit that a prediction may use up (learned from how many requests met their limits)."""
    adapter_s: Mapping[int, float] = {}
    """Seconds that the adapter this request names takes to get ready at a target, by its place; absent: none."""
    crowd_share: float = 0.0
    """Share of the pace limit past which a request that may not leave waits for a moment when it slows others less (learned
    from how many answers kept their pace); 0: none does."""
