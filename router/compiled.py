"""From a configuration to a policy: names become masks, and what could never work is refused with the reason."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import msgspec

from router.complexity.choose import Plan
from router.complexity.compile import compile_experiments, compile_plan, weights_digest
from router.complexity.experiment import Branch
from router.complexity.scoring import KnownAnswerError, Reference, read_references
from router.config import (
    ANY,
    AUTO,
    LOCAL,
    Allowance,
    Config,
    ConfigError,
    Key,
    epoch_of,
    moment_of,
    zones_in,
)
from router.config.check import adapters_of, served_by
from router.fixed_targets import declared_evidence, endpoints_of
from router.identity.limit import Kind as LimitKind
from router.identity.limit import Limit, Period, in_micro_usd, spill_limit
from router.identity.networks import compile_networks
from router.identity.priority import CLASSES
from router.placement.targets import OFFERED
from router.policy import KeyGrant, Policy, Relaxed, Site, SloLimits, reach_of, vocabulary_of
from router.residency.break_glass import Relaxation
from router.residency.guard import STORED
from router.residency.label import Evidence, Label, Vocabulary, admits
from router.response_cache.rule import compile_rule


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
        weights=weights_digest(config.complexity, base) if plan is not None else "",
        references=_references(config, base),
        model_labels=_model_labels(config, tags),
        lineage_label=_lineage_label(config, tags),
        widest=_widest(keys.values(), _of_any_tenant(config, keys.values())),
        tenant_labels={name: _meet_of(named, tags) for name, named in config.residency.tenants.items() if named},
        tenant_limits={name: limits_of(f"tenant:{name}", allowance) for name, allowance in config.tenants.items()},
        tenants={tenant: tuple(named) for tenant, named in config.residency.tenants.items()},
        relaxed=relaxed,
        relaxations=tuple(relaxations),
        names=frozenset(site.model for site in _sites(config, words)) | {*config.complexity.tiers, AUTO},
        adapters=adapters_of(config),
    )
    check_satisfiable(config, policy)
    return policy


def _pace_limits(config: Config) -> tuple[float, float, float]:
    slo = config.slo
    return (math.inf if slo.tpot_ms is None else slo.tpot_ms / 1e3, slo.stretch, slo.goal)


def _compile_complexity(config: Config, base: Path) -> tuple[Plan | None, tuple[Branch, ...]]:
    served = served_by(config)
    try:
        plan = compile_plan(config.complexity, base, frozenset(served))
        return plan, compile_experiments(config.complexity, base, frozenset(served))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _references(config: Config, base: Path) -> dict[bytes, Reference]:
    labels = config.complexity.labels
    if labels is None or labels.references is None:
        return {}
    try:
        return read_references(base / labels.references)
    except KnownAnswerError as error:
        raise ConfigError(f"complexity.labels.references: {error}") from None


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


def _model_labels(config: Config, tags: dict[str, Label]) -> dict[str, Label]:
    """The labels that tags of models ask for. What holds for a model holds for its adapters too, whose own tags add to it."""
    named = config.residency.models
    bases = adapters_of(config)
    wanted = {name: [*named.get(bases.get(name, ""), []), *named.get(name, [])] for name in [*named, *bases]}
    return {name: _meet_of(tag_names, tags) for name, tag_names in wanted.items() if tag_names}


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
        spill_limit=spill_limit(key.spill_daily_usd, key.id) if key.spill and key.spill_daily_usd is not None else None,
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
        max_body_bytes=key.max_body_bytes,
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
        Limit(scope, LimitKind.USD, Period.DAY, in_micro_usd(allowance.daily_usd)),
        Limit(scope, LimitKind.USD, Period.MONTH, in_micro_usd(allowance.monthly_usd)),
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
            for name in model.names:
                yield Site(name, Evidence(zone, zone, words.duty_mask(replicas.duties)), False, endpoints, True)
    for target in config.targets:
        for name in target.models:
            yield Site(name, declared_evidence(target, words), target.kind == "cloud", endpoints_of(target))


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
