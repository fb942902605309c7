"""What `tidegate plan` is asked: zones, labels, models with their engine profiles, and classes of requests with their limits."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from router.compiled import compile_policy
from router.config import Config, ConfigError, parse_config, parse_yaml, read_bounded
from router.config.check import nearest
from router.config.residency import Zone
from router.config.strict import Name, Strict, check_model, check_name
from router.policy import Policy

GOAL_MARGIN = 0.005
"""The router is asked for so much more than the classes, so that the noise of a trace does not decide."""
_TIER = "planned-tier"
"""Requests of a plan name their model; models may have the names that tiers usually have."""


class PlanError(ValueError):
    """The question cannot be answered as asked; the text says what to change."""


class PlannedModel(Strict):
    """A model that may run: what its engines are like, where they may stand, what one costs, and bounds on their number."""

    id: str
    profile: str
    """A profile's name or file (`tidegate plan --calibrate` writes one)."""
    zones: list[Name] = Field(min_length=1)
    price: float = Field(default=1.0, gt=0)
    """Of one replica, in any unit; the cheapest fleet that is enough is looked for."""
    least: int = Field(default=0, ge=0, le=512)
    """Replicas in each of its zones, at least and at most."""
    most: int = Field(default=64, ge=1, le=512)

    _id = field_validator("id")(check_model)

    @model_validator(mode="after")
    def _bounds(self) -> PlannedModel:
        if self.least > self.most:
            raise ValueError("`least` is above `most`")
        if len(set(self.zones)) < len(self.zones):
            raise ValueError("a zone is named twice")
        return self


class Match(Strict):
    """Which requests of a recorded trace belong to a class; empty lists match all."""

    keys: list[str] = []
    tenants: list[str] = []
    priorities: list[Literal["high", "normal", "low"]] = []
    models: list[str] = []
    labels: list[str] = []
    """As the audit log writes them: zones that may process, that may store, and duties, e.g. `eu+us/eu/baa`."""


