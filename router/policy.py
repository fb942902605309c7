"""The compiled policy: a `Config` turned into frozen structs and bit masks, under one epoch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from router.complexity.choose import Plan
from router.complexity.compile import compile_experiments, compile_plan
from router.complexity.experiment import Branch
from router.config import (
    ANY,
    AUTO,
    LOCAL,
    Allowance,
    Config,
    ConfigError,
    ExternalTarget,
    Key,
    Tls,
    epoch_of,
    moment_of,
    zones_in,
)
from router.identity.limit import MICRO_USD, Limit, Period
from router.identity.limit import Kind as LimitKind
from router.identity.narrowing import Narrowing
from router.identity.networks import Networks, compile_networks
from router.identity.priority import CLASSES, NORMAL
from router.placement.targets import OFFERED, Address, Endpoint, Kind, Price, Target, TlsFiles
from router.residency.break_glass import Relaxation
from router.residency.guard import STORED, Place
from router.residency.label import Evidence, Label, Vocabulary, admits, translate_evidence
from router.response_cache.rule import CacheRule, compile_rule


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
    narrowing: Narrowing | None = None
    """What a token takes away from the key whose scopes it bears; already taken away in the other fields."""
    bearer_tags: tuple[str, ...] = ()
    """Tags that hold for a token besides the key's ceiling: its own, and those of its tenant. Guards are told of them."""
    cache: CacheRule | None = None
    """Its part in the response cache; None: it has none."""


class Site(msgspec.Struct, frozen=True):
    """A place the configuration has for a model, whether or not something runs there now."""

    model: str
    evidence: Evidence
    external: bool
    endpoints: frozenset[str]


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
    branches: tuple[Branch, ...] = ()
    """The experiments with `auto`."""
    """How `auto` is decided beyond the first rule; None where the configuration asks for nothing more."""
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


def compile_policy(config: Config, base: Path, relaxations: Sequence[Relaxation] = ()) -> Policy:
    """Compile a configuration.

    Args:
        config: the validated configuration.
        base: directory that relative `sha256_file` paths start from.
        relaxations: signed relaxations whose signatures were checked (`router.residency.break_glass`).

    Raises:
        ConfigError: a key file is missing or malformed, a TLS file is missing, or a tag or key could never be satisfied.
    """
    words = vocabulary_of(config)
    _check_tls_files(config, base)
    tags = _compile_tags(config, words)
    tier_models = {
        tier: tuple(
            dict.fromkeys(
                [m.id for m in config.models if m.tier == tier]
                + [name for t in config.targets if t.tier == tier for name in t.models]
            )
        )
        for tier in config.complexity.tiers
    }
    budget = config.spill.daily_budget_usd
    relaxed = _relaxed_by_key(relaxations, tags)
    keys = _compile_keys(config, tags, base, relaxed)
    plan, branches = _compile_complexity(config, base)
    policy = Policy(
        epoch=epoch_under(config, relaxations),
        vocabulary=words,
        tags=tags,
        default_label=tags[config.residency.default],
        keys=keys,
        tiers=tuple(config.complexity.tiers),
        tier_models=tier_models,
        sites=tuple(_sites(config, words)),
        slo=SloLimits(config.slo.ttft_ms / 1e3, config.slo.max_wait_ms / 1e3, config.slo.resume_ratio, *_pace_limits(config)),
        spill_enabled=config.spill.enabled,
        daily_budget_usd=math.inf if budget is None else budget,
        large_above_tokens=config.complexity.large_above_tokens,
        score_threshold=config.complexity.score_threshold,
        plan=plan,
        branches=branches,
        model_labels={name: _meet_of(named, tags) for name, named in config.residency.models.items() if named},
        lineage_label=_lineage_label(config, tags),
        widest=_widest(keys.values(), _of_any_tenant(config, keys.values())),
        tenant_labels={name: _meet_of(named, tags) for name, named in config.residency.tenants.items() if named},
        tenant_limits={name: limits_of(f"tenant:{name}", allowance) for name, allowance in config.tenants.items()},
        tenants={tenant: tuple(named) for tenant, named in config.residency.tenants.items()},
        relaxed=relaxed,
        relaxations=tuple(relaxations),
        names=frozenset(site.model for site in _sites(config, words)) | {*config.complexity.tiers, AUTO},
    )
    check_satisfiable(config, policy)
    return policy


def _pace_limits(config: Config) -> tuple[float, float, float]:
    slo = config.slo
    return (math.inf if slo.tpot_ms is None else slo.tpot_ms / 1e3, slo.stretch, slo.goal)


