"""The `complexity:` section: what `model: auto` means, in rules, shares and weights."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from router.config.strict import Name, Strict

_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)\Z")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def check_times(value: list[str]) -> list[str]:
    """Two times of day.

    Raises:
        ValueError: they are not.
    """
    if len(value) != 2 or not all(_CLOCK.match(time) for time in value):
        raise ValueError('two times of day in UTC, such as ["22:00", "06:00"]')
    return value


def minutes_of(between: list[str]) -> tuple[int, int]:
    """Two times of day in minutes."""
    start, end = (int(time[:2]) * 60 + int(time[3:]) for time in between)
    return start, end


class When(Strict):
    """Conditions of a rule; all that are given must hold. A rule without any always matches."""

    min_tokens: int | None = Field(default=None, ge=0)
    max_tokens: int | None = Field(default=None, ge=0)
    min_turns: int | None = Field(default=None, ge=0)
    languages: list[str] = []
    """ISO 639-1 codes, as guessed from the text."""
    domains: list[Name] = []
    keys: list[Name] = []
    tenants: list[Name] = []
    code: bool | None = None
    maths: bool | None = None
    tools: bool | None = None
    json_schema: bool | None = None
    images: bool | None = None
    system: bool | None = None
    """Whether there is a system prompt."""
    between: list[str] | None = None
    """`["22:00", "06:00"]`, UTC; the end is excluded, and a span may run over midnight."""
    weekdays: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = []
    headers: dict[str, str] = {}
    """Header names and the exact values they must have."""

    @field_validator("between")
    @classmethod
    def _two_times(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(set(check_times(value))) < 2:
            raise ValueError(f'from "{value[0]}" to "{value[1]}" there is no time; without `between` a rule holds all day')
        return value

    @model_validator(mode="after")
    def _can_hold(self) -> When:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"no prompt has at least {self.min_tokens} and at most {self.max_tokens} tokens")
        return self

    def minutes(self) -> tuple[int, int] | None:
        """`between` in minutes of the day."""
        return None if self.between is None else minutes_of(self.between)

    def days(self) -> frozenset[int]:
        """`weekdays` as numbers, Monday 0."""
        return frozenset(_DAYS.index(day) for day in self.weekdays)


class ComplexityRule(Strict):
    """`when` these hold, use this model or this tier, or leave the choice to the fitted model."""

    name: Name
    when: When = When()
    model: str | None = None
    tier: Name | None = None
    leave: bool = False

    @model_validator(mode="after")
    def _one_outcome(self) -> ComplexityRule:
        if (self.model is not None) + (self.tier is not None) + self.leave != 1:
            raise ValueError("give exactly one of `model`, `tier` and `leave: true`")
        return self


class Cascade(Strict):
    """Small first: when the next tier is asked after all. `enabled: false` leaves every answer as it is."""

    enabled: bool = False
    mean_logprob: float | None = Field(default=-0.6, le=0)
    min_logprob: float | None = Field(default=None, le=0)
    refusals: bool = True
    format: bool = True
    cut_off: bool = True
    agreement: float | None = Field(default=None, gt=0, le=1)
    samples: int = Field(default=3, ge=2, le=9)
    """Answers of the small model that are compared where `agreement` is set."""
    hold_tokens: int = Field(default=32, ge=1, le=4096)
    hold_ms: float = Field(default=1500, gt=0)


class Feedback(Strict):
    """Learning from feedback, off by default. `explore` is the share of requests that goes to a tier by chance."""

    enabled: bool = False
    explore: float = Field(default=0.02, ge=0, le=0.5)
    tier_cost: float = Field(default=0.05, ge=0, le=1)
    """Points of score that each larger tier must clearly be better by."""
    implicit: bool = True
    """Whether a prompt that is sent again, and an escalation, count as feedback, too."""


class Voting(Strict):
    """Which models vote for keys with `vote: true`. Default: of all tiers, the largest first."""

    models: list[Name] = []
    most: int = Field(default=3, ge=2, le=9)


class Labels(Strict):
    """The label loop: a small share of the `auto` traffic is answered once more by the smallest and by the largest tier, off-peak
    and after the client has its answer, and scored. Kept are hashed features and both scores, never text.
    """

    zone: Name
    """Where the disk stands that `dir` is on. Only of requests whose label lets this zone store them is anything kept."""
    duties: list[str] = []
    """The duties this place carries."""
    share: float = Field(default=0.01, gt=0, le=1)
    between: list[str] = ["22:00", "06:00"]
    """Two times of day in UTC, as in a rule's `between`; the same time twice is the whole day."""
    idle_ttft_ms: float = Field(default=500, gt=0)
    """Only while nobody waits, and either model is predicted to begin its answer within this time."""
    judge: Name | None = None
    """A model of the cluster that compares two answers which nothing else tells apart; asked twice, with positions swapped."""
    references: str | None = None
    """A CSV of questions whose answers are known: `prompt` with `answer`, or with `pattern` (a regular expression of RE2)."""
    tenants: list[Name] = []
    """Only requests of these tenants. Default: of all."""
    dir: str = ".tidegate/labels"
    """Relative to TIDEGATE_HOME: the labels, and the weights that `tidegate train refit` makes of them."""
    keep_days: float = Field(default=365, ge=1)

    @field_validator("between")
    @classmethod
    def _two_times(cls, value: list[str]) -> list[str]:
        return check_times(value)

    def minutes(self) -> tuple[int, int]:
        """`between` in minutes of the day."""
        start, end = minutes_of(self.between)
        return (start, end) if start != end else (0, 24 * 60)