class PlannedClass(Strict):
    """Requests with the same limits, label and permission to leave."""

    name: Name
    model: str
    label: Name
    share: float | None = Field(default=None, gt=0, le=1)
    """Of the conversations of a trace that does not say whose they are. Default: what the others leave, in equal parts."""
    match: Match = Match()
    """For traces that do, from the audit log; the first class that matches has the request."""
    priority: Literal["high", "normal", "low"] = "normal"
    ttft_ms: float = Field(default=2000, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    stretch: float = Field(default=2.0, ge=0)
    """A long prompt may take this many times its own prefill on an idle engine, where that is more than `ttft_ms`."""
    goal: float = Field(default=0.95, gt=0, lt=1)
    """Share of its requests that must keep both limits."""
    spill: bool = False
    """Its requests may leave the cluster, if its label names an external zone."""
    most_spilled: float = Field(default=1.0, ge=0, le=1)
    """The share of its requests that may do so; more is not enough replicas."""

    _name = field_validator("name")(check_name)


class PlanFile(Strict):
    """The whole question."""

    zones: dict[Name, Zone] = Field(min_length=1)
    labels: dict[Name, list[Name]] = Field(min_length=1)
    """Name -> zones that its requests may use."""
    models: list[PlannedModel] = Field(min_length=1)
    classes: list[PlannedClass] = Field(min_length=1)
    ttft_ms: float | None = Field(default=None, gt=0)
    """`slo.ttft_ms` of the routers, which know one limit for all. Default: the strictest class's; `tpot_ms` likewise."""
    tpot_ms: float | None = Field(default=None, gt=0)
    max_wait_ms: float = Field(default=30_000, gt=0)

    @model_validator(mode="after")
    def _references(self) -> PlanFile:
        models = {model.id: model for model in self.models}
        for kind, names in (("models", [m.id for m in self.models]), ("classes", [c.name for c in self.classes])):
            for name in {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{kind}: `{name}` is there twice")
        for label, zones in self.labels.items():
            for zone in zones:
                _known("zone", zone, set(self.zones), f"labels.{label}")
        for i, model in enumerate(self.models):
            for zone in model.zones:
                _known("zone", zone, set(self.zones), f"models[{i}].zones")
                if self.zones[zone].external:
                    raise ValueError(f"models[{i}].zones: `{zone}` is external; engines run inside")
        for i, wanted in enumerate(self.classes):
            _known("model", wanted.model, set(models), f"classes[{i}].model")
            _known("label", wanted.label, set(self.labels), f"classes[{i}].label")
            if not self.reachable(wanted):
                raise ValueError(
                    f"classes[{i}]: `{wanted.model}` runs in {', '.join(models[wanted.model].zones)}, and the label "
                    f"`{wanted.label}` allows none of these: no number of replicas serves `{wanted.name}`"
                )
        given = sum(wanted.share or 0.0 for wanted in self.classes)
        if given > 1.000001:
            raise ValueError(f"classes: the shares add up to {given:g}, more than 1")
        return self

    def reachable(self, wanted: PlannedClass) -> list[str]:
        """The zones in which engines of a class's model may serve it."""
        model = next(model for model in self.models if model.id == wanted.model)
        return [zone for zone in model.zones if zone in self.labels[wanted.label]]

    def shares(self) -> list[float]:
        """Each class's share of a trace that does not say whose requests they are.

        Raises:
            PlanError: the shares leave something over, or nothing for a class without one.
        """
        given = sum(wanted.share or 0.0 for wanted in self.classes)
        open_classes = sum(wanted.share is None for wanted in self.classes)
        if open_classes and given > 0.999999:
            raise PlanError("classes: the shares leave nothing for the classes without one")
        if not open_classes and given < 0.999999:
            raise PlanError(f"classes: the shares add up to {given:g}; they must be 1, or leave one class without a share")
        return [(1 - given) / open_classes if wanted.share is None else wanted.share for wanted in self.classes]


def _known(kind: str, name: str, allowed: set[str], where: str) -> None:
    if name not in allowed:
        raise ValueError(f"{where}: unknown {kind} `{name}`{nearest(name, allowed)}")


def read_plan(path: Path) -> PlanFile:
    """Read a plan file.

    Raises:
        PlanError: it is not there, no YAML, or not a plan; the text names the key.
    """
    try:
        document = parse_yaml(read_bounded(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise PlanError(f"{path} is no YAML: {error}") from None
    return make_plan(document, str(path))


def make_plan(document: Any, origin: str = "plan") -> PlanFile:
    """A plan from plain data.

    Raises:
        PlanError: names every key that does not fit.
    """
    if not isinstance(document, dict):
        raise PlanError(f"{origin}: expected a mapping, got {type(document).__name__}")
    try:
        return PlanFile.model_validate(document)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            place = ".".join(str(part) for part in problem["loc"])
            message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
            lines.append(f"{origin}: {place}: {message}" if place else f"{origin}: {message}")
        raise PlanError("\n".join(lines)) from None


def key_digest(wanted: PlannedClass) -> str:
    """What a class's key is found by."""
    return hashlib.sha256(f"plan:{wanted.name}".encode()).hexdigest()


def config_of(plan: PlanFile) -> Config:
    """The configuration of the routers: a key for each class, a tag for each label, a provider in each external zone."""
    strictest = min(wanted.ttft_ms for wanted in plan.classes)
    paces = [wanted.tpot_ms for wanted in plan.classes if wanted.tpot_ms is not None]
    pace = plan.tpot_ms or (min(paces) if paces else None)
    external = sorted(name for name, zone in plan.zones.items() if zone.external)
    slo = {
        "ttft_ms": plan.ttft_ms or strictest,
        "stretch": min(wanted.stretch for wanted in plan.classes),
        "goal": min(0.995, max(wanted.goal for wanted in plan.classes) + GOAL_MARGIN),
        "max_wait_ms": plan.max_wait_ms,
    }
    return parse_config(
        {
            "zones": {name: zone.model_dump() for name, zone in plan.zones.items()},
            # Tags get a prefix: a label may have the name of a zone.
            "residency": {"tags": {f"label-{name}": {"process": zones} for name, zones in plan.labels.items()}},
            "models": [
                {
                    "id": model.id,
                    "source": f"planned/{number}",
                    "tier": _TIER,
                    "replicas": [{"zone": zone} for zone in model.zones],
                }
                for number, model in enumerate(plan.models)
            ],
            "targets": [
                {
                    "id": f"provider-{zone}",
                    "kind": "cloud",
                    "url": "https://provider.invalid",
                    "zone": zone,
                    "tier": _TIER,
                    "models": {model.id: model.id for model in plan.models},
                }
                for zone in external
            ],
            "keys": [
                {
                    "id": wanted.name,
                    "sha256": key_digest(wanted),
                    "residency": f"label-{wanted.label}",
                    "tenant": wanted.name,
                    "priority": wanted.priority,
                    "spill": wanted.spill,
                }
                for wanted in plan.classes
            ],
            "complexity": {"tiers": [_TIER]},
            "slo": slo if pace is None else {**slo, "tpot_ms": pace},
        },
        "plan",
    )


def policy_of(plan: PlanFile) -> Policy:
    """The compiled policy.

    Raises:
        PlanError: a name is not one that a configuration may use.
    """
    try:
        return compile_policy(config_of(plan), Path())
    except ConfigError as error:
        raise PlanError(str(error)) from None
