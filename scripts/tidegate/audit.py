"""`tidegate audit ...`: check, prove, search, export and replay what the routers recorded. Works on files: no router needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer

from router.ledger import records
from router.ledger.checkpoint import CheckpointError, Verifier, load_signer, open_note, read_verifiers
from router.ledger.export import PROFILES, to_csv, to_json, to_report
from router.ledger.proofs import Proof, ProofError, check_proof, prove
from router.ledger.reader import LogReader, find_logs, merged
from router.ledger.replay import Gap, Replayer, decide_again, differences
from router.ledger.retention import Hold, HoldError, standing_holds, write_holds
from router.ledger.search import Query, parse_time, requests, search
from router.ledger.slots import SIGNING_KEY, open_slot
from router.ledger.store import LogBusy
from router.ledger.tiles import TileError
from router.ledger.verify import Report, verify_log
from tidegate.home import find_home
from tidegate.terminal import Console

app = typer.Typer(help="Check and read the audit log.", no_args_is_help=True)
hold_app = typer.Typer(help="Legal holds: what must not be removed under the retention rule.", no_args_is_help=True)
app.add_typer(hold_app, name="hold")
console = Console(soft_wrap=True, highlight=False, markup=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)

DirOption = Annotated[Path | None, typer.Option("--dir", help="The logs, or one log. Default: .tidegate/audit.")]
KeyOption = Annotated[Path | None, typer.Option("--key", help="A file with trusted verifier keys, kept elsewhere.")]
SinceOption = Annotated[str, typer.Option(help="From this time on: 2026-11-22, 2026-11-22T05:00, or 24h (before now).")]
UntilOption = Annotated[str, typer.Option(help="Up to this time.")]


def audit_directory(directory: Path | None) -> Path:
    """Where the logs are."""
    return directory or find_home().state / "audit"


def open_logs(directory: Path | None) -> list[LogReader]:
    """The logs to read; ends the command when there are none."""
    where = audit_directory(directory)
    try:
        found = [LogReader(path) for path in find_logs(where)]
    except OSError as error:
        fail(f"{error.filename or where}: {error.strerror}")
    if not found:
        fail(f"{where}: there is no audit log here; --dir says where it is")
    return found


def fail(text: str, code: int = 2) -> NoReturn:
    """End the command with a message. 2: it could not be done; 1: it was done, and something is wrong."""
    errors.print(f"error: {text}")
    raise typer.Exit(code)


def span(since: str, until: str) -> tuple[float, float]:
    """Two moments from their options."""
    now = time.time()
    try:
        start, end = parse_time(since, now) if since else 0.0, parse_time(until, now) if until else float("inf")
    except ValueError as error:
        fail(str(error))
    if start >= end:
        fail(f"--since {since or '1970-01-01'} is not before --until {until}: there is no time between them")
    return start, end


def trusted(directory: Path | None, key: Path | None, logs: list[LogReader]) -> list[Verifier]:
    """The verifier keys: those given, else the ones beside the logs, with a warning."""
    try:
        if key is not None:
            return read_verifiers(key)
        found = [verifier for log in logs for verifier in read_verifiers(log.root / "key.vkey")]
    except CheckpointError as error:
        fail(str(error))
    errors.print("note: trusting the key beside the log; an auditor keeps a copy of it elsewhere and gives it with --key")
    return list({verifier.line: verifier for verifier in found}.values())


@app.command()
def verify(
    directory: DirOption = None,
    key: KeyOption = None,
    against: Annotated[list[Path] | None, typer.Option(help="Checkpoints held elsewhere; finds truncation and forks.")] = None,
) -> None:
    """Check every byte of the logs offline. Exit code 0: whole; 1: something was changed; 2: it cannot be said."""
    logs = open_logs(directory)
    verifiers = trusted(directory, key, logs)
    held = _held(against or [])
    reports = [verify_log(log.root, verifiers, held) for log in logs]
    for report in reports:
        _print_report(report)
    problems = sum(not report.ok for report in reports)
    origins = [report.origin for report in reports]
    for origin in sorted({origin for origin in origins if origins.count(origin) > 1 and origin}):
        console.print(f"FAIL  {origin}: two logs here claim this name (a copy, or a fork)")
        problems += 1
    for note in held:
        try:
            checkpoint = open_note(note, verifiers)
        except CheckpointError:
            continue  # every log's report says so already
        if checkpoint.origin not in origins:
            console.print(f"FAIL  {checkpoint.origin}: a checkpoint of this log is held elsewhere, but the log is not here")
            problems += 1
    if problems:
        raise typer.Exit(1)


def _held(paths: list[Path]) -> list[bytes]:
    """The signed notes in files, one or several in each."""
    notes: list[bytes] = []
    for path in paths:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            fail(f"{path}: {error.strerror}")
        note: list[bytes] = []
        for line in [*lines, b""]:
            if not line and note and note[-1].startswith("\u2014".encode()):
                notes.append(b"\n".join(note) + b"\n")
                note = []
            elif line or note:
                note.append(line)
        if any(note):
            fail(f"{path}: holds no whole checkpoint")
    return notes


def _print_report(report: Report) -> None:
    pruned = f", {report.pruned} of them pruned" if report.pruned else ""
    state = "ok  " if report.ok else "FAIL"
    console.print(f"{state}  {report.root.name}: {report.size} records{pruned}, {report.origin or 'no name'}")
    for problem in report.problems[:20]:
        console.print(f"      {problem}")
    if len(report.problems) > 20:
        console.print(f"      and {len(report.problems) - 20} more")
    for note in report.notes:
        console.print(f"      note: {note}")


@app.command("prove")
def prove_command(
    request_id: Annotated[str, typer.Argument(help="The request; its id is in the answer's `x-request-id`.")],
    directory: DirOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the proofs here instead of printing them.")] = None,
) -> None:
    """Proofs that a request's records are in the log; `tidegate audit check` checks them without the log."""
    found: list[Proof] = []
    try:
        for log in open_logs(directory):
            found += [prove(log, record.n) for record in log.records() if record.id == request_id]
    except (ProofError, TileError, records.RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more", 1)
    if not found:
        fail(f"no record of `{request_id}`", 1)
    data = msgspec.json.format(msgspec.json.encode(found), indent=1)
    if out is None:
        console.print(data.decode())
    else:
        out.write_bytes(data + b"\n")
        console.print(f"{len(found)} proofs in {out}")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="What `tidegate audit prove --out` wrote.")],
    key: Annotated[Path, typer.Option("--key", help="A file with trusted verifier keys.")],
) -> None:
    """Check proofs, without the log."""
    try:
        verifiers = read_verifiers(key)
        proofs = msgspec.json.decode(file.read_bytes(), type=list[Proof])
        for proof in proofs:
            record, checkpoint = check_proof(proof, verifiers)
            console.print(f"ok    {record.e} {record.id}: record {record.n} of {checkpoint.size} in {checkpoint.origin}")
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        fail(f"{file}: this is no file of proofs")
    except CheckpointError as error:
        fail(str(error))
    except ProofError as error:
        fail(str(error), 1)


