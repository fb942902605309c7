"""Names in a configuration that point to other names: every one must exist, and the message says which is meant."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from router.residency.classify.kinds import Category, Kind

if TYPE_CHECKING:
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
    for name, tag in config.residency.tags.items():
        for zone in (*tag.process, *(tag.store or ())):
            known("zone", zone, zones, f"residency.tags.{name}")
        for duty in tag.require:
            known("duty", duty, duties, f"residency.tags.{name}.require")
    known("tag", config.residency.default, tags, "residency.default")
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
        if target.kind == "cloud" and not config.zones[target.zone].external:
            raise ValueError(
                f"targets[{i}].zone: `{target.zone}` is not external, but a cloud target is outside the cluster: "
                f"declare the zone with `external: true`"
            )
    _check_identities(config, tags)


def _check_identities(config: Config, tags: set[str]) -> None:
    for where, ids in (
        ("models", [model.id for model in config.models]),
        ("targets", [target.id for target in config.targets]),
        ("keys", [key.id for key in config.keys]),
    ):
        for name in {name for name in ids if ids.count(name) > 1}:
            raise ValueError(f"{where}: `{name}` is there twice")
    tiers = set(config.complexity.tiers)
    served = {model.id for model in config.models} | {name for target in config.targets for name in target.models}
    for name in served & (tiers | {AUTO}):
        raise ValueError(f"models: `{name}` is the name of a tier; a model needs another id")
    for where, tier in (
        *((f"models[{i}].tier", model.tier) for i, model in enumerate(config.models)),
        *((f"targets[{i}].tier", target.tier) for i, target in enumerate(config.targets) if target.tier),
    ):
        if tier not in tiers:
            raise ValueError(f"{where}: unknown tier `{tier}`{nearest(tier, tiers)} (complexity.tiers lists them)")
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


def nearest(name: str, allowed: set[str]) -> str:
    """`; did you mean ...?` for a likely typo, else the names there are."""
    close = difflib.get_close_matches(str(name), sorted(allowed), n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(sorted(allowed))}"
