"""The `complexity:` section made ready for requests: weights read and checked, rules and wishes turned into frozen structs."""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path

from router.complexity.calibrate import Wish
from router.complexity.choose import Plan
from router.complexity.experiment import Branch, Trial
from router.complexity.language import LANGUAGES
from router.complexity.model import Model, compile_model
from router.complexity.rules import Rule
from router.complexity.weights import DEFAULT, OutdatedWeights, WeightsError, read_weights
from router.config.complexity import Complexity, ComplexityRule

_log = logging.getLogger("tidegate.complexity")

PROMOTED = "promoted.tgcw"
"""In the directory of the labels: the weights that a refit has promoted last."""


def compile_plan(section: Complexity, base: Path, models: frozenset[str]) -> Plan | None:
    """The plan of a configuration; None where the first readable rule alone decides and nothing asks for the model.

    Args:
        section: the validated section.
        base: directory that a relative `weights` path starts from.
        models: ids that clients may name; a rule or domain that prefers another is refused.

    Raises:
        WeightsError: the weights file cannot be used.
        ValueError: a rule, a domain or `head` names something that is not there.
    """
    wishes = section.share is not None or section.max_loss is not None or section.price is not None
    if not (wishes or section.rules or section.domains):
        return None
    model = load_model(weights_of(section, base))
    names = [head.name for head in model.gains]
    if section.head is not None and section.head not in names:
        raise ValueError(f"complexity.head: no gain `{section.head}` in the weights; there are {', '.join(names)}")
    for rule in section.rules:
        _check_rule(rule, models, model.domains.names)
    for domain, name in section.domains.items():
        if domain not in model.domains.names:
            raise ValueError(f"complexity.domains: unknown domain `{domain}`; there are {', '.join(model.domains.names)}")
        if name not in models:
            raise ValueError(f"complexity.domains.{domain}: unknown model `{name}`")
    rules = tuple(_compile_rule(rule) for rule in section.rules)
    return Plan(
        tiers=tuple(section.tiers),
        model=model,
        head=names.index(section.head) if section.head else 0,
        wish=_wish(section),
        rules=rules,
        domain_models=dict(section.domains),
        domain_floor=section.domain_floor,
        header_names=frozenset(name for rule in rules for name, _ in rule.headers),
        by_gain=wishes,
    )


def compile_experiments(section: Complexity, base: Path, models: frozenset[str]) -> tuple[Branch, ...]:
    """The experiments of a configuration, each with its plan; as `compile_plan` otherwise."""
    branches = []
    for experiment in section.experiments:
        own = experiment.applied_to(section)
        plan = None if own is section else compile_plan(own, base, models)
        branches.append(Branch(Trial(experiment.name, experiment.share, experiment.kind == "shadow"), plan))
    return tuple(branches)


def weights_of(section: Complexity, base: Path) -> Path:
    """The weights that a configuration goes by: what a refit has promoted, else the named file, else those of the project.

    What another version of tidegate has promoted is passed over: nobody named that file, and no router shall fail for it.
    """
    if section.labels is not None and (promoted := base / section.labels.dir / PROMOTED).is_file():
        try:
            load_model(promoted)
        except OutdatedWeights as error:
            _log.warning("complexity: weights that another version of tidegate promoted are not used: %s", error)
        except WeightsError:
            return promoted  # whoever reads it says what is wrong
        else:
            return promoted
    return base / section.weights if section.weights else DEFAULT


def weights_files(section: Complexity, base: Path) -> tuple[Path, ...]:
    """Every file that `weights_of` looks at, whether or not it is there."""
    promoted = () if section.labels is None else (base / section.labels.dir / PROMOTED,)
    return (*promoted, base / section.weights) if section.weights else promoted


def weights_digest(section: Complexity, base: Path) -> str:
    """Names a configuration's weights by their content, in 12 hex digits."""
    return digest_of_weights(weights_of(section, base))


def load_model(path: Path) -> Model:
    """Weights, ready.

    Raises:
        WeightsError: see `read_weights`; also when the file has no gain head.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error.strerror}") from None
    return _load(path, found.st_mtime_ns, found.st_size)


def digest_of_weights(path: Path) -> str:
    """Names a weights file by its content, in 12 hex digits.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise WeightsError(f"{path}: cannot read the weights: {error.strerror}") from None


@functools.lru_cache(maxsize=2)
def _load(path: Path, _changed_ns: int, _size: int) -> Model:
    """Experiments and policies share a file's model: it takes 5 MB and half a second."""
    stored = read_weights(path)
    if not stored.gains:
        raise WeightsError(f"{path}: there is no gain head in these weights")
    return compile_model(stored)


def _wish(section: Complexity) -> Wish:
    if section.price is not None:
        return Wish(price=section.price)
    if section.max_loss is not None:
        return Wish(max_loss=section.max_loss)
    return Wish(shares=section.beyond())


def _check_rule(rule: ComplexityRule, models: frozenset[str], domains: tuple[str, ...]) -> None:
    """A rule that names what is not there would never match, and nobody would know."""
    where = f"complexity.rules: rule `{rule.name}`"
    if rule.model is not None and rule.model not in models:
        raise ValueError(f"{where}: unknown model `{rule.model}`")
    for kind, named, known in (("domain", rule.when.domains, domains), ("language", rule.when.languages, LANGUAGES)):
        for name in named:
            if name not in known:
                raise ValueError(f"{where}: unknown {kind} `{name}`; there are {', '.join(known)}")


def _compile_rule(rule: ComplexityRule) -> Rule:
    when = rule.when
    return Rule(
        name=rule.name,
        model=rule.model or "",
        tier=rule.tier or "",
        leave=rule.leave,
        min_tokens=when.min_tokens,
        max_tokens=when.max_tokens,
        min_turns=when.min_turns,
        languages=frozenset(when.languages),
        domains=frozenset(when.domains),
        keys=frozenset(when.keys),
        tenants=frozenset(when.tenants),
        code=when.code,
        maths=when.maths,
        tools=when.tools,
        json_schema=when.json_schema,
        images=when.images,
        system=when.system,
        minutes=when.minutes(),
        weekdays=when.days(),
        headers=tuple(sorted((name.lower(), value) for name, value in when.headers.items())),
    )
