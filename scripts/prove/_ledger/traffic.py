"""Seeded traffic for the audit log: real decisions over a changing fleet, and the receipts that end them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from router.compiled import compile_policy
from router.config import Config, parse_config
from router.decide import decide
from router.decision import Complexity, Decision, Facts
from router.ledger.receipts import Attempt, Receipt, open_receipt
from router.placement.targets import Address, Endpoint, Kind, Load, Membership, Price, Signals, Target, View
from router.policy import Policy
from router.residency.resolve import resolve_label

START = 1_800_000_000.0
_DIGEST = "{:064x}"


def make_config() -> Config:
    """Two zones inside, a provider outside, and keys of every kind."""
    return parse_config(
        {
            "zones": {"eu": {}, "us": {}, "cloud": {"external": True}},
            "duties": ["baa"],
            "residency": {"tags": {"phi": {"process": ["eu"], "require": ["baa"]}}},
            "models": [
                {"id": "tiny", "source": "x", "tier": "small", "replicas": [{"zone": "eu"}, {"zone": "us"}]},
                {"id": "big", "source": "x", "tier": "large", "replicas": [{"zone": "eu", "duties": ["baa"]}]},
            ],
            "targets": [
                {
                    "id": "provider",
                    "kind": "cloud",
                    "url": "https://cloud.invalid",
                    "zone": "cloud",
                    "models": {"tiny": "t-1", "big": "b-1"},
                    "price": {"prompt": 1, "completion": 2},
                }
            ],
            "keys": [
                {"id": "plain", "sha256": _DIGEST.format(1)},
                {"id": "spiller", "sha256": _DIGEST.format(2), "residency": "any", "spill": True, "tenant": "t2"},
                {"id": "narrow", "sha256": _DIGEST.format(3), "residency": "eu", "models": ["small"], "tenant": "t3"},
            ],
        }
    )


class Event(msgspec.Struct, frozen=True):
    """One request: what `decide` was given, what it answered, and the receipt."""

    facts: Facts
    view: View
    now: float
    decision: Decision
    receipt: Receipt


class Traffic:
    """Requests in an endless, seeded stream.

    Args:
        seed: of the random generator.
        replicas: how many local replicas there are.
    """

    def __init__(self, seed: int, replicas: int = 6) -> None:
        self.config = make_config()
        self.policy: Policy = compile_policy(self.config, Path("/"))
        self._random = random.Random(seed)
        self._grants = tuple(self.policy.keys.values())
        self._replicas = replicas
        self._membership = self._make_membership(1)
        self._loads = [Load() for _ in self._membership.targets]
        self._spilling: frozenset[object] = frozenset()

    def _make_membership(self, version: int) -> Membership:
        targets = []
        for number in range(self._replicas):
            model, zone = ("big", "eu") if number % 3 == 2 else ("tiny", ("eu", "us")[number % 2])
            duties = ["baa"] if model == "big" else []
            targets.append(
                self._target(f"{model}-{number}", f"{model}-{number}@{version}", zone, {model: model}, duties, Kind.REPLICA)
            )
        targets.append(self._target("provider", "provider@egress", "cloud", {"tiny": "t-1", "big": "b-1"}, [], Kind.CLOUD))
        return Membership(version, tuple(targets))

    def _target(self, name: str, incarnation: str, zone: str, models: dict[str, str], duties: list[str], kind: Kind) -> Target:
        words = self.policy.vocabulary
        mask = words.zone_mask([zone])
        site = next(s for s in self.policy.sites if s.evidence.process == mask and s.external == (kind is Kind.CLOUD))
        evidence = replace(site.evidence, duties=words.duty_mask(duties))
        price = Price(1, 2) if kind is Kind.CLOUD else Price()
        return Target(name, incarnation, kind, zone, evidence, Address("127.0.0.1", 1), models, slots=8, price=price)

    def events(self, count: int) -> Iterator[Event]:
        """So many requests."""
        for number in range(count):
            yield self._event(number)

    def _event(self, number: int) -> Event:
        rng = self._random
        if rng.random() < 0.002:
            self._membership = self._make_membership(self._membership.version + 1)
            self._loads = [Load() for _ in self._membership.targets]
        now = START + number * 0.01
        for _ in range(rng.randrange(3)):
            index = rng.randrange(len(self._loads))
            self._loads[index] = self._random_load(now)
        view = View(self._membership, tuple(self._loads), self._spilling, rng.choice([5.0, 10.0, float("inf")]))  # type: ignore[arg-type]
        tags = rng.choice([(), (), ("eu",), ("phi",)])
        facts = self._facts(f"req-{number}", tags)
        decision = decide(facts, self.policy, view, now)
        if decision.saturated:
            self._spilling = frozenset([*list(self._spilling)[-3:], (facts.label, decision.models)])
        sources = {"key": "+".join(facts.key.ceiling_tags)} | ({"header": "+".join(tags)} if tags else {})
        receipt = open_receipt(facts, self.policy.epoch, self.policy.label_text(facts.label), sources, now)
        return Event(facts, view, now, decision, self._ended(receipt, decision, now))

    def _random_load(self, now: float) -> Load:
        rng = self._random
        signals = Signals(now, rng.randrange(9), rng.randrange(9), rng.random()) if rng.random() < 0.5 else None
        busy = rng.choice([0, 1, 5, 40])
        return Load(
            inflight=busy,
            unstarted=busy // 2,
            unstarted_tokens=busy * rng.randrange(500),
            foreign=rng.randrange(3),
            queue_s=busy * rng.random() * 2,
            ttft_s=rng.random(),
            service_s=rng.random() * 4,
            prefill_tps=rng.choice([0.0, 900.0, 20000.0]),
            down_until=now + rng.random() if rng.random() < 0.1 else 0.0,
            signals=signals,
        )

    def _facts(self, request_id: str, tags: tuple[str, ...]) -> Facts:
        rng = self._random
        grant = rng.choice(self._grants)
        return Facts(
            request_id=request_id,
            key=grant,
            endpoint=rng.choice([Endpoint.CHAT, Endpoint.CHAT, Endpoint.EMBEDDINGS]),
            model=rng.choice(["tiny", "big", "small", "auto", "no-such-model"]),
            label=resolve_label(grant, tags, self.policy),
            complexity=Complexity(rng.choice(["small", "large"]), round(rng.random(), 4), ("a reason (+0.10)",)),
            prompt_bytes=rng.randrange(20_000),
            prompt_tokens=rng.randrange(5000),
            max_tokens=rng.choice([0, 100]),
            timeout_s=rng.choice([0.0, 3.0]),
        )

    def _ended(self, receipt: Receipt, decision: Decision, now: float) -> Receipt:
        choice, rng = decision.chosen, self._random
        receipt.ended = now + rng.random()
        if choice is None:
            assert decision.refusal is not None
            receipt.status, receipt.code = decision.refusal.status, decision.refusal.code
            return receipt
        target = choice.target
        attempt = Attempt(target.id, target.incarnation, target.zone, choice.model, choice.reason, now)
        attempt.first_byte, attempt.ended, attempt.ending, attempt.status = now + 0.1, receipt.ended, "complete", 200
        receipt.attempts.append(attempt)
        receipt.status, receipt.prompt_tokens, receipt.completion_tokens = 200, rng.randrange(5000), rng.randrange(500)
        return receipt