class Experiment(Strict):
    """A share of the `auto` traffic through another setting: `ab` answers with it; `shadow` runs what it would have chosen after
    the client has its answer, and only compares.
    """

    name: Name
    share: float = Field(gt=0, le=1)
    kind: Literal["ab", "shadow"] = "shadow"
    max_loss: float | None = Field(default=None, ge=0, le=1)
    share_to_large: float | None = Field(default=None, ge=0, le=1)
    price: float | None = Field(default=None, ge=-1, le=1)
    cascade: Cascade | None = None
    """Instead of `complexity.cascade`; for `ab` only."""

    @model_validator(mode="after")
    def _one_setting(self) -> Experiment:
        wishes = sum(value is not None for value in (self.max_loss, self.share_to_large, self.price))
        if wishes > 1 or (wishes == 0 and self.cascade is None):
            raise ValueError("an experiment has one of `max_loss`, `share_to_large` and `price`, or a `cascade`")
        if self.kind == "shadow" and (self.cascade is not None or wishes == 0):
            raise ValueError("a shadow asks one model: give it `max_loss`, `share_to_large` or `price`, and no `cascade`")
        return self

    def applied_to(self, section: Complexity) -> Complexity:
        """The section with this setting in place of its own."""
        if self.max_loss is None and self.share_to_large is None and self.price is None:
            return section
        return section.model_copy(update={"max_loss": self.max_loss, "share": self.share_to_large, "price": self.price})


class Complexity(Strict):
    """Which tier `auto` means. Tiers are listed from the smallest to the largest.

    Rules come first, in order. What no rule decides goes by the fitted gain as soon as one of `share`, `max_loss` and `price` is
    set; without any of them the first, readable rule decides (`large_above_tokens`, `score_threshold`).
    """

    tiers: list[Name] = Field(default=["small", "large"], min_length=1, max_length=8)
    large_above_tokens: int = Field(default=1500, gt=0)
    score_threshold: float = Field(default=0.5, ge=0, le=1)
    rules: list[ComplexityRule] = Field(default=[], max_length=256)
    share: dict[Name, float] | float | None = None
    """Share of the requests to the largest tier (`0.3`), or to each tier above the smallest (`{medium: 0.3, large: 0.1}`)."""
    max_loss: float | None = Field(default=None, ge=0, le=1)
    """Quality that may be lost against the largest tier, in points of 0..1: 0.02 is two points."""
    price: float | None = Field(default=None, ge=-1, le=1)
    """The expected gain from which a larger tier is worth its price."""
    weights: str | None = None
    """A file from `scripts/train/complexity`; default: the one that comes with the project."""
    head: Name | None = None
    """Which gain in the file; default: the first."""
    domains: dict[Name, str] = {}
    """Domain -> model that is preferred for it."""
    domain_floor: float = Field(default=0.6, ge=0, le=1)
    pin_conversations: bool = True
    pin_margin: float = Field(default=0.02, ge=0, le=1)
    cascade: Cascade = Cascade()
    vote: Voting = Voting()
    feedback: Feedback = Feedback()
    experiments: list[Experiment] = Field(default=[], max_length=16)
    labels: Labels | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Complexity:
        if len(set(self.tiers)) < len(self.tiers):
            raise ValueError("tiers: a tier is named twice")
        if sum(value is not None for value in (self.share, self.max_loss, self.price)) > 1:
            raise ValueError("give one of `share`, `max_loss` and `price`")
        shares = self.share if isinstance(self.share, dict) else {}
        for tier, share in shares.items():
            if tier not in self.tiers[1:]:
                raise ValueError(
                    f"share: `{tier}` is no tier above the smallest; there are {', '.join(self.tiers[1:]) or 'none'}"
                )
            if not 0 <= share <= 1:
                raise ValueError(f"share.{tier}: a share lies between 0 and 1")
        if sum(shares.values()) > 1 or (isinstance(self.share, float | int) and not 0 <= self.share <= 1):
            raise ValueError("share: shares lie between 0 and 1 and add up to at most 1")
        for i, rule in enumerate(self.rules):
            if rule.tier is not None and rule.tier not in self.tiers:
                raise ValueError(f"rules[{i}]: unknown tier `{rule.tier}`; there are {', '.join(self.tiers)}")
        if len({experiment.name for experiment in self.experiments}) != len(self.experiments):
            raise ValueError("experiments: two experiments have the same name")
        if self.labels is not None and len(self.tiers) < 2:
            raise ValueError("labels: with one tier there is nothing to compare")
        if len({rule.name for rule in self.rules}) != len(self.rules):
            raise ValueError("rules: two rules have the same name")
        return self

    def beyond(self) -> tuple[float, ...]:
        """For every boundary between two tiers the share of the requests that goes beyond it."""
        if isinstance(self.share, dict):
            return tuple(sum(self.share.get(tier, 0.0) for tier in self.tiers[i + 1 :]) for i in range(len(self.tiers) - 1))
        return (float(self.share or 0.0),) * (len(self.tiers) - 1)
