"""Tables and texts on the terminal. Whatever comes from outside is printed as text, never as markup."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

from tidegate.client import Answer, Question
from tidegate.finding import Finding, Level
from tidegate.home import Home
from tidegate.keys import QUICKSTART, NewKey
from tidegate.processes import Process, Run, describe

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}
_VERDICTS = {"chosen": "green", "eligible": "cyan", "screened": "dim"}


def print_finding(console: Console, finding: Finding) -> None:
    """One line of `doctor`, and its next step."""
    colour = _COLOURS[finding.level]
    console.print(
        f"[{colour}]{finding.level:8}[/] {escape(finding.check)}: {escape(finding.text)}", highlight=False, soft_wrap=True
    )
    if finding.next_step and finding.level is not Level.OK:
        console.print(f"         next step: {escape(finding.next_step)}", highlight=False, soft_wrap=True)


def print_answer(console: Console, question: Question, answer: Answer) -> None:
    """Question, answer, and how it was routed."""
    console.print(f"\n[dim]>[/] {escape(question.message)}\n[bold]{escape(answer.text)}[/]\n", highlight=False)
    print_routing(console, answer)


def print_routing(console: Console, answer: Answer) -> None:
    """What the response headers say of the routing."""
    for name, value in answer.routing.items():
        console.print(f"  [dim]{name.removeprefix('x-tidegate-'):12}[/] {escape(value)}", highlight=False)


def print_how_to_call(console: Console, home: Home, run: Run) -> None:
    """How a program calls the router that was just started."""
    key_file = home.keys / f"{QUICKSTART}.key"
    url = f"http://127.0.0.1:{run.port}/v1"
    body = '{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}'
    text = (
        f"\nCall it from a shell:\n"
        f'  curl {url}/chat/completions -H "Authorization: Bearer $(cat {shlex.quote(str(key_file))})" \\\n'
        f"    -H 'Content-Type: application/json' -d '{body}'\n\n"
        "or from Python:\n"
        "  from openai import OpenAI\n"
        f'  client = OpenAI(base_url="{url}", api_key=open({str(key_file)!r}).read().strip())\n'
        '  client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hello"}])\n\n'
        "Look at it: tidegate status. Ask why: tidegate explain 'Hello'. Stop it: tidegate down (scripts/quickstart --down).\n"
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_new_key(console: Console, key: NewKey) -> None:
    """A key, this one time, and what goes into the configuration."""
    console.print("The key, shown this once; nothing here keeps it:", highlight=False)
    console.print(key.plain, markup=False, highlight=False, soft_wrap=True)
    snippet = f"keys:\n- id: {key.name}\n  sha256: {key.sha256}\n  # or: sha256_file: .tidegate/keys/{key.name}.sha256"
    console.print(
        f"\nFor the configuration (its digest is in {key.digest_file}):\n{snippet}", markup=False, highlight=False, soft_wrap=True
    )


def print_cluster(console: Console, cluster: dict[str, Any]) -> None:
    """Zones and targets as the router sees them; fields that are missing stay empty."""
    zones = cluster.get("zones") or {}
    names = [f"{name} (external)" if _dict(zones[name]).get("external") else str(name) for name in zones]
    state = "ready" if cluster.get("ready") else "not ready"
    console.print(
        f"router {cluster.get('router', '?')}: {state}, epoch {cluster.get('epoch', '?')}", markup=False, highlight=False
    )
    console.print(f"zones: {', '.join(names) or '?'}", markup=False, highlight=False)
    _print_waiting(console, _dict(cluster.get("waiting")))
    if budget := _dict(cluster.get("spill_budget")):
        left = f"{budget.get('daily_usd', '?')} USD a day, {budget.get('left_usd', '?')} left to this router"
        console.print(f"spill budget: {left}; counted {budget.get('counted', '?')}", markup=False, highlight=False)
    for target in map(_dict, cluster.get("targets") or []):
        _print_target(console, target)
    for missing in map(_dict, cluster.get("missing") or []):
        line = f"{missing.get('model')} in {missing.get('zone')}: {missing.get('up')} of {missing.get('wanted')} engines"
        why = (
            "the others start, or no machine labelled with exactly that zone has room for them (`ray status`, `serve status`), "
            "or they cannot be sent anything (the router's log says why: a clock over a minute apart, a full disk)"
        )
        console.print(f"     [red]missing[/]: {escape(f'{line}; {why}')}", highlight=False, soft_wrap=True)


def _print_waiting(console: Console, waiting: dict[str, Any]) -> None:
    """How many requests wait in the router, of which classes, how long, and how fast they leave."""
    if not waiting:
        return
    classes = ", ".join(f"{count} {name}" for name, count in _dict(waiting.get("by_class")).items() if count)
    text = f"waiting: {waiting.get('depth', '?')}"
    if classes:
        text += f" ({classes}), the longest for {waiting.get('longest_s', '?')} s"
    if isinstance(rate := waiting.get("drain_per_s"), int | float):
        text += f", {rate:.1f} leave a second"
    console.print(text, markup=False, highlight=False)


def _print_target(console: Console, target: dict[str, Any]) -> None:
    """Two lines: who and where, then how loaded. No table: targets have long names and terminals are narrow."""
    state = {True: "[green]up  [/]", False: "[red]down[/]"}.get(target.get("up"), "?   ")  # type: ignore[arg-type]
    models = ", ".join(map(str, target.get("models") or []))
    line = f"{target.get('target')}: {target.get('kind')} in {target.get('zone')}, serves {models}"
    console.print(f"{state} {escape(line)}", highlight=False, soft_wrap=True)
    signals, age = _dict(target.get("signals")), target.get("signal_age_s")
    parts = [f"in flight {target.get('inflight', '?')}"]
    if signals:
        usage = signals.get("kv_usage", -1)
        parts += [f"running {signals.get('running', '?')}", f"waiting {signals.get('waiting', '?')}"]
        parts[-1] += f" ({deferred} of them not for room)" if (deferred := signals.get("deferred")) else ""
        parts += [f"KV cache {usage:.0%}"] if isinstance(usage, int | float) and usage >= 0 else []
        parts += [f"its core silent for {silent:.0f} s"] if (silent := signals.get("silent_s")) else []
        parts += [f"{preempted} preempted so far"] if (preempted := signals.get("preemptions")) else []
    parts.append(f"signals {age:.1f} s old" if isinstance(age, int | float) else "no signals")
    console.print(f"     {', '.join(parts)}", markup=False, highlight=False, soft_wrap=True)
    if target.get("health"):
        console.print(f"     [red]health[/]: {escape(str(target['health']))}", highlight=False, soft_wrap=True)
    _print_trust(console, target)


def _print_trust(console: Console, target: dict[str, Any]) -> None:
    """How far the router believes the target, why not further, and what it goes by instead."""
    trust, reason = str(target.get("trust", "?")), target.get("trust_reason")
    colour = {"EXACT": "green", "DEGRADED": "yellow"}.get(trust, "dim")
    text = f"placed by {target['placed_by']}" if target.get("placed_by") else ""
    text = "; ".join(str(part) for part in (reason, text) if part)
    cache = _dict(target.get("cache"))
    if cache.get("blocks"):
        text += f"; {cache['blocks']} blocks known"
    text = f" ({text})" if text else ""
    console.print(f"     trust: [{colour}]{escape(trust)}[/]{escape(text)}", highlight=False, soft_wrap=True)


def print_processes(console: Console, home: Home, ours: Iterable[Process]) -> None:
    """The router's processes, and where the engines of the present run write."""
    routers = [process.pid for process in ours if "ServeReplica" in (name := describe(process.pid)) and "outer" in name]
    console.print(f"router processes: {', '.join(map(str, routers)) or 'none'}", markup=False, highlight=False)
    began = home.run_file.stat().st_mtime
    for path in sorted(path for path in home.logs.glob("*.log") if path.stat().st_mtime >= began):
        console.print(f"log: {path}", markup=False, highlight=False, soft_wrap=True)


