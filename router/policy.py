"""The compiled policy: frozen structs and bit masks, under one epoch. `router.compiled` makes it of a configuration."""

from __future__ import annotations

import math
from functools import reduce

import msgspec

from router.complexity.choose import Plan
from router.complexity.experiment import Branch
from router.complexity.scoring import Reference
from router.config import (
    Config,
)
from router.identity.limit import Limit
from router.identity.narrowing import Narrowing
from router.identity.networks import Networks
from router.identity.priority import NORMAL
from router.residency.break_glass import Relaxation
from router.residency.guard import Place
from router.residency.label import Evidence, Label, Vocabulary
from router.response_cache.rule import CacheRule


class Relaxed(msgspec.Struct, frozen=True, gc=False):
    """A signed relaxation of one key's ceiling: `label` is added to it from `begins` to `ends` (UNIX seconds)."""

    id: str
    label: Label
    begins: float
    ends: float


class KeyGrant(msgspec.Struct, frozen=True):
    """What a key may do. `models` None means every model; `digest` is the SHA-256 that the policy finds it by."""

    id: str
    tenant: str
    ceiling: Label
    ceiling_tags: tuple[str, ...]
    models: frozenset[str] | None
    spill: bool
    limits: tuple[Limit, ...] = ()
    timeout_s: float = 0.0
    continuation: bool = True
    finishes: bool = False
    """An answer whose client has gone is finished for its usage, not cut."""
    redacted: Label | None = None
    """The ceiling of this key's redacted requests; None: nothing is ever redacted."""
    digest: bytes = b""
    guard_id: str = ""
    """The name under which guards know the key: its own, after `STORED` for one that does not stand in the configuration."""
    relaxed: tuple[Relaxed, ...] = ()
    networks: Networks | None = None
    """The addresses it may be used from; None: from anywhere."""
    expires: float = math.inf
    """UNIX seconds; from then on it is worth nothing."""
    priority: int = NORMAL
    """Its class, the place in `router.identity.priority.CLASSES`; 0 goes first."""
    capture: bool = False
    """Whether its payloads are kept."""
    vote: bool = False
    """Whether it may ask for a vote of several models."""
    spill_limit: Limit | None = None
    """Its own budget for what leaves the cluster, besides that of all keys together."""
    narrowing: Narrowing | None = None
    """What a token takes away from the key whose scopes it bears; already taken away in the other fields."""
    bearer_tags: tuple[str, ...] = ()
    """Tags that hold for a token besides the key's ceiling: its own, and those of its tenant. Guards are told of them."""
    cache: CacheRule | None = None
    """Its part in the response cache; None: it has none."""
    max_body_bytes: int | None = None
    """How large a body may be, where that is less than for everybody."""

    @property
    def counted(self) -> tuple[Limit, ...]:
        """Everything that is counted for it."""
        return self.limits if self.spill_limit is None else (*self.limits, self.spill_limit)


class Site(msgspec.Struct, frozen=True):
    """A place the configuration has for a model, whether or not something runs there now."""

    model: str
    evidence: Evidence
    external: bool
    endpoints: frozenset[str]
    replaced: bool = False
    """Serve puts another engine into the place of one that has gone."""


class SloLimits(msgspec.Struct, frozen=True):
    """Times in seconds; see `config.Slo`."""

    ttft_s: float
    max_wait_s: float
    resume_ratio: float
    tpot_s: float = math.inf
    stretch: float = 0.0
    goal: float = 0.95


class Policy(msgspec.Struct, frozen=True):
    """Everything `decide()` needs from the configuration. `keys` is indexed by the SHA-256 digest of the key."""

    epoch: str
    vocabulary: Vocabulary
    tags: dict[str, Label]
    default_label: Label
    keys: dict[bytes, KeyGrant]
    tiers: tuple[str, ...]
    tier_models: dict[str, tuple[str, ...]]
    sites: tuple[Site, ...]
    slo: SloLimits
    spill_enabled: bool
    daily_budget_usd: float
    large_above_tokens: int
    score_threshold: float
    plan: Plan | None = None
    """How `auto` is decided beyond the first rule; None where the configuration asks for nothing more."""
    branches: tuple[Branch, ...] = ()
    """The experiments with `auto`."""
    weights: str = ""
    """Names the weights of `plan` by their content; "" without one."""
    references: dict[bytes, Reference] = {}
    """Known answers, for the label loop."""
    model_labels: dict[str, Label] = {}
    """What a model itself demands of every request it answers."""
    lineage_label: Label | None = None
    """The meet of all tags that require lineage: what a conversation of unknown past is held to. None: no tag asks."""
    widest: dict[str, Label] = {}
    """Per tenant the join of its keys' ceilings: a label at least that wide narrows no follow-up."""
    tenant_labels: dict[str, Label] = {}
    """What a tenant's tags demand of each of its keys and tokens."""
    tenant_limits: dict[str, tuple[Limit, ...]] = {}
    tenants: dict[str, tuple[str, ...]] = {}
    """The names of those tags."""
    relaxed: dict[str, tuple[Relaxed, ...]] = {}
    """Signed relaxations by the id of the key they are for, which may be one of the store."""
    relaxations: tuple[Relaxation, ...] = ()
    """The same as they were signed."""
    names: frozenset[str] = frozenset()
    """What a client may call a model: the models, the tiers, and `auto`."""
    adapters: dict[str, str] = {}
    """LoRA adapters, each with its base model; they are among the models."""

    def label_for(self, label: Label, model: str) -> Label:
        """The label of a request once `model` answers it."""
        own = self.model_labels.get(model)
        return label if own is None else label.meet(own)

    @property
    def models(self) -> frozenset[str]:
        """Every model id a client may name."""
        return frozenset(site.model for site in self.sites)

    def describe(self, tag: str) -> str:
        """A tag's label in words, for messages."""
        place = self.place_of(self.tags[tag])
        duties = f"; requires {', '.join(place.duties)}" if place.duties else ""
        return f"process in {', '.join(place.process) or 'no zone'}; store in {', '.join(place.store) or 'no zone'}{duties}"

    def label_text(self, label: Label) -> str:
        """The label in names, as a pass carries it."""
        return self.place_of(label).to_text()

    def label_of(self, named: Place) -> Label:
        """A label in names as masks of this policy: zones unknown here are lost, unknown duties leave nothing."""
        words = self.vocabulary
        if not set(named.duties) <= set(words.duties):
            return Label(0, 0)
        process = words.zone_mask(zone for zone in named.process if zone in words.zones)
        store = words.zone_mask(zone for zone in named.store if zone in words.zones)
        return Label(process, store, words.duty_mask(named.duties))

    def place_of(self, mask: Label | Evidence) -> Place:
        """Masks turned into names."""
        words = self.vocabulary
        return Place(words.zone_names(mask.process), words.zone_names(mask.store), words.duty_names(mask.duties))


def vocabulary_of(config: Config) -> Vocabulary:
    """The zone and duty names of a configuration, in a fixed order."""
    return Vocabulary(tuple(sorted(config.zones)), tuple(sorted(config.duties)))


def reach_of(grant: KeyGrant) -> Label:
    """How far a key's requests can ever go, its relaxations included."""
    return reduce(Label.join, (grant.ceiling.join(relaxed.label) for relaxed in grant.relaxed), grant.ceiling)
