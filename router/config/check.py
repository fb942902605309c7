"""Names in a configuration that point to other names: every one must exist, and the message says which is meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from router.residency.classify.kinds import Category, Kind

if TYPE_CHECKING:
    from router.config.residency import Tag
    from router.config.schema import Config

AUTO = "auto"
LOCAL = "local"
"""The built-in tag: every zone that is not external. It is also the default label."""
ANY = "any"
"""The built-in tag: every zone of the configuration."""

CATEGORIES = tuple(category.value for category in Category)
KINDS = tuple(kind.value for kind in Kind)


def check_references(config: Config) -> None:
    """Check every reference of a configuration.

    Raises:
        ValueError: the first one that leads nowhere, with the place it stands in.
    """
    zones, duties = set(config.zones), set(config.duties)
    tags = set(config.residency.tags) | zones | {LOCAL, ANY}

    def known(kind: str, name: str, allowed: set[str], where: str) -> None:
        if name not in allowed:
            raise ValueError(f"{where}: unknown {kind} `{name}`{nearest(name, allowed)}")

    if len(config.zones) > 62 or len(config.duties) > 62:
        raise ValueError("at most 62 zones and 62 duties")
    for reserved in {LOCAL, ANY} & set(config.residency.tags):
        raise ValueError(f"residency.tags.{reserved}: this tag is built in")
    places = check_regions(config)
    for name, tag in config.residency.tags.items():
        for zone in (*tag.process, *(tag.store or ())):
            known("zone", zone, places, f"residency.tags.{name}")
        for duty in tag.require:
            known("duty", duty, duties, f"residency.tags.{name}.require")
        if tag.sensitive:
            _check_sensitive(config, name, tag)
    known("tag", config.residency.default, tags, "residency.default")
    for tenant, named in config.residency.tenants.items():
        for tag_name in named:
            known("tag", tag_name, tags, f"residency.tenants.{tenant}")
    for tag_model, named in config.residency.models.items():
        for tag_name in named:
            known("tag", tag_name, tags, f"residency.models.{tag_model}")
    for i, rule in enumerate(config.classify.rules):
        known("tag", rule.meet, tags, f"classify.rules[{i}].meet")
    if config.classify.unknown is not None:
        known("tag", config.classify.unknown, tags, "classify.unknown")
    for i, model in enumerate(config.models):
        for j, replicas in enumerate(model.replicas):
            known("zone", replicas.zone, zones, f"models[{i}].replicas[{j}].zone")
            for duty in replicas.duties:
                known("duty", duty, duties, f"models[{i}].replicas[{j}].duties")
            if config.zones[replicas.zone].external:
                raise ValueError(f"models[{i}].replicas[{j}].zone: `{replicas.zone}` is external; engines run inside")
    for i, target in enumerate(config.targets):
        for zone in (target.zone, *(target.store or ())):
            known("zone", zone, zones, f"targets[{i}].zone")
        for duty in target.duties:
            known("duty", duty, duties, f"targets[{i}].duties")
        external = config.zones[target.zone].external
        if target.kind == "cloud" and not external:
            raise ValueError(
                f"targets[{i}].zone: `{target.zone}` is not external, but a cloud target is outside the cluster: "
                f"declare the zone with `external: true`"
            )
    _check_prices(config)
    if config.cache is not None:
        for zone in config.cache.zones:
            known("zone", zone, zones, "cache.zones")
            if config.zones[zone].external:
                raise ValueError(f"cache.zones: `{zone}` is external; routers, and what they keep, are inside")
        for duty in config.cache.duties:
            known("duty", duty, duties, "cache.duties")
    _check_labels(config)
    _check_identities(config, tags)
    if config.capture is not None:
        known("zone", config.capture.zone, zones, "capture.zone")
        for duty in config.capture.duties:
            known("duty", duty, duties, "capture.duties")
        if not config.audit.enabled:
            raise ValueError("capture: payloads are found through the audit log, and `audit.enabled` is false")
    if max(config.max_body_bytes, config.max_audio_bytes or 0) > config.max_held_bytes:
        raise ValueError("max_held_bytes: it is below what one request may hold (`max_body_bytes`, `max_audio_bytes`)")
    for i, key in enumerate(config.keys):
        if (key.max_body_bytes or 0) > config.max_body_bytes:
            raise ValueError(f"keys[{i}].max_body_bytes: it is above the top-level `max_body_bytes`, {config.max_body_bytes}")
        if key.capture and config.capture is None:
            raise ValueError(f"keys[{i}].capture: there is no `capture` block that says where payloads are kept")


def check_startable(config: Config) -> None:
    """Check what must not run, although earlier versions ran with it and their audit logs have it.

    Raises:
        ValueError: the first such thing, with the place it stands in.
    """
    if (port := config.admin.port) == config.listen.port:  # with SO_REUSEPORT both open, and clients reach the one without keys
        raise ValueError(
            f"admin.port: {port} is `listen.port`, too; the admin listener asks for no key and needs a port of its own"
        )
    for i, target in enumerate(config.targets):
        # Asked by the routers themselves: no `spill`, budget or intent stands before it.
        if target.kind == "server" and config.zones[target.zone].external:
            raise ValueError(
                f"targets[{i}].zone: `{target.zone}` is external, and a server is inside: what is outside is `kind: cloud`, "
                f"which the egress asks for keys with `spill: true`"
            )


def _check_prices(config: Config) -> None:
    """A budget for spilling holds what has a price, and nothing else."""
    budgets = ["spill.daily_budget_usd"] if config.spill.daily_budget_usd is not None else []
    budgets += [f"keys[{i}].spill_daily_usd" for i, key in enumerate(config.keys) if key.spill_daily_usd is not None]
    for i, target in enumerate(config.targets):
        if budgets and target.kind == "cloud" and "price" not in target.model_fields_set:
            raise ValueError(
                f"targets[{i}].price: without it `{budgets[0]}` does not hold what `{target.id}` costs: give US dollars per "
                f"million tokens, {{prompt: 0, completion: 0}} where it costs nothing"
            )


def check_regions(config: Config) -> set[str]:
    """The names a tag may use for places: zones and regions.

    Raises:
        ValueError: a region has a zone's or built-in tag's name, or holds a name that is neither a zone nor a region before it.
    """
    places = set(config.zones)
    for region, members in config.residency.regions.items():
        if region in places | {LOCAL, ANY}:
            raise ValueError(f"residency.regions.{region}: this name is taken by a zone or built in")
        for member in members:
            if member not in places:
                raise ValueError(f"residency.regions.{region}: unknown zone `{member}`{nearest(member, places)}")
        places.add(region)
    return places


def zones_in(config: Config, names: Iterable[str]) -> list[str]:
    """The zones behind a list of zones and regions, each once, in order."""
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys([name] if name in config.zones else zones_in(config, config.residency.regions[name])))
    return list(found)


def _check_sensitive(config: Config, name: str, tag: Tag) -> None:
    """A sensitive tag must not reach outside by accident, through a region somebody else widened or a zone that moved out."""
    for listed in (*tag.process, *(tag.store or ())):
        for zone in zones_in(config, [listed]):
            if config.zones[zone].external:
                through = "" if zone == listed else f" (through the region `{listed}`)"
                raise ValueError(
                    f"residency.tags.{name}: this tag is sensitive, but lets bytes out to the external zone `{zone}`{through}: "
                    f"take the zone away, or `sensitive`"
                )


def _check_labels(config: Config) -> None:
    labels = config.complexity.labels
    if labels is None:
        return
    if labels.zone not in config.zones:
        raise ValueError(f"complexity.labels.zone: unknown zone `{labels.zone}`{nearest(labels.zone, set(config.zones))}")
    if config.zones[labels.zone].external:
        raise ValueError(f"complexity.labels.zone: `{labels.zone}` is external; labels are kept inside")
    for duty in labels.duties:
        if duty not in config.duties:
            raise ValueError(f"complexity.labels.duties: unknown duty `{duty}`{nearest(duty, set(config.duties))}")
    inside = {model.id for model in config.models}
    inside |= {name for target in config.targets if target.kind != "cloud" for name in target.models}
    if labels.judge is not None and labels.judge not in inside:
        raise ValueError(
            f"complexity.labels.judge: no model inside the cluster is `{labels.judge}`{nearest(labels.judge, inside)}"
        )


def _check_identities(config: Config, tags: set[str]) -> None:
    for where, ids in (
        ("models", [name for model in config.models for name in model.names]),
        ("targets", [target.id for target in config.targets]),
        ("keys", [key.id for key in config.keys]),
    ):
        for name in {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"{where}: `{name}` is there twice")
    if config.cache is not None and any(target.id == "cache" for target in config.targets):
        raise ValueError("targets: `cache` is the name that answers from the response cache have; a target needs another id")
    adapters_of(config)
    tiers = set(config.complexity.tiers)
    served = served_by(config)
    for name in served & (tiers | {AUTO}):
        raise ValueError(f"models: `{name}` is the name of a tier; a model needs another id")
    for where, tier in (
        *((f"models[{i}].tier", model.tier) for i, model in enumerate(config.models)),
        *((f"targets[{i}].tier", target.tier) for i, target in enumerate(config.targets) if target.tier),
    ):
        if tier not in tiers:
            raise ValueError(f"{where}: unknown tier `{tier}`{nearest(tier, tiers)} (complexity.tiers lists them)")
    for name in config.complexity.vote.models:
        if name not in served:
            raise ValueError(f"complexity.vote.models: unknown model `{name}`{nearest(name, served)}")
    for name in set(config.residency.models) - served:
        raise ValueError(f"residency.models: unknown model `{name}`{nearest(name, served)}")
    for i, key in enumerate(config.keys):
        ceiling = [key.residency] if isinstance(key.residency, str) else key.residency or []
        for tag in ceiling:
            if tag not in tags:
                raise ValueError(f"keys[{i}].residency: unknown tag `{tag}`{nearest(tag, tags)}")
        if key.redact is not None and key.redact.then not in tags:
            raise ValueError(f"keys[{i}].redact.then: unknown tag `{key.redact.then}`{nearest(key.redact.then, tags)}")
        for name in key.models or []:
            if name not in served | tiers | {AUTO}:
                raise ValueError(f"keys[{i}].models: unknown model `{name}`{nearest(name, served | tiers)}")
    if not config.models and not config.targets:
        raise ValueError("there is nothing to route to: give `models` or `targets`")


def served_by(config: Config) -> set[str]:
    """Everything a request can name as its model, tiers aside."""
    inside = {name for model in config.models for name in model.names}
    return inside | {name for target in config.targets for name in target.models}


def adapters_of(config: Config) -> dict[str, str]:
    """Adapters, each with its base model.

    Raises:
        ValueError: one name stands for adapters of two models, or for an adapter here and a model there.
    """
    found = {adapter.id: model.id for model in config.models for adapter in model.adapters}
    models = {model.id for model in config.models}
    for i, target in enumerate(config.targets):
        for name, base in target.adapters.items():
            if found.setdefault(name, base) != base:
                raise ValueError(f"targets[{i}].adapters: `{name}` is made for `{base}` here and for `{found[name]}` elsewhere")
            if name in models:
                raise ValueError(f"targets[{i}].adapters: `{name}` is a model of its own elsewhere (`models`)")
    return found


def nearest(name: str, allowed: set[str]) -> str:
    """`; did you mean ...?` for a likely typo, else the names there are."""
    close = difflib.get_close_matches(str(name), sorted(allowed), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(allowed))}"