def _compile_complexity(config: Config, base: Path) -> tuple[Plan | None, tuple[Branch, ...]]:
    served = {model.id for model in config.models} | {name for target in config.targets for name in target.models}
    try:
        plan = compile_plan(config.complexity, base, frozenset(served))
        return plan, compile_experiments(config.complexity, base, frozenset(served))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _compile_tags(config: Config, words: Vocabulary) -> dict[str, Label]:
    inside = words.zone_mask(name for name, zone in config.zones.items() if not zone.external)
    everywhere = words.zone_mask(config.zones)
    tags = {LOCAL: Label(inside, inside), ANY: Label(everywhere, everywhere)}
    for zone in config.zones:
        tags.setdefault(zone, Label(words.zone_mask([zone]), words.zone_mask([zone])))
    for name, tag in config.residency.tags.items():
        process = words.zone_mask(zones_in(config, tag.process))
        store = process if tag.store is None else words.zone_mask(zones_in(config, tag.store))
        tags[name] = Label(process, store, words.duty_mask(tag.require))
    return tags


def _meet_of(names: Iterable[str], tags: dict[str, Label]) -> Label:
    return reduce(Label.meet, (tags[name] for name in names))


def _lineage_label(config: Config, tags: dict[str, Label]) -> Label | None:
    asking = [name for name, tag in config.residency.tags.items() if tag.requires_lineage]
    return _meet_of(asking, tags) if asking else None


def _widest(grants: Iterable[KeyGrant], tokens: KeyGrant | None) -> dict[str, Label]:
    """Per tenant how far its keys reach, and how far the bearers of `tokens` do, whose tenant can be any."""
    widest: dict[str, Label] = {}
    for grant in grants:
        widest[grant.tenant] = reach_of(grant).join(widest.get(grant.tenant, grant.ceiling))
    return widest if tokens is None else {tenant: label.join(reach_of(tokens)) for tenant, label in widest.items()}


def reach_of(grant: KeyGrant) -> Label:
    """How far a key's requests can ever go, its relaxations included."""
    return reduce(Label.join, (grant.ceiling.join(relaxed.label) for relaxed in grant.relaxed), grant.ceiling)


def _of_any_tenant(config: Config, grants: Iterable[KeyGrant]) -> KeyGrant | None:
    """The key whose scopes tokens bear, where a claim of theirs names the tenant."""
    if config.jwt is None or config.jwt.tenant_claim is None:
        return None
    return next((grant for grant in grants if grant.id == config.jwt.key), None)


def epoch_under(config: Config, relaxations: Sequence[Relaxation]) -> str:
    """The epoch of a configuration while these relaxations are signed."""
    if not relaxations:
        return epoch_of(config)
    named = msgspec.json.encode([epoch_of(config), *relaxations])
    return hashlib.sha256(named).hexdigest()[:16]


def check_satisfiable(config: Config, policy: Policy) -> None:
    """Every tag, default and key must be satisfied by some configured place, whatever is up.

    Raises:
        ConfigError: one that never could be; the text says which and what is missing.
    """

    def places(label: Label, models: frozenset[str] | None, spill: bool) -> bool:
        return any(
            admits(policy.label_for(label, site.model), site.evidence, -1.0)
            for site in policy.sites
            if (models is None or site.model in models) and (spill or not site.external)
        )

    for name in config.residency.tags:
        if not places(policy.tags[name], None, True):
            raise ConfigError(f"residency.tags.{name}: no configured model or target satisfies it ({policy.describe(name)})")
    for i, key in enumerate(config.keys):
        grant = next(grant for grant in policy.keys.values() if grant.id == key.id)
        spill = grant.spill and policy.spill_enabled
        if places(grant.ceiling, grant.models, spill):
            continue
        label = policy.label_text(grant.ceiling)
        if places(grant.ceiling, grant.models, True):
            hint = ": the only places are external, and this key has no `spill` (or `spill.enabled` is false)"
        else:
            hint = ""
        raise ConfigError(f"keys[{i}].residency: no configured place satisfies this key's ceiling ({label}){hint}")


def _compile_keys(
    config: Config, tags: dict[str, Label], base: Path, relaxed: Mapping[str, tuple[Relaxed, ...]]
) -> dict[bytes, KeyGrant]:
    grants: dict[bytes, KeyGrant] = {}
    for i, key in enumerate(config.keys):
        digest = key.sha256 or _read_digest(base / str(key.sha256_file), f"keys[{i}].sha256_file", key.id)
        if bytes.fromhex(digest) in grants:
            raise ConfigError(f"keys[{i}]: the same key is there twice")
        grants[bytes.fromhex(digest)] = grant_of_key(
            key,
            config,
            tags,
            f"keys[{i}]",
            digest=bytes.fromhex(digest),
            relaxed=relaxed.get(key.id, ()),
        )
    return grants


