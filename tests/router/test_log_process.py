"""The process that writes the audit log: what it is handed is written whoever ends, and nothing is announced without it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from router.ledger import pipe, records
from router.ledger.checkpoint import load_signer
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text
from router.ledger.reader import LogReader
from router.ledger.remote_writer import RemoteWriter
from router.ledger.replay import Gap, Replayer, decide_again, differences
from router.ledger.verify import verify_log
from router.ledger.writer import AuditUnavailable
from router.ledger.writer_process import Order
from scripts.prove._ledger.traffic import Traffic

ROOT = Path(__file__).resolve().parents[2]


def order(root: Path, window_s: float = 0.05, capacity: int = 10_000) -> Order:
    return Order(str(root / "audit"), str(root / "audit" / "signing.key"), window_s, capacity, (), None)


def read(root: Path, number: int = 0) -> list[records.Record]:
    return list(LogReader(root / "audit" / f"router-{number}").records())


def assert_whole(root: Path, number: int = 0) -> None:
    verifier = load_signer(root / "audit" / "signing.key").verifier
    report = verify_log(root / "audit" / f"router-{number}", [verifier])
    assert report.ok and report.size, report.problems


async def until(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not come to that"
        await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_everything_is_written_in_order_and_every_decision_can_be_made_again(tmp_path):
    traffic = Traffic(3)
    writer = RemoteWriter(order(tmp_path))
    log = AuditLog(writer, traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    told = []
    for number, event in enumerate(traffic.events(400)):
        log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)
        log.ended(event.receipt)
        if number % 50 == 0:
            await log.durably("note", str(number), {})
            told += [str(number)]
            assert [record.id for record in read(tmp_path) if record.e == "note"] == told
    pid = writer.pid
    await asyncio.to_thread(log.close)
    assert not is_running(pid)
    found = read(tmp_path)
    assert [record.n for record in found] == list(range(len(found)))
    assert found[0].e == records.OPEN and found[-1].e == records.CLOSE
    assert [record.id for record in found if record.e == records.DECIDE] == [f"req-{number}" for number in range(400)]
    assert sum(record.e == records.END for record in found) == 400
    again = list(Replayer(LogReader(tmp_path / "audit" / "router-0")).situations())
    assert len(again) == 400 and not any(isinstance(item, Gap) for item in again)
    assert all(differences(decide_again(item), item.data) == [] for item in again)
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "away", [lambda root: shutil.rmtree(root / "journal"), lambda root: root.rename(root.with_name("elsewhere"))]
)
async def test_nothing_leaves_on_the_word_of_a_log_that_was_taken_away_and_another_is_begun(tmp_path, away):
    traffic = Traffic(6)
    writer = RemoteWriter(order(tmp_path))
    log = AuditLog(writer, traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    await log.durably("note", "before", {})
    first, root = writer.origin, tmp_path / "audit" / "router-0"
    await until((root / "checkpoint").exists)  # what was never published cannot be missed
    away(root)
    with pytest.raises(AuditUnavailable, match="cannot be written"):
        await log.durably("note", "unseen", {})
    await until(lambda: log.healthy and writer.origin != first)
    await log.durably("note", "after", {})
    assert log.losses
    await asyncio.to_thread(log.close)
    [place] = [path.parent for path in (tmp_path / "audit").glob("router-*/journal")]
    found = list(LogReader(place).records())
    assert [record.e for record in found][:2] == [records.OPEN, records.POLICY]
    assert [record.id for record in found if record.e == "note"] == ["after"]
    assert_whole(tmp_path, int(place.name[-1]))


async def test_a_writer_that_is_killed_is_started_again_and_nothing_leaves_meanwhile(tmp_path):
    traffic = Traffic(5)
    writer = RemoteWriter(order(tmp_path))
    log = AuditLog(writer, traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    events = list(traffic.events(300))

    def record(part) -> None:
        for event in part:
            log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)

    record(events[:100])
    await log.durably("note", "before", {})
    first, held = writer.pid, asyncio.ensure_future(log.durably("note", "on its way", {}))
    os.kill(first, signal.SIGSTOP)
    record(events[100:150])
    await asyncio.sleep(0.1)
    os.kill(first, signal.SIGKILL)
    await until(lambda: not log.healthy)
    with pytest.raises(AuditUnavailable, match="cannot be written"):
        await log.durably("note", "meanwhile", {})
    record(events[150:200])
    await until(lambda: log.healthy)
    assert writer.pid != first and not is_running(first)
    record(events[200:])
    await log.durably("note", "after", {})
    try:
        await held
    except AuditUnavailable:
        told = {"before", "after"}
    else:
        told = {"before", "on its way", "after"}
    await asyncio.to_thread(log.close)
    found = read(tmp_path)
    assert told <= {record.id for record in found if record.e == "note"} and "meanwhile" not in {record.id for record in found}
    decided = [record.id for record in found if record.e == records.DECIDE]
    assert decided[-150:] == [f"req-{number}" for number in range(150, 300)]  # what came meanwhile was kept
    lost = sum(records.read_data(record)["records"] for record in found if record.e == records.LOST)
    assert len(decided) + lost >= 300
    again = list(Replayer(LogReader(tmp_path / "audit" / "router-0")).situations())
    assert not any(isinstance(item, Gap) for item in again[-150:])
    assert all(differences(decide_again(item), item.data) == [] for item in again if not isinstance(item, Gap))
    assert_whole(tmp_path)


async def test_a_log_that_cannot_be_opened_is_opened_as_soon_as_it_can_be_and_lacks_nothing(tmp_path, caplog):
    (tmp_path / "audit").write_text("a file where the directory should be")
    traffic = Traffic(1)
    log = AuditLog(RemoteWriter(order(tmp_path)), traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    assert not log.healthy and "no log can be opened" in str(log.failure)
    log.event("note", "kept", {})
    with pytest.raises(AuditUnavailable):
        await log.durably("note", "refused", {})
    (tmp_path / "audit").unlink()
    await until(lambda: log.healthy)
    assert "is written again" in caplog.text, "else the last that is said of it is that nothing leaves"
    await log.durably("note", "written", {})
    await asyncio.to_thread(log.close)
    found = read(tmp_path)
    assert [record.id for record in found if record.e == "note"] == ["kept", "written"]
    assert found[0].e == records.OPEN and any(record.e == records.POLICY for record in found[1:3])
    assert_whole(tmp_path)


async def test_what_a_stopped_writer_leaves_no_room_for_is_counted(tmp_path):
    traffic = Traffic(1)
    writer = RemoteWriter(order(tmp_path, capacity=200))
    log = AuditLog(writer, traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    await log.durably("note", "first", {})
    os.kill(writer.pid, signal.SIGSTOP)
    try:
        for number in range(20_000):
            log.event("note", f"n-{number}", {"padding": "x" * 500})
            if number % 500 == 0:
                await asyncio.sleep(0.02)
    finally:
        os.kill(writer.pid, signal.SIGCONT)
    assert not writer.has_room
    refused = 0
    while True:  # what came through at once may be too much for the writer, too
        try:
            await log.durably("note", "last", {})
        except AuditUnavailable:
            refused += 1
            await asyncio.sleep(0.05)
        else:
            break
    await asyncio.to_thread(log.close)
    found = read(tmp_path)
    lost = sum(records.read_data(record)["records"] for record in found if record.e == records.LOST)
    assert lost and sum(record.e == "note" for record in found) + lost == 20_002 + refused
    assert_whole(tmp_path)


async def test_what_was_refused_with_a_dead_writer_is_not_recorded_by_the_next(tmp_path):
    traffic = Traffic(1)
    writer = RemoteWriter(order(tmp_path))
    log = AuditLog(writer, traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    await log.durably("note", "first", {})
    os.kill(writer.pid, signal.SIGSTOP)
    for number in range(100):  # more than the socket takes
        log.event("note", f"n-{number}", {"padding": "x" * 20_000})
        await asyncio.sleep(0.001)
    waiting = asyncio.ensure_future(log.durably("note", "never", {}))
    await asyncio.sleep(0.05)
    os.kill(writer.pid, signal.SIGKILL)
    with pytest.raises(AuditUnavailable, match="its writer has ended"):
        await waiting
    await until(lambda: log.healthy)
    await log.durably("note", "last", {})
    await asyncio.to_thread(log.close)
    found = [record.id for record in read(tmp_path) if record.e == "note"]
    assert found[0] == "first" and found[-1] == "last" and "never" not in found
    lost = sum(records.read_data(record)["records"] for record in read(tmp_path) if record.e == records.LOST)
    assert len(found) + lost >= 102
    assert_whole(tmp_path)


async def test_a_router_that_ends_while_its_writer_is_started_again_leaves_none_behind(tmp_path):
    traffic = Traffic(1)
    writer = RemoteWriter(order(tmp_path))
    log = AuditLog(writer, traffic.policy.label_text)
    first = writer.pid
    os.kill(first, signal.SIGKILL)
    await until(lambda: not log.healthy)
    await asyncio.to_thread(log.close)
    await asyncio.sleep(2.5)  # it would have been started again
    assert writer.pid == first or not is_running(writer.pid)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from router.ledger.log import AuditLog
from router.ledger.remote_writer import RemoteWriter
from router.ledger.writer_process import Order

async def main(root):
    writer = RemoteWriter(Order(root, root + "/signing.key", 0.1, 1000, (), None))
    log = AuditLog(writer, str)
    print(writer.pid, flush=True)
    for number in range(50):
        log.event("note", f"n-{number}", {})
    await asyncio.sleep(0.1)  # the window
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(sys.argv[1]))
"""


