"""`tidegate doctor` about what a policy says that can never happen."""

from __future__ import annotations

from typing import Any

from tidegate.finding import Level
from tidegate.home import Home
from tidegate.policy_checks import check_capture, check_spill

from router.compiled import compile_policy
from router.config import parse_config
from tests.router.builders import digest
from tests.scripts.test_target_checks import CLOUD, INSIDE, ZONES


def spill(home: Home, **changes: Any) -> list[str]:
    key = {"id": "front", "sha256": digest("k"), **changes.pop("key", {})}
    config = parse_config({"zones": ZONES, "targets": [INSIDE, CLOUD], "keys": [key], **changes})
    found = list(check_spill(config, compile_policy(config, home.root)))
    assert all(finding.next_step for finding in found if finding.level is Level.WARNING)
    return [f"{finding.level}: {finding.text}" for finding in found]


def test_spilling_over_that_can_happen_or_is_not_asked_for_is_no_matter(home: Home) -> None:
    assert spill(home, targets=[INSIDE]) == []
    assert spill(home, key={"spill": True, "residency": "any"}, spill={"enabled": True, "daily_budget_usd": 5}) == []
    redacted = {"spill": True, "residency": "local", "redact": {"then": "any"}}
    assert spill(home, key=redacted, classify={"rules": [{"if": ["pii"], "meet": "local"}]}) == []


def test_spilling_over_that_cannot_happen_is_said(home: Home) -> None:
    (alone,) = spill(home, targets=[INSIDE], spill={"enabled": True, "daily_budget_usd": 5}, key={"spill": True})
    assert alone.startswith(
        "warning: spill.enabled, spill.daily_budget_usd, keys[0].spill: there is no target with `kind: cloud`"
    )
    assert spill(home) == ["ok: to provider for stored keys only: none of the configuration says `spill: true`"]
    (inside,) = spill(home, key={"spill": True})
    assert inside.startswith("warning: key front says `spill: true`, but may use no cloud target (eu/eu/)")
    ended = {**CLOUD, "expires": "2020-01-01"}
    assert "may use no cloud target" in spill(home, targets=[INSIDE, ended], key={"spill": True, "residency": "any"})[0]
    assert spill(home, spill={"enabled": False}) == ["ok: `spill.enabled` is false: nothing is sent to provider"]


def capture(home: Home, **changes: Any) -> list[str]:
    tags = {"patient": {"process": ["eu"], "require": ["baa"]}}
    server = {**INSIDE, "duties": ["baa"]}
    key = {"id": "front", "sha256": digest("k"), "tenant": "clinic", **changes.pop("key", {})}
    args = {"zones": ZONES, "duties": ["baa"], "residency": {"tags": tags}, "targets": [server], "keys": [key], **changes}
    config = parse_config(args)
    return [finding.text for finding in check_capture(config, compile_policy(config, home.root)) if finding.next_step]


def test_payloads_that_no_label_lets_be_kept_are_said(home: Home) -> None:
    kept = {"zone": "eu", "tenants": ["clinic"]}
    (said,) = capture(home, capture=kept, key={"residency": "patient"})
    assert said == "key front: `capture` keeps nothing of it, for its label (eu/eu/baa) forbids that"
    assert capture(home, capture={**kept, "tenants": []}, key={"residency": "patient", "capture": True}) == [said]
    assert capture(home, capture={**kept, "duties": ["baa"]}, key={"residency": "patient"}) == []
    assert (
        capture(home, capture=kept) == capture(home) == capture(home, capture={"zone": "eu"}, key={"residency": "patient"}) == []
    )