@app.command("search")
def search_command(
    directory: DirOption = None,
    request_id: Annotated[str, typer.Option("--id", help="A request, key or hold.")] = "",
    event: Annotated[str, typer.Option(help="decide, egress.intent, end, policy, lost, ...")] = "",
    where: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the record: key, tenant, target, code, ...")] = None,
    since: SinceOption = "",
    until: UntilOption = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1000,
) -> None:
    """Print records, one JSON object a line, oldest first."""
    pairs = [item.partition("=") for item in where or []]
    if any(not middle for _, middle, _ in pairs):
        fail("--where takes NAME=VALUE")
    start, end = span(since, until)
    query = Query(request_id, event, start, end, {name: value for name, _, value in pairs})
    try:
        for number, found in enumerate(search(open_logs(directory), query)):
            if number == limit:
                errors.print(f"note: there are more than {limit}; --limit raises that")
                return
            console.print(msgspec.json.encode(found).decode())
    except (TileError, records.RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more", 1)


@app.command()
def export(
    profile: Annotated[str, typer.Option(help=f"One of {', '.join(PROFILES)}.")],
    out: Annotated[Path, typer.Option(help="A directory for report.md, records.csv, records.json and the checkpoints.")],
    directory: DirOption = None,
    key: KeyOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
) -> None:
    """What an auditor takes away, in the shape a regulation asks for; the logs are verified on the way."""
    shape = PROFILES.get(profile)
    if shape is None:
        fail(f"there is no profile `{profile}`; there are {', '.join(PROFILES)}")
    start, end = span(since, until)
    logs = open_logs(directory)
    verifiers = trusted(directory, key, logs)
    checked = [verify_log(log.root, verifiers) for log in logs]
    usual = {records.DECIDE, records.END, records.INTENT, records.LOADS, records.MEMBERS, records.GRANT, records.CACHE_HIT}
    try:
        handled = list(requests(logs, start, end))
        events: list[dict[str, Any]] = []
        for log, record in merged(logs):
            if record.e not in usual and start <= record.t < end:
                events.append({"log": log.root.name, **records.to_plain(record)})
    except (TileError, records.RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more", 1)
    out.mkdir(parents=True, exist_ok=True)
    (out / "records.csv").write_text(to_csv(handled, shape), encoding="utf-8")
    (out / "records.json").write_bytes(to_json(handled, shape))
    (out / "report.md").write_text(to_report(handled, shape, checked, events, (start, end)), encoding="utf-8")
    for log in logs:
        head = log.root / "head"
        if head.is_file():
            (out / f"{log.root.name}.checkpoint").write_bytes(head.read_bytes())
    console.print(f"{len(handled)} requests and {len(events)} other events in {out}")
    if not all(report.ok for report in checked):
        fail("a log could not be verified; the report says why", 1)


@app.command()
def replay(directory: DirOption = None, since: SinceOption = "", until: UntilOption = "") -> None:
    """Make every recorded decision again and compare. Exit code 1 when one differs or cannot be made."""
    start, end = span(since, until)
    agreed = differing = gaps = 0
    try:
        for log in open_logs(directory):
            for found in Replayer(log).situations():
                if not start <= found.record.t < end:
                    continue
                if isinstance(found, Gap):
                    gaps += 1
                    console.print(f"gap   {log.root.name} {found.record.n} {found.record.id}: {found.reason}")
                    continue
                said = differences(decide_again(found), found.data)
                agreed += not said
                differing += bool(said)
                if said:
                    console.print(f"DIFF  {log.root.name} {found.record.n} {found.record.id}: {'; '.join(said)}")
    except (TileError, records.RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more", 1)
    console.print(f"{agreed} of {agreed + differing + gaps} decisions came out as recorded")
    if differing or gaps:
        raise typer.Exit(1)


@hold_app.command("add")
def hold_add(
    name: Annotated[str, typer.Argument(help="A name for the hold, such as the file number of the case.")],
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")],
    since: SinceOption = "",
    until: UntilOption = "",
    directory: DirOption = None,
) -> None:
    """Keep everything that was recorded between two times until the hold is released."""
    where = audit_directory(directory)
    if [log.root for log in open_logs(directory)] == [where]:
        fail(f"{where} is one log; holds stand over all that lie in a directory: name that")
    start, end = span(since, until)
    holds = _standing(where)
    if any(hold.id == name for hold in holds):
        fail(f"there is a hold `{name}` already")
    _record(where, records.HOLD, name, {"reason": reason, "since": start, "until": end})
    write_holds(where, [*holds, Hold(name, reason, start, end)])
    console.print(f"held: {name}")


@hold_app.command("release")
def hold_release(name: Annotated[str, typer.Argument(help="The hold.")], directory: DirOption = None) -> None:
    """End a hold."""
    where = audit_directory(directory)
    holds = _standing(where)
    if all(hold.id != name for hold in holds):
        fail(f"there is no hold `{name}`")
    _record(where, records.RELEASE, name, {})
    write_holds(where, [hold for hold in holds if hold.id != name])
    console.print(f"released: {name}")


@hold_app.command("list")
def hold_list(directory: DirOption = None) -> None:
    """Print the holds."""
    for hold in _standing(audit_directory(directory)):
        console.print(msgspec.json.encode(hold).decode())


def _standing(where: Path) -> tuple[Hold, ...]:
    try:
        return standing_holds(where)
    except HoldError as error:
        fail(str(error))


def _record(where: Path, event: str, subject: str, data: dict[str, Any]) -> None:
    """Put what an operator did into a log of its own, beside the routers'."""
    try:
        store = open_slot(where, load_signer(where / SIGNING_KEY), "cli")
        store.append([records.encode(store.size, time.time(), time.monotonic(), event, subject, data)])
        store.close()
    except (OSError, CheckpointError, LogBusy) as error:
        fail(f"this could not be recorded, so it was not done: {error}")