def test_what_a_killed_router_had_handed_over_is_written_and_the_writer_ends(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "audit")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    pid, end = int(run.stdout), time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < end, "the writer outlives its router"
        time.sleep(0.02)
    found = read(tmp_path)
    assert [record.id for record in found if record.e == "note"] == [f"n-{number}" for number in range(50)]
    assert_whole(tmp_path)


async def test_what_is_sent_in_pieces_and_by_hundreds_comes_in_order(tmp_path):
    """More than the socket takes at once, more than one message holds, and blobs and urgent records between."""
    writer = RemoteWriter(order(tmp_path))
    log = AuditLog(writer, str)
    for number in range(3000):
        log.event("note", f"n-{number}", {"padding": "x" * (number % 7) * 100})
        if number % 700 == 300:
            writer.keep(b"%d" % number)
        if number % 1000 == 500:
            await log.durably("note", f"durable-{number}", {})
    log.event("note", "long", {"padding": "x" * 65_000})
    await log.durably("note", "end", {})
    await asyncio.to_thread(log.close)
    found = [record.id for record in read(tmp_path) if record.e == "note"]
    expected = [f"n-{number}" for number in range(3000)]
    for at in (500, 1500, 2500):
        expected.insert(expected.index(f"n-{at}") + 1, f"durable-{at}")
    assert found == [*expected, "long", "end"]
    assert len(list((tmp_path / "audit" / "router-0" / "blobs").iterdir())) == 4
    assert_whole(tmp_path)


@pytest.mark.parametrize("lengths", [[], [0], [1, 0, 65_535], [7] * 300])
def test_records_of_one_message_come_out_as_they_were(lengths):
    begun = [bytes([number % 256]) * length for number, length in enumerate(lengths)]
    [(kind, content)] = pipe.Incoming().feed(pipe.pack_records(begun))
    assert kind == pipe.RECORDS and pipe.unpack_records(content) == begun


def test_messages_come_out_whole_however_they_are_cut():
    sent = [(pipe.RECORDS, b"a" * 300), (pipe.BLOB, b""), (pipe.URGENT, bytes(9)), (pipe.LOST, b"\x00" * 8)]
    data = b"".join(pipe.message(kind, content) for kind, content in sent)
    for size in (1, 2, 5, 7, 100, len(data)):
        incoming = pipe.Incoming()
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        assert [found for part in parts for found in incoming.feed(part)] == sent
