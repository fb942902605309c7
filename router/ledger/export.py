"""What an auditor takes away: records as CSV and JSON, and a report to read, in the shape a regulation asks for.

A profile chooses columns and chapters. None of them holds a word of a prompt, because the log has none.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from router.ledger.search import Handled
from router.ledger.verify import Report


class Profile(msgspec.Struct, frozen=True):
    """A way to export: its title, the columns of the table, and what the report explains first."""

    title: str
    columns: tuple[str, ...]
    basis: str


PROFILES = {
    "ai-act": Profile(
        "Logs under the AI Act (Regulation (EU) 2024/1689, Articles 12, 19 and 26(6))",
        (
            "time", "ended", "id", "key", "tenant", "requested_model", "model", "endpoint", "label", "target", "zone",
            "external", "zones", "outside", "status", "code", "reason", "epoch", "log",
        ),
        "Events over the system's operation: the period of each use, the model that was used and why, the policy in force.",
    ),
    "hipaa": Profile(
        "Audit controls under HIPAA (45 CFR 164.312(b), 164.316(b))",
        (
            "time", "id", "key", "tenant", "endpoint", "label", "target", "zone", "external", "zones", "outside", "status",
            "code", "log",
        ),
        "Who used the system, when, under which restriction, and whether anything left the covered entity's machines.",
    ),
    "dora": Profile(
        "ICT service record under DORA (Regulation (EU) 2022/2554, Articles 10, 17 and 28)",
        (
            "time", "ended", "id", "tenant", "target", "zone", "external", "zones", "outside", "intents", "attempts", "status",
            "code", "model", "prompt_tokens", "completion_tokens", "log",
        ),
        "Use of ICT third parties, failed and refused requests, and how far service depends on one provider.",
    ),
    "gdpr": Profile(
        "Recipients and transfers for the GDPR (Regulation (EU) 2016/679, Articles 5(2), 30(1)(d) and (e), 44)",
        (
            "time", "ended", "id", "key", "tenant", "endpoint", "label", "target", "zone", "external", "zones", "outside",
            "intents", "status", "code", "log",
        ),
        "Who asked, where it was processed, and which recipients outside were chosen. Which country a zone or target stands in, "
        "the purposes and whose data it was are not in the log: it holds no prompt.",
    ),
}  # fmt: skip


def to_csv(handled: Sequence[Handled], profile: Profile) -> str:
    """The table. A value that a spreadsheet would take for a formula gets an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(profile.columns)
    for item in handled:
        writer.writerow([_cell(name, getattr(item, name)) for name in profile.columns])
    return out.getvalue()


def _cell(name: str, value: Any) -> str:
    if name in ("time", "ended"):
        return _moment(value) if value else ""
    text = "+".join(value) if isinstance(value, tuple) else str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") and not isinstance(value, int) else text


def to_json(handled: Sequence[Handled], profile: Profile) -> bytes:
    """The same as JSON."""
    rows = [{name: getattr(item, name) for name in profile.columns} for item in handled]
    return msgspec.json.format(msgspec.json.encode(rows), indent=1)


def to_report(
    handled: Sequence[Handled],
    profile: Profile,
    checked: Sequence[Report],
    events: Sequence[dict[str, Any]],
    span: tuple[float, float],
) -> str:
    """The report in Markdown.

    Args:
        handled: the requests in the span.
        profile: which regulation it is for.
        checked: how the verification of each log came out.
        events: other records of the span (policy, hold, prune, lost, key changes), as `search` gives them.
        span: first and last moment, UNIX seconds; 0 and infinity where nobody set one.
    """
    made = _moment(datetime.now(UTC).timestamp())
    begin = _moment(span[0]) if span[0] > 0 else "the first record"
    lines = [f"# {profile.title}", "", profile.basis, ""]
    lines += [f"Period: {begin} to {_moment(span[1]) if span[1] != float('inf') else made}. Made {made}.", ""]
    lines += ["## Integrity", ""]
    for report in checked:
        state = "verified" if report.ok else f"**NOT VERIFIED**: {'; '.join(report.problems[:3])}"
        pruned = f", {report.pruned} of them pruned under the retention rule" if report.pruned else ""
        lines.append(f"- `{report.root.name}` ({report.origin}): {report.size} records{pruned}; {state}")
    lines += ["", "## Use", ""]
    unfinished = sum(not item.complete for item in handled)
    lines.append(f"{len(handled)} requests, {sum(item.status >= 400 for item in handled)} of them refused or failed.")
    if unfinished:
        lines.append(f"{unfinished} have no recorded end: still at work, or cut off by a crash of the router.")
    lines += ["", *_table("Tenant", handled, lambda item: (item.tenant or "?",))]
    lines += ["", *_table("Model", handled, lambda item: (item.model or "none",))]
    lines += [
        "",
        "A label: the zones that may process a request / the zones that may store it / the duties both must have taken on.",
        "",
    ]
    lines += _table("Residency label", handled, lambda item: (item.label or "?",))
    lines += ["", "A request that was tried in several zones counts in each of them.", ""]
    lines += _table("Sent to zone", handled, lambda item: item.zones or ("none",))
    lines += ["", "## Outside the cluster", ""]
    outside = [item for item in handled if item.external]
    if outside:
        share = 100 * len(outside) / len(handled)
        lines += [f"{len(outside)} requests ({share:.1f} %) were chosen for a target outside.", ""]
        lines += _table("Target outside", outside, lambda item: item.outside)
        without = [item.id for item in outside if not item.intents and item.attempts]
        if without:
            lines += ["", f"**{len(without)} of them have no intent recorded before sending**: {', '.join(without[:10])}"]
    else:
        lines.append("Nothing was sent outside.")
    failed = [item for item in handled if item.status >= 400]
    lines += [
        "",
        "## Refused and failed",
        "",
        *(_table("Code", failed, lambda item: (item.code or "?",)) if failed else ["None."]),
    ]
    lines += ["", "## Events", ""]
    lines += [f"- {_moment(e['t'])} `{e['log']}` {e['event']} {e['id']} {_short(e)}".rstrip() for e in events] or ["None."]
    return "\n".join(lines) + "\n"


def _table(title: str, handled: Sequence[Handled], names: Callable[[Handled], tuple[str, ...]]) -> list[str]:
    """Requests and tokens by name; one that has several counts under each."""
    counts: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for item in handled:
        for name in names(item):
            counts[name] += 1
            tokens[name] += max(0, item.prompt_tokens) + max(0, item.completion_tokens)
    lines = [f"| {title} | Requests | Tokens |", "|---|---:|---:|"]
    return lines + [f"| {what.replace('|', '/')} | {count} | {tokens[what]} |" for what, count in counts.most_common()]


def _short(event: dict[str, Any]) -> str:
    known = {"log", "n", "t", "m", "event", "id"}
    return ", ".join(f"{name}={value}" for name, value in event.items() if name not in known)[:200]


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    except (ValueError, OverflowError, OSError):
        return "now" if seconds > 0 else "the beginning"