def grant_of_key(
    key: Key,
    config: Config,
    tags: dict[str, Label],
    where: str,
    digest: bytes = b"",
    relaxed: tuple[Relaxed, ...] = (),
) -> KeyGrant:
    """What a key may do.

    Args:
        key: the key, from the configuration or the store.
        config: the configuration.
        tags: its residency tags, compiled.
        where: names the key in errors.
        digest: the SHA-256 of a key of the configuration; empty for one of the store.
        relaxed: its signed relaxations.

    Raises:
        ConfigError: it names a tag that is not there, or tags that no zone satisfies.
    """
    named = [key.residency] if isinstance(key.residency, str) else key.residency
    ceiling_tags = tuple(named or [config.residency.default])
    for tag in (*ceiling_tags, *([key.redact.then] if key.redact else ())):
        if tag not in tags:
            raise ConfigError(f"{where}.residency: unknown tag `{tag}`")
    ceiling = _meet_of((*ceiling_tags, *config.residency.tenants.get(key.tenant, ())), tags)
    if ceiling.process == 0 or ceiling.store == 0:
        raise ConfigError(f"{where}.residency: no zone satisfies all of {', '.join(ceiling_tags)}")
    models = None if key.models is None or AUTO in key.models else _expand(key.models, config)
    return KeyGrant(
        id=key.id,
        tenant=key.tenant,
        ceiling=ceiling,
        ceiling_tags=ceiling_tags,
        models=models,
        spill=key.spill,
        limits=limits_of(f"key:{key.id}", key) + limits_of(f"tenant:{key.tenant}", config.tenants.get(key.tenant)),
        timeout_s=key.timeout_ms / 1e3 or config.timeouts.request_s,
        continuation=config.continuation if key.continuation is None else key.continuation,
        finishes=(key.when_client_leaves or config.when_client_leaves) == "finish",
        digest=digest,
        guard_id=key.id if digest else STORED + key.id,
        relaxed=relaxed,
        redacted=None if key.redact is None else tags[key.redact.then],
        networks=None if key.cidr is None else compile_networks(key.cidr),
        expires=math.inf if key.expires is None else moment_of(key.expires),
        priority=CLASSES.index(key.priority),
        capture=key.capture,
        cache=compile_rule(key, config, vocabulary_of(config), ceiling, where),
        vote=key.vote,
    )


def limits_of(scope: str, allowance: Allowance | None) -> tuple[Limit, ...]:
    """The limits that an allowance sets; 0 sets none."""
    if allowance is None:
        return ()
    wanted = (
        Limit(scope, LimitKind.REQUESTS, Period.MINUTE, allowance.requests_per_minute),
        Limit(scope, LimitKind.TOKENS, Period.MINUTE, allowance.tokens_per_minute),
        Limit(scope, LimitKind.CONCURRENT, Period.NOW, allowance.concurrent_requests),
        Limit(scope, LimitKind.TOKENS, Period.DAY, allowance.daily_tokens),
        Limit(scope, LimitKind.TOKENS, Period.MONTH, allowance.monthly_tokens),
        Limit(scope, LimitKind.USD, Period.DAY, math.ceil(allowance.daily_usd * MICRO_USD)),
        Limit(scope, LimitKind.USD, Period.MONTH, math.ceil(allowance.monthly_usd * MICRO_USD)),
    )
    return tuple(limit for limit in wanted if limit.amount)


def _relaxed_by_key(relaxations: Iterable[Relaxation], tags: dict[str, Label]) -> dict[str, tuple[Relaxed, ...]]:
    found: dict[str, tuple[Relaxed, ...]] = {}
    for relaxation in relaxations:
        unknown = [tag for tag in relaxation.tags if tag not in tags]
        if unknown:
            raise ConfigError(f"break_glass: relaxation `{relaxation.id}` names the unknown tag `{unknown[0]}`")
        relaxed = Relaxed(relaxation.id, _meet_of(relaxation.tags, tags), relaxation.begins, relaxation.ends)
        found[relaxation.key] = (*found.get(relaxation.key, ()), relaxed)
    return found


def _expand(names: Iterable[str], config: Config) -> frozenset[str]:
    """Model ids behind a list of model ids and tiers."""
    allowed = set(names)
    for tier in allowed & set(config.complexity.tiers):
        allowed |= {model.id for model in config.models if model.tier == tier}
        allowed |= {name for target in config.targets if target.tier == tier for name in target.models}
    return frozenset(allowed - set(config.complexity.tiers))


def _read_digest(path: Path, where: str, key_id: str) -> str:
    try:
        digest = path.read_text(encoding="ascii").split()[0].lower()
        if len(bytes.fromhex(digest)) != 32:
            raise ValueError
    except OSError:
        raise ConfigError(f"{where}: cannot read {path}: run `tidegate keys create {key_id}`") from None
    except (ValueError, IndexError):
        raise ConfigError(f"{where}: {path} does not hold a SHA-256 in hex") from None
    return digest


