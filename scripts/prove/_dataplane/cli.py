"""`scripts/prove/dataplane`: which proofs to run, how large, and one line of figures for each."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import uvloop

from _dataplane import (
    crawlers,
    disconnects,
    endpoints,
    joins,
    kills,
    memory,
    overload,
    restarts,
    routers,
    slots,
    slow,
    smuggle,
    streams,
)

Totals = dict[str, int]


def _report(name: str, line: str, violations: list[str]) -> None:
    print(f"{name:<12} {'ok  ' if not violations else 'FAIL'}  {line}", flush=True)
    for violation in violations[:10]:
        print(f"    {violation}")
    if len(violations) > 10:
        print(f"    and {len(violations) - 10} more")


def _counts(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {what}" for what, number in outcomes.most_common()) or "none"


def _kills(args: argparse.Namespace, totals: Totals) -> None:
    count = uvloop.run(kills.run(args.requests, args.period, args.seed))
    twice = sum(number for times, number in count.executions.items() if times > 1)
    line = f"{args.requests} requests in {count.took_s:.0f} s, {count.kills} kills: {_counts(count.outcomes)}; "
    line += f"{twice} sent to a second engine"
    _report("kills", line, count.violations)
    for name in ("lost", "truncated", "doubled"):
        totals[name] += getattr(count, name)
    totals["wrong"] += len(count.violations) - count.lost - count.truncated - count.doubled


def _joins(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(joins.run(args.joins, args.period, args.seed))
    line = f"{args.joins} streams in {result.took_s:.0f} s, {result.kills} kills: {_counts(result.outcomes)}; "
    _report("joins", line + f"streams that broke: {_counts(result.breaks)}", result.violations)
    for name in ("lost", "truncated", "doubled"):
        totals[name] += getattr(result, name)
    totals["wrong"] += len(result.violations) - result.lost - result.truncated - result.doubled


def _streams(args: argparse.Namespace, totals: Totals) -> None:
    tally, took = uvloop.run(streams.run(args.streams, args.seed, args.first))
    refused = sum(tally.overstrict.values())
    line = f"{args.streams} mutated responses at {args.streams / took:.0f}/s (seed {args.seed}): {_counts(tally.outcomes)}; "
    _report("streams", line + f"{refused} whole ones refused ({', '.join(tally.overstrict) or 'none'})", tally.violations)
    totals["wrong"] += len(tally.violations)


def _requests(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(smuggle.run())
    _report("requests", f"{result.count} ambiguous or smuggled requests: {result.refused} refused", result.violations)
    totals["wrong"] += len(result.violations)


def _disconnects(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(disconnects.run(args.clients, args.seed))
    line = f"{result.clients} clients left, {result.seen_by_engine} of them with an engine at work: it noticed after "
    line += f"{result.p50_ms:.1f} ms (p50), {result.p99_ms:.1f} ms (p99); fds {result.fds[0]} -> {result.fds[1]}"
    if result.missed:
        result.violations.append(f"p99 until the engine notices is {result.p99_ms:.0f} ms")
    _report("disconnects", line, result.violations)
    totals["wrong"] += len(result.violations)


def _endpoints(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(endpoints.run(args.each))
    if result.missed:
        result.violations.append(result.verdict)
    for case in result.delays:
        print(f"    {case:<36} p50 {result.p50_ms(case):6.1f} ms, p99 {result.p99_ms(case):6.1f} ms")
    line = f"{args.each} clients left each of {len(result.delays) - 1} kinds of request; {result.verdict}"
    _report("endpoints", line, result.violations)
    totals["wrong"] += len(result.violations)


async def _measure_slots(args: argparse.Namespace) -> slots.Result:
    port = urlsplit(args.vllm).port
    if port is None:
        raise SystemExit("dataplane: slots: --vllm takes the URL of a vLLM on this machine, with its port")
    async with routers.outside(routers.make_config({"vllm": (port, args.model)})) as router:
        return await slots.run(port, {slots.ROUTED: router.port, slots.DIRECT: port}, args.model, args.leave)


def _slots(args: argparse.Namespace, totals: Totals) -> None:
    if not args.vllm:
        raise SystemExit("dataplane: slots needs --vllm URL: a real vLLM on this machine that nobody else uses")
    result = uvloop.run(_measure_slots(args))
    if result.missed:
        result.violations.append(result.verdict)
    for way in result.delays:
        p50, p99, number = result.over_all_ms(way)
        print(f"    {number} clients that left {way}: vLLM had nothing to do after {p50:.0f} ms (p50), {p99:.0f} ms (p99)")
    _report("slots", result.verdict, result.violations)
    totals["wrong"] += len(result.violations)


def _crawlers(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(crawlers.run(args.crawlers))
    cut = ", ".join(f"{number} {what}" for what, number in sorted(result.cut.items()))
    line = f"{result.crawlers} clients that sent a byte every {crawlers.PAUSE_S:.0f} s, or none: {cut}, "
    line += f"after {result.longest_s:.0f} s at most; {result.served} requests beside them, "
    line += f"p50 {result.beside_ms[0]:.1f} ms, p99 {result.beside_ms[1]:.1f} ms"
    _report("crawlers", line, result.violations)
    totals["wrong"] += len(result.violations)


def _take_over(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(restarts.take_over(args.begun, args.seed))
    line = f"one of two routers on a port killed under {args.begun} streams: {_counts(result.outcomes)}; "
    _report("takeover", line + f"a new one ready after {result.ready_s:.1f} s", result.violations)
    totals["wrong"] += len(result.violations)


def _come_back(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(restarts.come_back(args.begun, args.seed))
    line = f"the only router killed under {args.begun} streams: {_counts(result.outcomes)}; ready after {result.ready_s:.1f} s, "
    line += f"the last client served {result.served_s:.1f} s later; missed: {result.missed}"
    _report("comeback", line, result.violations)
    totals["wrong"] += len(result.violations)


def _overload(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(overload.run(args.seconds, seed=args.seed))
    line = f"{result.requests} requests in {args.seconds:.0f} s, ten times what the engine can: "
    line += f"{result.during:.1f} a second in time, {result.before:.1f} before; {result.late} late; "
    line += f"{result.refused} refused at once, p50 {result.refused_ms[0]:.1f} ms, p99 {result.refused_ms[1]:.1f} ms, "
    line += f"{result.gave_up} after {result.gave_up_s:.0f} s of waiting; over {result.recovery_s:.1f} s after its end; "
    line += (
        f"RSS in MiB {result.rss_mib[0]:.0f}, {result.rss_mib[1]:.0f} at most; missed: {', '.join(result.missed) or 'nothing'}"
    )
    _report("overload", line, result.violations)
    totals["wrong"] += len(result.violations)


def _slow(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(slow.run(args.slow_clients))
    line = f"{result.clients} clients that read 1 B at a time or nothing: {result.per_client_kib:.0f} KiB each; others' latency "
    line += f"p50 {result.loaded_ms[0]:.2f} ms, p99 {result.loaded_ms[1]:.2f} ms beside them, "
    line += f"{result.unloaded_ms[0]:.2f} and {result.unloaded_ms[1]:.2f} ms without"
    _report("slow", line, result.violations)
    totals["wrong"] += len(result.violations)


def _memory(args: argparse.Namespace, totals: Totals) -> None:
    result = uvloop.run(memory.run(args.connections, args.live, args.minutes, args.seed))
    rss = ", ".join(f"{what} {mib:.1f}" for what, mib in result.rss_mib.items())
    line = f"{result.connections} idle connections, {result.live} live streams, {result.churned} churned: RSS in MiB {rss}; "
    line += f"slope {result.slope_mib_per_h:+.1f} MiB/h, fds {result.fds[0]} -> {result.fds[1]}"
    _report("memory", line, result.violations)
    totals["wrong"] += len(result.violations)


PROOFS: dict[str, Callable[[argparse.Namespace, Totals], Any]] = {
    "streams": _streams,
    "requests": _requests,
    "kills": _kills,
    "joins": _joins,
    "disconnects": _disconnects,
    "endpoints": _endpoints,
    "slots": _slots,
    "crawlers": _crawlers,
    "takeover": _take_over,
    "comeback": _come_back,
    "overload": _overload,
    "slow": _slow,
    "memory": _memory,
}


_ON_DEMAND = ("memory", "slots")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/prove/dataplane",
        description="Fault proofs of the router against simulated engines. Without names: all but memory and slots (real vLLM).",
        epilog="The full figures: --requests 10000 --period 5 --streams 100000 --crawlers 5000 --begun 1000; "
        "memory --connections 10000 --live 1000.",
    )
    parser.add_argument("proofs", nargs="*", metavar="PROOF", help=", ".join(PROOFS))
    parser.add_argument("--requests", type=int, default=2_000, help="kills: how many requests (default %(default)s)")
    parser.add_argument("--period", type=float, default=2.0, help="kills: seconds between two kills (default %(default)s)")
    parser.add_argument("--joins", type=int, default=400, help="joins: how many streams (default %(default)s)")
    parser.add_argument("--streams", type=int, default=5_000, help="streams: how many responses (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="streams: the number of the first (to see one case again)")
    parser.add_argument("--clients", type=int, default=500, help="disconnects: how many clients (default %(default)s)")
    parser.add_argument("--each", type=int, default=100, help="endpoints: clients per kind of request (default %(default)s)")
    parser.add_argument("--vllm", metavar="URL", help="slots: a vLLM on this machine that nobody else uses")
    parser.add_argument("--model", default="m", help="slots: what that vLLM calls its model (default %(default)s)")
    parser.add_argument("--leave", type=int, default=10, help="slots: clients per kind and way (default %(default)s)")
    parser.add_argument("--crawlers", type=int, default=1000, help="crawlers: how many (default %(default)s)")
    parser.add_argument("--begun", type=int, default=300, help="takeover, comeback: streams at the kill (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="overload: how long (default %(default)s)")
    parser.add_argument("--slow-clients", type=int, default=200, help="slow: how many (default %(default)s)")
    parser.add_argument("--connections", type=int, default=2_000, help="memory: idle connections (default %(default)s)")
    parser.add_argument("--live", type=int, default=200, help="memory: live streams (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=2.0, help="memory: how long to churn (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    if unknown := set(args.proofs) - set(PROOFS):
        parser.error(f"there is no proof {', '.join(sorted(unknown))}; there are {', '.join(PROOFS)}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Run the proofs; 1 when anything was violated."""
    args = _parse(arguments)
    totals: Totals = {"lost": 0, "truncated": 0, "doubled": 0, "wrong": 0}
    started = time.monotonic()
    for name in args.proofs or [name for name in PROOFS if name not in _ON_DEMAND]:
        PROOFS[name](args, totals)
    print(" ".join(f"{name}={number}" for name, number in totals.items()), f"in {time.monotonic() - started:.0f} s")
    return 1 if any(totals.values()) else 0