def print_decision(console: Console, decision: dict[str, Any]) -> None:
    """What `explain` answered: the label, the complexity, every candidate with its reason, and the outcome."""
    label = _dict(decision.get("label"))
    for part in ("process", "store", "duties"):
        console.print(f"label {part:8} {_list(label.get(part)) or '-'}", markup=False, highlight=False)
    complexity = _dict(decision.get("complexity"))
    facts = ", ".join(f"{name} {_list(value)}" for name, value in complexity.items() if value not in (None, "", [], ()))
    console.print(f"complexity     {facts or '-'}", markup=False, highlight=False)
    for candidate in map(_dict, decision.get("candidates") or []):
        _print_candidate(console, candidate)
    chosen, refusal = _dict(decision.get("chosen")), _dict(decision.get("refusal"))
    if chosen:
        text = f"chosen: {chosen.get('target')} ({chosen.get('model')}, zone {chosen.get('zone')}): {chosen.get('reason')}"
    else:
        text = f"refused: {refusal.get('code', '?')}: {refusal.get('message', '')}"
    console.print(text, markup=False, highlight=False)


def _print_candidate(console: Console, candidate: dict[str, Any]) -> None:
    verdict, predicted = str(candidate.get("verdict", "?")), candidate.get("predicted_ttft_ms")
    colour = _VERDICTS.get(verdict, "white")
    where = f"{candidate.get('target')} ({candidate.get('model') or '-'}, zone {candidate.get('zone')})"
    time = f", first token in {predicted:.0f} ms" if isinstance(predicted, int | float) else ""
    line = f"[{colour}]{escape(f'{verdict:9}')}[/] {escape(where)}{time}: {escape(str(candidate.get('reason')))}"
    console.print(line, highlight=False, soft_wrap=True)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else "" if value is None else str(value)