def _sites(config: Config, words: Vocabulary) -> Iterable[Site]:
    for model in config.models:
        endpoints = OFFERED[model.task]
        for replicas in model.replicas:
            zone = words.zone_mask([replicas.zone])
            yield Site(model.id, Evidence(zone, zone, words.duty_mask(replicas.duties)), False, endpoints)
    for target in config.targets:
        for name in target.models:
            yield Site(name, declared_evidence(target, words), target.kind == "cloud", _endpoints(target))


def _endpoints(target: ExternalTarget) -> frozenset[str]:
    if target.kind == "cloud" and target.dialect not in ("openai", "azure"):
        return frozenset({Endpoint.CHAT})
    if target.kind == "cloud":
        return frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS} if target.task == "generate" else {Endpoint.EMBEDDINGS})
    return OFFERED[target.task]


def declared_evidence(target: ExternalTarget, words: Vocabulary) -> Evidence:
    """What the configuration states of a target.

    Raises:
        ConfigError: `expires` is no date.
    """
    process = words.zone_mask([target.zone])
    store = process if target.store is None else words.zone_mask(target.store)
    expires = math.inf
    if target.expires is not None:
        try:
            expires = datetime.fromisoformat(target.expires).replace(tzinfo=UTC).timestamp()
        except ValueError:
            raise ConfigError(f"targets: `{target.id}`: expires is an ISO date such as 2027-05-01") from None
    return Evidence(process, store, words.duty_mask(target.duties), expires)


def fixed_targets(config: Config, egress: Address | None, egress_incarnation: str) -> tuple[Target, ...]:
    """The targets that stand in the configuration itself: servers that already run, and cloud targets behind the egress.

    Args:
        config: the validated configuration.
        egress: where the egress listens; None leaves cloud targets out.
        egress_incarnation: the egress's own incarnation.
    """
    words = vocabulary_of(config)
    targets = []
    for item in config.targets:
        if item.kind == "cloud" and egress is None:
            continue
        targets.append(
            Target(
                id=item.id,
                incarnation=f"{item.id}@{egress_incarnation}" if item.kind == "cloud" else f"{item.id}@{item.url}",
                kind=Kind(item.kind),
                zone=item.zone,
                evidence=declared_evidence(item, words),
                address=egress if item.kind == "cloud" and egress is not None else address_of(item.url, item.tls),
                models=dict(item.models),
                endpoints=_endpoints(item),
                context_tokens=item.context_tokens,
                slots=item.slots,
                price=Price(item.price.prompt, item.price.completion),
                secret=item.id if item.kind == "server" and item.credential else "",
                token_ids=item.token_ids,
            )
        )
    return tuple(targets)


def retargeter(config: Config, before: Policy, after: Policy) -> Callable[[Target], Target | None]:
    """How a new policy sees the targets that are known under the old one.

    A replica's evidence is its own and travels by name. Evidence of the others stands in the configuration: the new one's
    counts, and a target it does not name, or names at another address, is gone.
    """
    specs = {target.id: target for target in fixed_targets(config, Address(), "")}

    def retarget(target: Target) -> Target | None:
        if target.kind is Kind.REPLICA:
            return replace(target, evidence=translate_evidence(target.evidence, before.vocabulary, after.vocabulary))
        spec = specs.get(target.id)
        if spec is None or spec.kind is not target.kind:
            return None
        if spec.kind is Kind.SERVER:
            return spec if spec.incarnation == target.incarnation else None
        return replace(spec, incarnation=target.incarnation, address=target.address)

    return retarget


def address_of(url: str, tls: Tls | None = None) -> Address:
    """`http(s)://host[:port][/base]` or `unix:///path` as an `Address`; `tls` says how, where it is https."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return Address(uds=parts.path)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    files = None if tls is None else tls_files_of(tls)
    return Address(parts.hostname or "", port, tls=secure, base_path=parts.path.rstrip("/"), tls_files=files)


def tls_files_of(tls: Tls) -> TlsFiles:
    """The configuration's TLS block as the hot path has it."""
    return TlsFiles(tls.ca_file or "", tls.cert_file or "", tls.key_file or "", tls.server_name or "")


def _check_tls_files(config: Config, base: Path) -> None:
    """Every TLS file can be read. What is inside them is for whoever speaks TLS: the router, or the egress."""
    blocks = [(f"targets[{i}].tls", target.tls) for i, target in enumerate(config.targets)]
    for where, tls in [*blocks, ("egress.tls", config.egress.tls)]:
        if tls is None:
            continue
        for name in ("ca_file", "cert_file", "key_file"):
            path = getattr(tls, name)
            try:
                if path is not None:
                    (base / path).open("rb").close()
            except OSError as error:
                raise ConfigError(f"{where}.{name}: cannot read {base / path}: {error.strerror}") from None
