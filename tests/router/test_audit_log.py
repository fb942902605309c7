"""The audit log: what it promises about crashes, full disks and tampering, in small; `scripts/prove/ledger` does it in large."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from router.compiled import compile_policy
from router.config import parse_config
from router.decision import Complexity, Facts
from router.ledger import records, shapes
from router.ledger.checkpoint import (
    Checkpoint,
    CheckpointError,
    Signer,
    load_signer,
    open_note,
    read_verifier,
    read_verifiers,
)
from router.ledger.disk import Disk
from router.ledger.journal import pack_frame, segment_path
from router.ledger.log import AuditLog
from router.ledger.policies import policy_text, read_policy
from router.ledger.reader import LogReader, find_logs, merged
from router.ledger.recorder import Recorder, end_data
from router.ledger.recover import LogDamaged
from router.ledger.replay import Gap, Replayer, decide_again, differences
from router.ledger.retention import ClockJumped, Hold, HoldError, Pruner, standing_holds, write_holds
from router.ledger.shapes import Attempt, StepRecord
from router.ledger.slots import open_slot
from router.ledger.store import LogBusy, LogStore
from router.ledger.tiles import WIDTH, tile_path
from router.ledger.verify import verify_log
from router.ledger.writer import AuditUnavailable, LogWriter
from router.placement.breaker import Breaker
from router.placement.targets import Load, Signals, View
from router.residency.label import Label

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts" / "prove"))

from _ledger.crashes import crash
from _ledger.detect import build_log, roll_back, tamper_with
from _ledger.full import FullDisk, fill_up
from _ledger.live import record_and_replay
from _ledger.replayed import replay
from _ledger.tamper import TAMPERINGS
from _ledger.traffic import Traffic, make_config
from _ledger.usage import count_simulated

SIGNER = Signer(bytes(range(32)))
KEYS = [SIGNER.verifier]


def note(n: int) -> bytes:
    return records.encode(n, 1.0, 2.0, "note", f"n{n}", {"n": n})


def fill(root: Path, sizes: list[int], **options: int) -> LogStore:
    store = LogStore(root, SIGNER, **options)
    for size in sizes:
        store.append([note(store.size + i) for i in range(size)])
    return store


# What is found


def test_every_kind_of_tampering_is_found(tmp_path):
    tally = tamper_with(tmp_path, 8 * len(TAMPERINGS), seed=5, requests=400)
    assert tally.missed == []
    assert set(tally.tried) == set(TAMPERINGS) and min(tally.tried.values()) >= 4


def test_rollbacks_and_forks_are_found_against_a_checkpoint_held_elsewhere(tmp_path):
    tally = roll_back(tmp_path, 12, seed=3)
    assert tally.missed == [] and set(tally.tried) == {"rollback", "fork"}


def test_a_rollback_is_told_from_a_fork_and_a_checkpoint_of_another_log_says_nothing(tmp_path):
    store = fill(tmp_path / "log", [300])
    held = store.publish()
    store.append([note(300)])
    store.close()
    assert verify_log(tmp_path / "log", KEYS, [held]).ok
    origin = store.origin
    ahead = SIGNER.sign(Checkpoint(origin, 999, bytes(32)))
    assert "truncated" in verify_log(tmp_path / "log", KEYS, [ahead]).problems[0]
    forked = SIGNER.sign(Checkpoint(origin, 5, bytes(32)))
    assert "fork" in verify_log(tmp_path / "log", KEYS, [forked]).problems[0]
    assert verify_log(tmp_path / "log", KEYS, [SIGNER.sign(Checkpoint("another", 999, bytes(32)))]).ok


def test_a_directory_that_is_no_log_is_a_problem(tmp_path):
    assert "no journal" in verify_log(tmp_path, KEYS).problems[0]


@pytest.mark.parametrize(
    "name", ["journal/\u00b2", "journal/\u0663", "journal/7", "journal/x/5", "tile/00/000", "tile/\u0660/000", "journal/\udcff"]
)
def test_a_file_that_has_almost_the_name_of_one_of_a_log_is_no_part_of_it(tmp_path, name):
    store = fill(tmp_path / "log", [300])
    store.close()
    path = tmp_path / "log" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"what somebody hides here")
    (problem,) = verify_log(tmp_path / "log", KEYS).problems
    assert "is no part of a log" in problem and problem.isprintable()
    assert LogStore(tmp_path / "log", SIGNER).size == 300


def test_a_link_is_no_part_of_a_log_and_a_number_that_nobody_signed_is_not_counted_to(tmp_path):
    store = fill(tmp_path / "log", [300])
    store.close()
    (tmp_path / "log" / "x").symlink_to(tmp_path)
    assert verify_log(tmp_path / "log", KEYS).problems == ["x: this file is no part of a log"]
    far = segment_path(tmp_path / "log", 1 << 62)
    far.write_bytes(pack_frame(1 << 62, [b"entry"], b"no note"))
    problems = verify_log(tmp_path / "log", KEYS).problems
    assert any("only 300 entries are signed" in problem for problem in problems)


# Crashes and full disks


def test_after_a_kill_at_any_step_the_log_verifies_and_nothing_external_is_lost(tmp_path):
    losses = crash(tmp_path, 60, seed=2, generations=15)
    assert losses.problems == []
    assert losses.lost_external == 0 and losses.external > 20
    assert losses.torn > 0, "some kills must come in the middle of a write"


def test_a_full_disk_stops_what_is_external_and_the_log_goes_on_afterwards(tmp_path):
    count = fill_up(tmp_path, 20, seed=4)
    assert count.problems == []
    assert (count.sent_while_full, count.without_record) == (0, 0)
    assert count.sent > 20 and count.refused > 20


def test_a_torn_append_is_cut_off_wherever_it_was_torn(tmp_path):
    fill(tmp_path / "log", [3, 4]).close()
    journal = next((tmp_path / "log" / "journal").iterdir())
    whole = journal.read_bytes()
    ends = set()
    for cut in range(len(whole) - 1, 0, -9):  # nothing but the journal: the crash came before anything else was renewed
        copy = tmp_path / f"cut-{cut}"
        (copy / "journal").mkdir(parents=True)
        (copy / "journal" / journal.name).write_bytes(whole[:cut])
        store = LogStore(copy, SIGNER)
        ends.add(store.size)
        store.close()
        assert store.size == 0 or verify_log(copy, KEYS).ok
    assert ends == {0, 3}


def test_a_failed_append_leaves_nothing_behind(tmp_path):
    disk = FullDisk(random.Random(1))
    store = LogStore(tmp_path / "log", SIGNER, disk=disk)
    store.append([note(0)])
    disk.full = True
    for _ in range(3):
        with pytest.raises(OSError, match=r"No space|Input/output"):
            store.append([note(1)])
    disk.full = False
    assert store.append([note(1)]) == 1
    store.close()
    report = verify_log(tmp_path / "log", KEYS)
    assert report.ok and report.size == 2


def test_an_entry_too_long_for_a_bundle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="65,535"):
        LogStore(tmp_path / "log", SIGNER).append([bytes(65_536)])


# Opening


@pytest.mark.parametrize("sizes", [[1], [255], [256], [257], [300, 300, 300], [2000], [1] * 30])
def test_a_log_goes_on_where_it_ended(tmp_path, sizes):
    for round_ in range(3):
        store = fill(tmp_path / "log", sizes, segment_bytes=9000)
        assert store.size == sum(sizes) * (round_ + 1)
        store.close()
        report = verify_log(tmp_path / "log", KEYS)
        assert report.problems == []
    assert [entry for _, entry in LogReader(tmp_path / "log").entries()] == [note(n) for n in range(sum(sizes) * 3)]


def test_tiles_that_a_power_failure_took_are_made_again_from_the_journal(tmp_path):
    fill(tmp_path / "log", [600]).close()
    (tmp_path / "log" / tile_path("entries", 1)).unlink()
    (tmp_path / "log" / tile_path(0, 0)).write_bytes(b"")
    LogStore(tmp_path / "log", SIGNER).close()
    assert verify_log(tmp_path / "log", KEYS).ok


def test_a_damaged_log_is_not_continued_but_left_for_the_auditor(tmp_path):
    fill(tmp_path / "router-0", [5, 5]).close()
    journal = next((tmp_path / "router-0" / "journal").iterdir())
    journal.write_bytes(journal.read_bytes()[:-1])
    with pytest.raises(LogDamaged, match="signs 10 entries, but only 5"):
        LogStore(tmp_path / "router-0", SIGNER)
    before = journal.read_bytes()
    store = open_slot(tmp_path, SIGNER)
    assert store.root.name == "router-1"
    assert journal.read_bytes() == before


def test_another_signing_key_is_said_so(tmp_path):
    fill(tmp_path / "log", [5]).close()
    with pytest.raises(LogDamaged, match="another signing key"):
        LogStore(tmp_path / "log", Signer(bytes(32)))


def test_each_process_gets_a_log_of_its_own(tmp_path):
    first, second = open_slot(tmp_path, SIGNER), open_slot(tmp_path, SIGNER)
    assert (first.root.name, second.root.name) == ("router-0", "router-1")
    with pytest.raises(LogBusy):
        LogStore(first.root, SIGNER)
    first.close()
    assert open_slot(tmp_path, SIGNER).root.name == "router-0"


def test_tiles_without_a_journal_are_no_new_log(tmp_path):
    fill(tmp_path / "log", [300]).close()
    next((tmp_path / "log" / "journal").iterdir()).unlink()
    with pytest.raises(LogDamaged, match="the journal is gone"):
        LogStore(tmp_path / "log", SIGNER)


# Checkpoints and keys


def test_a_checkpoint_is_a_signed_note_that_has_no_free_bit():
    note_ = SIGNER.sign(Checkpoint("tidegate/x", 7, bytes(32)))
    assert open_note(note_, KEYS) == Checkpoint("tidegate/x", 7, bytes(32))
    for bit in range(len(note_) * 8):
        changed = bytearray(note_)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            open_note(bytes(changed), KEYS)
    for cut in range(len(note_)):
        with pytest.raises(CheckpointError):
            open_note(note_[:cut], KEYS)


def test_a_witness_may_sign_too_and_another_key_alone_is_not_trusted():
    witness = Signer(bytes(32), "witness.example")
    checkpoint = Checkpoint("tidegate/x", 7, bytes(32))
    line = witness.sign(checkpoint).split(b"\n\n")[1]
    assert open_note(SIGNER.sign(checkpoint) + line, KEYS) == checkpoint
    with pytest.raises(CheckpointError, match="not signed by a key that is trusted"):
        open_note(witness.sign(checkpoint), KEYS)


def test_a_verifier_key_is_one_line_and_a_wrong_one_is_said_so(tmp_path):
    assert read_verifier(SIGNER.verifier.line).public == SIGNER.verifier.public
    for wrong in ("", "tidegate", SIGNER.verifier.line.replace("tidegate", "other"), SIGNER.verifier.line[:-5]):
        with pytest.raises(CheckpointError):
            read_verifier(wrong)
    with pytest.raises(CheckpointError, match="no verifier key can be read"):
        read_verifiers(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(CheckpointError, match="the file is empty"):
        read_verifiers(tmp_path / "empty")


def test_the_signing_key_is_made_once_private_and_never_shown(tmp_path):
    first, second = load_signer(tmp_path / "keys" / "k"), load_signer(tmp_path / "keys" / "k")
    assert first.verifier.line == second.verifier.line
    assert (tmp_path / "keys" / "k").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "k").read_text().strip() not in repr(first)
    (tmp_path / "bad").write_text("not hex")
    with pytest.raises(CheckpointError, match="64 hex digits"):
        load_signer(tmp_path / "bad")


# The thread


def open_log(root: Path, traffic: Traffic, **options) -> AuditLog:
    log = AuditLog(LogWriter(LogStore(root, SIGNER, disk=options.pop("disk", None)), **options), traffic.policy.label_text)
    log.policy(traffic.policy.epoch, policy_text(traffic.config))
    return log


def test_every_decision_comes_out_again_as_recorded(tmp_path):
    agreement = replay(tmp_path, 1500, seed=9)
    assert agreement.problems == []
    assert agreement.agreed == agreement.decisions == 1500


def test_a_decision_that_was_recorded_falsely_is_told(tmp_path):
    build_log(tmp_path / "log", SIGNER, 1, 50)
    for situation in Replayer(LogReader(tmp_path / "log")).situations():
        decision = decide_again(situation)
        if decision.chosen is not None:
            assert differences(decision, situation.data) == []
            data = type(situation.data)(
                **{f: getattr(situation.data, f) for f in situation.data.__struct_fields__} | {"model": "x"}
            )
            assert differences(decision, data) == [f"model: 'x' then, {decision.chosen.model!r} now"]
            return
    pytest.fail("nothing was chosen")


def test_lost_records_are_counted_and_the_decisions_after_them_can_be_made_again(tmp_path):
    traffic, disk = Traffic(1), FullDisk(random.Random(1))
    log = open_log(tmp_path / "log", traffic, disk=disk, capacity=60, window_s=0.002)

    async def run() -> None:
        for number, event in enumerate(traffic.events(400)):
            disk.full = 100 <= number < 250
            log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)
            if number % 20 == 0:
                await asyncio.sleep(0.01)
            if number == 300:
                await asyncio.sleep(0.5)

    asyncio.run(run())
    log.close(30)
    assert verify_log(tmp_path / "log", KEYS).ok
    lost = [records.read_data(r)["records"] for r in LogReader(tmp_path / "log").records() if r.e == records.LOST]
    found = list(Replayer(LogReader(tmp_path / "log")).situations())
    assert sum(lost) + len(found) >= 400 and lost
    assert not any(isinstance(item, Gap) for item in found)
    assert all(differences(decide_again(item), item.data) == [] for item in found)


async def test_an_intent_is_on_the_medium_when_it_returns_and_fails_when_it_cannot_be(tmp_path):
    traffic, disk = Traffic(1), FullDisk(random.Random(1))
    log = open_log(tmp_path / "log", traffic, disk=disk)
    event = next(e for e in traffic.events(500) if e.decision.chosen is not None)
    choice = event.decision.chosen
    await log.intent(event.facts, choice, "epoch", 123, "cloud/cloud/")
    on_disk = list(LogReader(tmp_path / "log").records())
    intent = next(record for record in on_disk if record.e == records.INTENT)
    assert intent.id == event.facts.request_id
    data = records.read_data(intent, records.IntentData)
    assert (data.body_bytes, data.evidence, data.target) == (123, "cloud/cloud/", choice.target.id)
    disk.full = True
    with pytest.raises(AuditUnavailable, match="cannot be written"):
        await log.intent(event.facts, choice, "epoch", 123, "cloud/cloud/")
    assert not log.healthy
    disk.full = False
    await asyncio.sleep(0.1)  # the log is not tried again at once
    await log.intent(event.facts, choice, "epoch", 123, "cloud/cloud/")
    assert log.healthy
    log.close()
    with pytest.raises(AuditUnavailable, match="closed"):
        await log.intent(event.facts, choice, "epoch", 123, "cloud/cloud/")
    assert sum(record.e == records.INTENT for record in LogReader(tmp_path / "log").records()) == 2


async def test_a_disk_that_is_slow_holds_up_nobody_on_the_event_loop(tmp_path):
    syncing, goes_on = threading.Event(), threading.Event()

    class StuckDisk(Disk):
        def sync(self, descriptor: int) -> None:
            if not goes_on.is_set():
                syncing.set()
            assert goes_on.wait(60)
            super().sync(descriptor)

    traffic = Traffic(1)
    goes_on.set()
    log = open_log(tmp_path / "log", traffic, disk=StuckDisk())
    goes_on.clear()
    events = list(traffic.events(40))
    for event in events[:20]:
        log.ended(event.receipt)
    assert await asyncio.to_thread(syncing.wait, 60)
    for event in events[20:]:
        log.ended(event.receipt)
    assert not goes_on.is_set(), "all were handed over while the disk had not answered"
    goes_on.set()
    log.close(30)
    ended = [record for record in LogReader(tmp_path / "log").records() if record.e == records.END]
    assert len(ended) == len(events)


def test_no_word_of_a_key_or_an_environment_is_in_the_stored_policy():
    config = Traffic(1).config
    text = policy_text(config)
    assert b"%064x" % 2 not in text and b"e-s-c" not in text
    again, policy = read_policy(text, "epoch-1")
    assert policy.epoch == "epoch-1" and [key.id for key in again.keys] == [key.id for key in config.keys]


def test_logs_of_several_replicas_are_merged_by_time(tmp_path):
    for number in range(2):
        store = LogStore(tmp_path / f"router-{number}", SIGNER)
        store.append([records.encode(n, 10.0 * n + number, 0.0, "note", f"{number}/{n}", {}) for n in range(300)])
        store.close()
    logs = [LogReader(path) for path in find_logs(tmp_path)]
    ids = [record.id for _, record in merged(logs)]
    assert ids[:4] == ["0/0", "1/0", "0/1", "1/1"] and len(ids) == 600


def test_pruned_entries_are_gone_only_where_a_record_says_so(tmp_path):
    store = fill(tmp_path / "log", [100] * 8, segment_bytes=5000)
    assert store.base > WIDTH
    store.drop_bundle(0)
    assert "no record says" in verify_log(tmp_path / "log", KEYS).problems[0]
    store.append([records.encode(store.size, 1.0, 1.0, records.PRUNE, "", {"first": 0, "end": WIDTH})])
    store.close()
    report = verify_log(tmp_path / "log", KEYS)
    assert report.ok and report.pruned == WIDTH
    assert next(LogReader(tmp_path / "log").entries())[0] == WIDTH
    assert LogStore(tmp_path / "log", SIGNER).size == 801


def test_a_record_of_a_later_version_and_one_that_is_none_are_refused():
    for later in ([9, 0.0, 0.0, "x", "", {}, 0], [9, {"another": "form"}], {"v": 9}):
        with pytest.raises(records.RecordError, match="version 9; this tidegate reads version 2"):
            records.decode(records.pack(later))
    earlier = {"v": 1, "t": 1.0, "m": 1.0, "e": "note", "id": "", "data": {}, "n": 0}
    with pytest.raises(records.RecordError, match=r"version 1; this tidegate reads version 2, .*never released"):
        records.decode(records.pack(earlier))
    with pytest.raises(records.RecordError, match="no record"):
        records.decode(b"\xc1")


def test_records_read_by_place_keep_their_places():
    """Others read records with this list and nothing of ours: a new field may follow the last of its line, and nowhere else."""
    rows = {
        records.Record: "v t m e id data n",
        records.DecideData: "epoch grant members now facts view loads label sources target incarnation zone kind model reason "
        "ttft_s cost_usd code status saturated",
        records.LoadsData: "start count loads",
        records.IntentData: "epoch key tenant label target incarnation zone evidence model reason body_bytes cost_usd",
        records.EndData: "epoch key tenant endpoint requested_model label sources tier score received ended status code "
        "prompt_tokens completion_tokens cached_tokens reasoning_tokens attempts trial mode steps cache waited_ms",
        Attempt: "target incarnation zone model reason started first_byte ended ending status failure prompt_tokens "
        "completion_tokens",
        StepRecord: "name model verdict confidence started ended prompt_tokens completion_tokens cost_usd estimated",
    }
    for kind, names in rows.items():
        assert kind.__struct_config__.array_like and " ".join(kind.__struct_fields__).startswith(names), kind
    for kind, shape, first in (
        (Label, shapes.LABEL, "process store duties"),
        (Complexity, shapes.COMPLEXITY, "tier score reasons model pinned context propensity trial"),
        (
            Load,
            shapes.LOAD,
            "inflight unstarted unstarted_tokens foreign foreign_waiting clear_at queue_s context_tokens "
            "kv_tokens work_s work_at ttft_s service_s prefill_tps slowdown pace_slowdown profile failures down_until "
            "signals breaker",
        ),
        (
            Signals,
            shapes.SIGNALS,
            "sampled_at running waiting kv_usage gpu_utilisation gpu_memory gpu_temperature_c adapters adapter_slots "
            "preemptions gpu_power gpu_throttle gpu_faults deferred",
        ),
        (Breaker, shapes.BREAKER, "consecutive good bad counted_at pace paces judged_at cause trips opened_at until probing"),
    ):
        assert kind.__struct_config__.array_like and kind.__struct_fields__ == shape and " ".join(shape).startswith(first), kind
    assert set(Facts.__struct_fields__) - set(shapes.FACTS) == {"request_id", "key"}
    assert set(View.__struct_fields__) - set(shapes.VIEW) == {"membership", "loads"}
    facts = "endpoint model label complexity prompt_bytes prompt_tokens max_tokens excluded timeout_s waited_s priority"
    assert " ".join(shapes.FACTS).startswith(facts)
    assert " ".join(shapes.VIEW).startswith("spilling spend_left_usd cached output_tokens margin_s pace_share adapter_s")


def test_a_record_has_every_value_under_its_name_for_people():
    event = next(item for item in Traffic(3).events(50) if item.receipt.attempts and item.view.loads[0] != Load())
    made = Recorder(lambda data: "0" * 64, str).decided(event.facts, "e", event.view, event.decision, 5.0, {"key": "eu"})
    plain = {}
    for name, subject, data in [*made, (records.END, "x", end_data(event.receipt))]:
        plain[name] = records.to_plain(records.decode(records.encode(7, 1.0, 2.0, name, subject, data)))
    decided = plain[records.DECIDE]
    assert (decided["n"], decided["t"], decided["m"], decided["id"]) == (7, 1.0, 2.0, event.facts.request_id)
    assert decided["facts"]["label"] == msgspec.structs.asdict(event.facts.label) and decided["sources"] == {"key": "eu"}
    assert decided["facts"]["complexity"]["tier"] == event.facts.complexity.tier and decided["view"]["pace_share"] == 1.0
    assert plain[records.LOADS]["loads"][0]["inflight"] == event.view.loads[0].inflight
    assert plain[records.LOADS]["loads"][0]["breaker"] == msgspec.structs.asdict(Breaker())
    assert plain[records.END]["attempts"] == [msgspec.structs.asdict(attempt) for attempt in event.receipt.attempts]


def test_a_log_with_records_of_another_version_is_left_as_it_is_and_another_begun(tmp_path):
    store = LogStore(tmp_path / "router-0", SIGNER)
    store.append([records.pack({"v": 1, "n": 0, "t": 1.0, "m": 1.0, "e": "note", "id": "", "data": {}})])
    store.close()
    before = (tmp_path / "router-0" / "journal" / f"{0:020d}").read_bytes()
    with pytest.raises(LogDamaged, match="version 1; this tidegate reads version 2"):
        LogStore(tmp_path / "router-0", SIGNER)
    assert open_slot(tmp_path, SIGNER).root == tmp_path / "router-1"
    assert (tmp_path / "router-0" / "journal" / f"{0:020d}").read_bytes() == before


def test_records_of_an_earlier_and_of_a_later_build_of_the_same_version_are_read():
    attempts = [["one", "one@1", "z", "m", "r", 1.0]]
    short = ["e", "k", "t", "/v1/x", "m", "eu", {}, "", 0.0, 1.0, 2.0, 200, "", 3, 4, -1, -1, attempts]
    record = records.decode(records.encode(0, 1.0, 1.0, records.END, "x", short))
    end = records.read_data(record, records.EndData)
    assert (end.attempts[0].target, end.attempts[0].status, end.steps, end.waited_ms) == ("one", 0, [], 0)
    whole = [*short, "", "", [], "", 5]
    later = records.decode(records.encode(0, 1.0, 1.0, records.END, "x", [*whole, "of later"]))
    assert records.read_data(later, records.EndData).waited_ms == 5
    assert records.to_plain(later)[f"+{len(whole)}"] == "of later" and "trial" not in records.to_plain(record)


# What stands in it is enough, and the window holds


def test_the_stored_policy_keeps_the_order_that_decisions_depend_on():
    data = make_config().model_dump(mode="json")
    data["targets"][0]["models"] = {"tiny": "t-1", "big": "b-1", "able": "a-1"}
    data["targets"][0]["tier"] = "small"
    config = parse_config(data)
    policy = compile_policy(config, Path("/"))
    _, again = read_policy(policy_text(config), policy.epoch)
    assert again.tier_models == policy.tier_models and policy.tier_models["small"][-1] == "able"


def test_labels_are_named_by_the_policy_of_their_own_epoch(tmp_path):
    traffic = Traffic(1)
    log = open_log(tmp_path / "log", traffic)
    event = next(iter(traffic.events(1)))
    log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)
    log.policy("later", policy_text(traffic.config), lambda label: "named/anew/")
    log.decided(event.facts, "later", event.view, event.decision, event.now)
    log.decided(event.facts, traffic.policy.epoch, event.view, event.decision, event.now)
    log.close(30)
    found = [records.read_data(r, records.DecideData) for r in LogReader(tmp_path / "log").records() if r.e == records.DECIDE]
    own = traffic.policy.label_text(event.facts.label)
    assert [data.label for data in found] == [own, "named/anew/", own]


def test_what_waits_for_a_disk_that_hangs_is_written_within_the_window_all_the_same(tmp_path):
    hangs, goes_on = threading.Event(), threading.Event()

    class HangingDisk(Disk):
        def sync(self, descriptor: int) -> None:
            if hangs.is_set():
                assert goes_on.wait(30)
            super().sync(descriptor)

    traffic = Traffic(1)
    log = open_log(tmp_path / "log", traffic, disk=HangingDisk(), window_s=0.02)
    hangs.set()
    try:
        for number in range(5):  # each is in the file before the next is handed over, while the first sync still hangs
            log.event("note", f"n-{number}", {})
            for _ in range(400):
                if any(record.id == f"n-{number}" for record in LogReader(tmp_path / "log").records()):
                    break
                time.sleep(0.01)
            else:
                pytest.fail("a record waited for the medium")
    finally:
        goes_on.set()
    log.close(30)
    assert verify_log(tmp_path / "log", KEYS).ok


def test_a_sync_that_fails_takes_back_what_was_written_since_the_last(tmp_path):
    disk = FullDisk(random.Random(1))
    store = LogStore(tmp_path / "log", SIGNER, disk=disk)
    store.append([note(0)])
    store.write([note(1)])
    store.write([note(2)])
    disk.full = True
    with pytest.raises(OSError, match="Input/output"):
        store.sync()
    store.roll_back()
    disk.full = False
    assert store.size == 1
    assert store.append([note(1), note(2)]) == 1
    store.close()
    report = verify_log(tmp_path / "log", KEYS)
    assert report.ok and report.size == 3


@pytest.mark.parametrize("left", [None, b""], ids=["no name", "a name without bytes"])
def test_an_append_whose_blob_a_power_failure_took_is_taken_back(tmp_path, left):
    store = LogStore(tmp_path / "log", SIGNER)
    store.append([note(0)])
    blob = store.put_blob(b"what many records share")
    store.write([records.encode(1, 1.0, 1.0, records.GRANT, "key", {"blob": blob}), note(2)])
    store.write([note(3)])  # neither was brought to the medium
    store.close()
    path = tmp_path / "log" / "blobs" / blob
    path.unlink() if left is None else path.write_bytes(left)
    again = LogStore(tmp_path / "log", SIGNER)
    assert again.size == 1 and again.recovered_bytes > 0
    assert again.put_blob(b"what many records share") == blob
    again.append([records.encode(1, 1.0, 1.0, records.GRANT, "key", {"blob": blob})])
    again.close()
    report = verify_log(tmp_path / "log", KEYS)
    assert report.ok and report.size == 2


def test_pruning_goes_in_steps_keeps_what_is_held_and_stops_when_the_clock_was_set_forward(tmp_path):
    store = LogStore(tmp_path / "log", SIGNER, segment_bytes=5000)
    for start in range(0, 8 * WIDTH, 128):
        store.append([records.encode(start + i, float(start + i), 0.0, "note", "", {}) for i in range(128)])
    appended = []
    pruner = Pruner(store, lambda event, data: appended.append(data), days=1)
    now = time.time()
    with pytest.raises(ClockJumped, match="the clock went"):
        pruner.step(now + 7200)
    write_holds(tmp_path, [Hold("case", "a reason", 300.0, 400.0)])  # entries 300 to 399 lie in the second bundle
    removed, done = 0, False
    for _ in range(20):
        gone, done = pruner.step(now, most=2)
        removed += gone
        if done:
            break
    assert done and removed == (store.base // WIDTH - 1) * WIDTH > 0
    assert (tmp_path / "log" / tile_path("entries", 1)).is_file() and not (tmp_path / "log" / tile_path("entries", 0)).is_file()
    assert appended[0] == {"first": 0, "end": WIDTH, "kept_days": 1}
    (tmp_path / "holds.json").write_text("[{")
    with pytest.raises(HoldError, match="nothing will be removed"):
        pruner.step(now)


def test_what_was_pruned_long_ago_stays_declared_when_the_record_of_it_is_pruned_too(tmp_path):
    store = LogStore(tmp_path / "log", SIGNER, segment_bytes=1)
    now = time.time()

    def record(event, data):
        store.append([records.encode(store.size, now - 2 * 86400, 0.0, event, "", data)])

    pruner = Pruner(store, record, days=1)
    gone = 0
    for _ in range(3):  # each round takes the record of the round before with it
        for _ in range(2 * WIDTH // 128):
            store.append([records.encode(store.size + i, now - 2 * 86400, 0.0, "note", "", {}) for i in range(128)])
        while not pruner.step(now)[1]:
            pass
        store.publish()
        report = verify_log(tmp_path / "log", KEYS)
        assert report.ok, report.problems
        assert report.pruned > gone
        gone = report.pruned
    store.append([records.encode(store.size + i, now, 0.0, "note", "", {}) for i in range(WIDTH)])
    store.drop_bundle(gone // WIDTH)
    assert "no record says" in verify_log(tmp_path / "log", KEYS).problems[0]


def test_a_hold_stands_until_its_release_is_recorded_whatever_the_file_says(tmp_path):
    store = LogStore(tmp_path / "cli-0", SIGNER)
    store.append([records.encode(0, 1.0, 1.0, records.HOLD, "case", {"reason": "r", "since": 5.0, "until": 9.0})])
    write_holds(tmp_path, [Hold("other", "r")])
    assert set(standing_holds(tmp_path)) == {Hold("case", "r", 5.0, 9.0), Hold("other", "r")}
    store.append([records.encode(1, 2.0, 2.0, records.RELEASE, "case", {})])
    assert standing_holds(tmp_path) == (Hold("other", "r"),)
    store.append([b"no record"])
    with pytest.raises(HoldError, match="nothing will be removed"):
        standing_holds(tmp_path)


def test_decisions_of_a_running_router_come_out_again_from_its_log(tmp_path):
    result = record_and_replay(tmp_path, 400, seed=3)
    assert [problem for problem in result.problems if "too little" not in problem] == []
    assert result.agreed == result.decisions >= 400


def test_usage_is_the_engines_own_count_although_half_of_the_clients_leave(tmp_path):
    sums = count_simulated(tmp_path, 150, seed=2)
    assert sums.problems == []
    assert sums.router == sums.engines and sums.left > 30


def test_a_blob_whose_sync_failed_is_written_anew_and_not_only_synced_again(tmp_path):
    """After a failed fsync the system may call pages clean that never reached the medium."""

    class FailingOnce(Disk):
        def __init__(self) -> None:
            self.failures, self.put_again = 1, []

        def settle(self, paths) -> None:
            if self.failures:
                self.failures -= 1
                raise OSError(5, "Input/output error")
            super().settle(paths)

        def put(self, path, data, *, durable) -> None:
            self.put_again += [path.name] if path.parent.name == "blobs" else []
            super().put(path, data, durable=durable)

    disk = FailingOnce()
    store = LogStore(tmp_path / "log", SIGNER, disk=disk)
    blob = store.put_blob(b"what a record refers to")
    entry = records.encode(0, 1.0, 1.0, records.GRANT, "key", {"blob": blob})
    with pytest.raises(OSError, match="Input/output"):
        store.append([entry])
    assert disk.put_again == [blob]
    assert store.append([entry]) == 0
    assert disk.put_again == [blob, blob]
    store.close()
    assert verify_log(tmp_path / "log", KEYS).ok
