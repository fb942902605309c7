"""What an operator sees of a clock that was set, a disk that is full, a log that is damaged and a key that is another."""

from __future__ import annotations

import logging
import random
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.compiled import compile_policy
from router.config import parse_config
from router.ledger import records
from router.ledger.checkpoint import Signer
from router.ledger.clock import TOLERANCE_S, ClockWatch
from router.ledger.log import AuditLog
from router.ledger.opening import open_audit
from router.ledger.reader import LogReader
from router.ledger.store import LogStore
from router.ledger.verify import verify_log
from router.ledger.writer import LogWriter
from tests.router.conftest import open_front_door
from tests.router.test_audited_requests import SPILL_KEY, audited

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _ledger.full import FullDisk

SIGNER = Signer(bytes(32))

# -- a clock that is set


@given(st.lists(st.tuples(st.floats(0, 1e4), st.one_of(st.floats(-0.2, 0.2), st.floats(-1e6, 1e6))), max_size=20))
def test_a_jump_is_told_once_with_its_size_and_time_that_passes_is_none(steps):
    watch, wall, steady = ClockWatch(), 1.8e9, 50.0
    assert watch.look(wall, steady) == 0.0
    for passed, jump in steps:
        wall, steady = wall + passed + jump, steady + passed
        told = watch.look(wall, steady)
        if abs(jump) < TOLERANCE_S - 0.01:
            assert told == 0.0
        elif abs(jump) > TOLERANCE_S + 0.01:
            assert told == pytest.approx(jump, abs=1e-3)
        assert watch.look(wall, steady) == 0.0


def stamped(root: Path, *moments: tuple[str, float, float]) -> list[str]:
    """The notes on a log of records with these events and moments."""
    store = LogStore(root, SIGNER)
    for event, wall, steady in moments:
        store.append([records.encode(store.size, wall, steady, event, "", {})])
    store.close()
    report = verify_log(root, [SIGNER.verifier])
    assert report.ok, report.problems
    return report.notes


def test_verify_tells_where_a_clock_was_set(tmp_path):
    begin = (records.OPEN, 1000.0, 50.0)
    assert stamped(tmp_path / "steady", begin, ("note", 1600.0, 650.0), ("note", 1600.5, 650.7)) == []
    (ahead,) = stamped(tmp_path / "ahead", begin, ("note", 4601.0, 51.0), ("note", 4602.0, 52.0))
    assert ahead == "entry 1: the clock was set ahead by 3600 s; times before and after it do not compare"
    back, again = stamped(tmp_path / "back", begin, ("note", 911.0, 51.0), ("note", 1002.0, 52.0))
    assert "entry 1: the clock was set back by 90 s" in back and "entry 2: the clock was set ahead by 90 s" in again
    # A machine that started anew has a steady clock of its own; only a clock that is behind is told.
    assert stamped(tmp_path / "reboot", begin, (records.OPEN, 5000.0, 3.0), ("note", 5001.0, 4.0)) == []
    (behind,) = stamped(tmp_path / "behind", begin, (records.OPEN, 700.0, 3.0), ("note", 701.0, 4.0))
    assert "entry 1: the clock was set back by 300 s" in behind


async def test_a_running_router_tells_of_a_clock_that_is_set(tmp_path, caplog):
    async with open_front_door({"a": "eu"}) as door:
        writer = LogWriter(LogStore(tmp_path / "log", SIGNER), window_s=0.01)
        door.state.audit = log = AuditLog(writer, door.state.policy.label_text)
        now = time.time()
        with caplog.at_level(logging.WARNING, "tidegate.router"):
            door.state.recheck(now)
            door.state.recheck(now)
            assert not caplog.records
            door.state.recheck(time.time() + 7200)
            door.state.recheck(time.time())
        log.close()
        door.state.audit = None
    told = [record.message for record in caplog.records if "clock" in record.message]
    assert ["set ahead by 7200 s" in told[0], "set back by 7200 s" in told[1], len(told)] == [True, True, 2]
    found = [record for record in LogReader(tmp_path / "log").records() if record.e == records.CLOCK]
    assert [round(records.read_data(record)["seconds"]) for record in found] == [7200, -7200]


# -- a disk that is full, a log that is damaged, a key that is another or none


async def test_a_full_disk_is_told_once_with_what_it_means_and_so_is_its_end(tmp_path, caplog):
    disk = FullDisk(random.Random(1))
    async with audited(tmp_path, disk) as door:
        assert (await door.chat(SPILL_KEY, "big")).status_code == 200
        disk.full = True
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                assert (await door.chat(SPILL_KEY, "big")).status_code == 503
            disk.full = False
            deadline = time.monotonic() + 10
            while not door.router.state.audit.healthy and time.monotonic() < deadline:
                await door.chat(SPILL_KEY, "big")
            assert (await door.chat(SPILL_KEY, "big")).status_code == 200
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("audit: the log of")]
    *failures, end = told
    assert any("No space left on device; nothing leaves the cluster" in failure for failure in failures)
    assert "is written again" in end and len(set(failures)) == len(failures)


def opened(root: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> tuple[AuditLog, str]:
    """The log that a router would open there, and what it says about it."""
    target = {"id": "a", "kind": "server", "vouched": True, "url": "http://x", "zone": "eu", "models": {"m": "m"}}
    config = parse_config({"zones": {"eu": {}}, "targets": [target], "audit": {"dir": "audit"}})
    capfd.readouterr()
    caplog.clear()
    log = open_audit(config, compile_policy(config, root), root)
    assert log is not None
    log.close()
    return log, capfd.readouterr().err + caplog.text


def test_a_damaged_log_is_left_and_another_begun_and_both_are_told(tmp_path, caplog, capfd):
    first, said = opened(tmp_path, caplog, capfd)
    assert first.healthy and not said
    journal = next((tmp_path / "audit" / "router-0" / "journal").iterdir())
    damaged = bytearray(journal.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    journal.write_bytes(damaged)
    second, said = opened(tmp_path, caplog, capfd)
    assert second.healthy and second.origin != first.origin
    assert str(tmp_path / "audit" / "router-0") in said and "this log is left as it is, and another is begun" in said
    assert journal.read_bytes() == damaged


@pytest.mark.parametrize("content", ["", "not hex", "ab" * 31, "ü" * 64])
def test_a_signing_key_that_is_none_keeps_everything_inside_and_names_the_file(tmp_path, caplog, capfd, content):
    opened(tmp_path, caplog, capfd)
    (tmp_path / "audit" / "signing.key").write_text(content, encoding="utf-8")
    log, said = opened(tmp_path, caplog, capfd)
    assert not log.healthy and "signing.key" in said and "nothing leaves the cluster" in said
    assert not content or content not in said


def test_another_signing_key_than_the_logs_own_is_told_from_damage(tmp_path, caplog, capfd):
    opened(tmp_path, caplog, capfd)
    (tmp_path / "audit" / "signing.key").write_text("cd" * 32)
    log, said = opened(tmp_path, caplog, capfd)
    assert log.healthy and "was another signing key in use?" in said and "another is begun" in said
