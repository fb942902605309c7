"""What may follow the first choice of a model: cascade, vote, experiments, feedback. Settings only, from the configuration."""

from __future__ import annotations

import msgspec

from router.complexity.cascade import Doubt
from router.complexity.learning import LearningSettings
from router.config.complexity import Cascade, Complexity, Feedback, Labels


class CascadeSettings(msgspec.Struct, frozen=True):
    """`samples` answers of the small model are compared where `doubt.agreement` is set."""

    doubt: Doubt
    samples: int = 3


class VoteSettings(msgspec.Struct, frozen=True):
    """`models` in order (empty: of all tiers, the largest first), and how many of them a vote asks at most."""

    models: tuple[str, ...] = ()
    most: int = 3


class LabelSettings(msgspec.Struct, frozen=True):
    """Which requests become labels, and where those go. `minutes` are of the day, UTC; `small` and `large` are tiers."""

    share: float
    minutes: tuple[int, int]
    idle_ttft_s: float
    small: str
    large: str
    zone: str
    duties: tuple[str, ...]
    directory: str
    judge: str = ""
    references: str = ""
    tenants: frozenset[str] = frozenset()


class Stages(msgspec.Struct, frozen=True):
    """None or empty: that stage is off."""

    cascade: CascadeSettings | None = None
    trials: dict[str, CascadeSettings | None] = {}
    """Experiments with a cascade of their own; None: without one."""
    shadows: bool = False
    learning: LearningSettings | None = None
    vote: VoteSettings | None = None
    """None: no key may ask for one."""
    labels: LabelSettings | None = None


def plan_stages(section: Complexity, voting: bool) -> Stages | None:
    """The stages of a configuration; None where there is none, so that a request pays nothing for them.

    Args:
        section: the validated `complexity:` section.
        voting: whether some key may ask for a vote.
    """
    stages = Stages(
        cascade=_cascade(section.cascade),
        learning=_learning(section.feedback) if section.feedback.enabled else None,
        trials={trial.name: _cascade(trial.cascade) for trial in section.experiments if trial.cascade is not None},
        shadows=any(trial.kind == "shadow" for trial in section.experiments),
        vote=VoteSettings(tuple(section.vote.models), section.vote.most) if voting else None,
        labels=None if section.labels is None else _labels(section.labels, section.tiers),
    )
    return None if stages == Stages() else stages


def _learning(section: Feedback) -> LearningSettings:
    return LearningSettings(section.explore, section.tier_cost, section.implicit)


def _labels(section: Labels, tiers: list[str]) -> LabelSettings:
    return LabelSettings(
        share=section.share,
        minutes=section.minutes(),
        idle_ttft_s=section.idle_ttft_ms / 1e3,
        small=tiers[0],
        large=tiers[-1],
        zone=section.zone,
        duties=tuple(section.duties),
        directory=section.dir,
        judge=section.judge or "",
        references=section.references or "",
        tenants=frozenset(section.tenants),
    )


def _cascade(section: Cascade) -> CascadeSettings | None:
    if not section.enabled:
        return None
    doubt = Doubt(
        mean_logprob=section.mean_logprob,
        min_logprob=section.min_logprob,
        refusals=section.refusals,
        format=section.format,
        cut_off=section.cut_off,
        agreement=section.agreement,
        hold_tokens=section.hold_tokens,
        hold_s=section.hold_ms / 1e3,
    )
    return CascadeSettings(doubt, section.samples)
