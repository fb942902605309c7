"""Limits over several router replicas: leases from one store, SQLite or a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select

from router.identity.books import window_of
from router.identity.leases import LeasedBooks
from router.identity.limit import Kind, Limit, Period
from router.identity.limits import LimitReached, Limits
from router.identity.usage_file import UsageFile, find_dead
from router.store.counters import Counters, Wish
from router.store.database import Database, StoreError
from router.store.tables import metadata
from tests.deployments.outside import free_port

BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
NOW = 1_800_000_000.0
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A server of our own, on sockets of its own."""
    if BINARIES is None:
        pytest.skip("PostgreSQL's server is not installed")
    root = Path(tempfile.mkdtemp(prefix="tidegate-pg-"))  # not below pytest's own, which only its owner may enter
    as_user: list[str] = []
    owner = getpass.getuser()
    if os.geteuid() == 0:  # the server refuses to run as root
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root")
        as_user, owner = ["runuser", "-u", "postgres", "--"], "postgres"
        shutil.chown(root, "postgres")
    data = root / "data"
    subprocess.run([*as_user, BINARIES / "initdb", "-D", data, "-A", "trust", "-U", owner], check=True, capture_output=True)
    port = free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={root} -c fsync=off"
    command = [*as_user, BINARIES / "pg_ctl", "-D", data, "-o", options, "-l", root / "log", "-w"]
    subprocess.run([*command, "start"], check=True, capture_output=True)
    try:
        yield f"postgresql://{owner}@/postgres?host={root}&port={port}"
    finally:
        subprocess.run([*as_user, BINARIES / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    base = request.getfixturevalue("postgresql")
    database = Database(base)
    with database.transaction() as connection:
        for table in metadata.sorted_tables:
            connection.execute(table.delete())
    database.close()
    return base


def test_the_migrations_make_the_tables_that_the_code_uses(url):
    database = Database(url)
    Database(url).close()  # once more: nothing is left to do
    with database.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_a_postgresql_that_goes_without_a_word_is_noticed_within_seconds(postgresql):
    root, port = re.findall("host=(.*)&port=(.*)", postgresql)[0]
    over_tcp = postgresql.replace(root, "127.0.0.1")
    for url, idle in ((over_tcp, 5), (f"{over_tcp}&keepalives_idle=60", 60)):
        database = Database(url)
        with database.transaction() as connection:
            assert connection.connection.driver_connection is not None
            there = socket.socket(fileno=os.dup(connection.connection.driver_connection.fileno()))
        with there:
            assert there.getpeername() == ("127.0.0.1", int(port))
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_000
            assert there.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
        database.close()


class Suspended:
    """Every process of a server, stopped for a while: what it is sent is still acknowledged, by the system."""

    def __init__(self, root: str) -> None:
        self._server = psutil.Process(int((Path(root) / "data" / "postmaster.pid").read_text().split()[0]))
        self._stopped: list[psutil.Process] = []

    def __enter__(self) -> None:
        self._stopped = [self._server, *self._server.children(recursive=True)]
        for process in self._stopped:
            process.suspend()

    def __exit__(self, *_: object) -> None:
        for process in self._stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def test_a_postgresql_that_hangs_holds_nobody_up_and_is_used_again(postgresql, monkeypatch):
    monkeypatch.setattr("router.store.database._ANSWER_S", 1.0)
    suspended = Suspended(re.findall("host=(.*)&port=", postgresql)[0])
    idle, working = Database(postgresql), Database(postgresql)
    with suspended:
        for store in (idle, idle):  # a connection that was open, and none
            with pytest.raises(StoreError), store.transaction():
                pass
    with pytest.raises(StoreError), working.transaction() as connection, suspended:
        connection.execute(select(1))
    for store in (idle, working):
        with store.transaction() as connection:
            assert connection.execute(select(1)).scalar() == 1
        store.close()


def test_a_router_that_hangs_with_the_lock_of_all_is_shut_out(postgresql, monkeypatch):
    monkeypatch.setattr("router.store.database._PAUSE_MS", 300)
    hung, other = Database(postgresql), Database(postgresql)
    with pytest.raises(StoreError), hung.transaction() as mine:
        with other.transaction() as connection:  # it waits for the lock, which nobody gives back
            assert connection.execute(select(1)).scalar() == 1
        mine.execute(select(1))
    with hung.transaction() as again:
        assert again.execute(select(1)).scalar() == 1
    hung.close()
    other.close()


def test_who_waits_long_for_the_lock_of_all_is_told_so(postgresql, monkeypatch):
    monkeypatch.setattr("router.store.database._LOCK_MS", 50)
    first, second = Database(postgresql), Database(postgresql)
    with first.transaction(), pytest.raises(StoreError, match="lock timeout"), second.transaction():
        pass
    first.close()
    second.close()


def wish(used: int, ahead: int, keep: int = 0, amount: int = 100, **more: object) -> Wish:
    return Wish("c", amount, used, ahead, keep, NOW + 1e6, **more)


def test_grants_never_add_up_to_more_than_the_limit(url):
    database = Database(url)
    replicas = [Counters(database, f"r{number}") for number in range(4)]
    state = [[0, 0] for _ in replicas]  # used, granted
    rng = random.Random(7)
    for step in range(300):
        number = rng.randrange(4)
        used, granted = state[number]
        used = rng.randint(used, max(used, granted))
        ahead = rng.randrange(40)
        keep = min(granted, used + ahead)
        grants, alive = replicas[number].lease([wish(used, ahead, keep)], NOW + step / 100)
        state[number] = [used, grants["c"].granted]
        assert grants["c"].granted >= keep
        assert sum(max(pair) for pair in state) <= 100
        assert alive <= 4
    assert sum(used for used, _ in state) > 90
    database.close()


def test_what_a_dead_replica_did_not_use_is_free_again_and_what_it_used_is_not(url):
    database = Database(url)
    dead, alive = Counters(database, "dead"), Counters(database, "alive")
    assert dead.lease([wish(10, 90)], NOW)[0]["c"].granted == 100
    assert alive.lease([wish(0, 100)], NOW + 1)[0]["c"].granted == 0
    assert alive.lease([wish(0, 100)], NOW + 10)[0]["c"].granted == 90
    at_work = Counters(database, "crashed")
    at_work.lease([Wish("held", 5, 3, 2, 0, NOW + 1e6, held=True)], NOW + 10)
    assert alive.lease([Wish("held", 5, 0, 5, 0, NOW + 1e6, held=True)], NOW + 20)[0]["held"].granted == 5
    database.close()


def test_a_minute_slides_over_replicas(url):
    database = Database(url)
    one, two = Counters(database, "one"), Counters(database, "two")
    one.lease([Wish("m|1", 100, 80, 0, 0, NOW + 1e6)], NOW)
    later = two.lease([Wish("m|2", 100, 0, 100, 0, NOW + 1e6, before="m|1", weight=0.5)], NOW + 10)
    assert later[0]["m|2"].granted == 60
    database.close()


def test_four_replicas_together_stay_within_a_limit_and_reach_it(url):
    limit = (Limit("key:k", Kind.REQUESTS, Period.DAY, 2000),)
    databases = [Database(url) for _ in range(4)]
    books = [LeasedBooks(Counters(database, f"r{n}"), lambda: limit) for n, database in enumerate(databases)]
    for book in books:
        book.start()
    passed = [0] * 4
    until = time.monotonic() + 6

    def hammer(number: int) -> None:
        limits = Limits(books[number])
        rng = random.Random(number)
        while time.monotonic() < until and sum(passed) < 2100:
            try:
                limits.reserve(limit, 1, 1, time.time())
                passed[number] += 1
            except LimitReached:
                time.sleep(0.005)
            if rng.random() < 0.2 * (number + 1):  # some replicas get far more than others
                time.sleep(0.001)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for book in books:
        book.close()
    assert 1950 <= sum(passed) <= 2040, passed
    restarted = LeasedBooks(Counters(databases[0], "restarted"), lambda: limit)
    restarted.start()
    assert restarted.room(limit[0], window_of(Period.DAY, time.time()), time.time()) == max(0, 2000 - sum(passed))
    restarted.close()
    for database in databases:
        database.close()


def test_the_last_part_of_a_limit_is_had_after_a_quiet_time_too(url):
    """Nobody keeps a lease on the last fifth of a limit while nothing is asked; who asks then gets all it needs."""
    limit = (Limit("key:k", Kind.TOKENS, Period.DAY, 1000),)
    now = time.time()
    window = window_of(Period.DAY, now)
    databases = [Database(url) for _ in range(2)]
    books = [LeasedBooks(Counters(database, f"r{n}"), lambda: limit) for n, database in enumerate(databases)]
    for book in books:
        book.start()
    leases = [book._leases[limit[0].counter, window.index] for book in books]
    assert until(lambda: all(lease.asked for lease in leases))
    books[0].take(limit[0], window.index, 850)
    assert until(lambda: [lease.granted for lease in leases] == [850, 0])
    assert until(lambda: books[1].room(limit[0], window, now, 120) == 120), "more than an even part of what is left"
    Limits(books[1]).reserve(limit, 60, 60, time.time())
    assert until(lambda: leases[1].reported == 120)
    assert until(lambda: books[0].room(limit[0], window, now, 120) == 0), "what is too little for anybody is nobody's"
    with pytest.raises(LimitReached):
        Limits(books[0]).reserve(limit, 60, 60, time.time())
    for book, database in zip(books, databases, strict=True):
        book.close()
        database.close()


KILLED = """
import os, signal, sys, time
from pathlib import Path
from router.identity.leases import LeasedBooks
from router.identity.limit import Kind, Limit, Period
from router.identity.limits import Limits
from router.store.counters import Counters
from router.store.database import Database
limit = Limit("key:k", Kind.REQUESTS, Period.DAY, 1000)
books = LeasedBooks(Counters(Database(sys.argv[1]), "killed"), lambda: (limit,), Path(sys.argv[2]))
books.start()
for _ in range(37):
    Limits(books).reserve((limit,), 1, 1, time.time())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_limit_that_is_changed_goes_on_from_what_was_used_here_and_in_the_store(tmp_path):
    now = time.time()
    day = [Limit("key:k", Kind.REQUESTS, Period.DAY, amount) for amount in (100, 50, 120)]
    window, known = window_of(Period.DAY, now), [day[0]]
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    book = LeasedBooks(Counters(database, "mine"), lambda: tuple(known))
    book.start()
    assert book.room(day[0], window, now) == 100
    book.take(day[0], window.index, 95)
    assert book.room(day[1], window, now) == -45, "at once, before the store is asked"
    for limit, left in ((day[1], -45), (day[2], 25)):
        known[0] = limit
        book.ask_for((limit,))
        assert book.room(limit, window, now) == left
        book.take(day[0], window.index, 0)  # a request of before ends
    book.close()
    (grant,) = (
        Counters(database, "other").lease([Wish(f"key:k|requests|day|{window.index}", 120, 0, 120, 0, 4e9)], now)[0].values()
    )
    assert grant.granted == 25
    database.close()


def test_what_a_killed_replica_used_last_is_known_to_the_next_and_counts_once(url, tmp_path):
    usage, limit = tmp_path / "usage", Limit("key:k", Kind.REQUESTS, Period.DAY, 1000)
    done = subprocess.run([sys.executable, "-c", KILLED, url, str(usage)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    assert [path.name for path in usage.iterdir()] == ["killed.use"]
    now = time.time()
    for name in ("next", "the one after"):
        database = Database(url)
        books = LeasedBooks(Counters(database, name), lambda: (limit,), usage)
        books.start()
        assert books.room(limit, window_of(Period.DAY, now), now) == 1000 - 37
        books.close()
        database.close()
    assert list(usage.iterdir()) == []


def test_a_replica_that_lives_is_not_taken_for_dead_and_a_full_disk_stops_nobody(tmp_path, monkeypatch):
    alive = UsageFile(tmp_path, "alive")
    place = alive.open("key:k|requests|day|1")
    assert place is not None
    alive.put(place, 12)
    assert find_dead(tmp_path) == []
    alive._memory.close()
    os.close(alive._file)  # as a kill does
    (dead,) = find_dead(tmp_path)
    assert (dead.replica, dict(dead.read())) == ("alive", {"key:k|requests|day|1": 12})
    assert find_dead(tmp_path) == [], "two that look for the dead do not both find one"
    dead.close(entered=True)
    assert list(tmp_path.iterdir()) == []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    limit = Limit("key:k", Kind.REQUESTS, Period.DAY, 100)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    books = LeasedBooks(Counters(database, "mine"), lambda: (limit,), tmp_path / "usage")
    books.start()
    Limits(books).reserve((limit,), 1, 1, time.time())
    books.close()
    database.close()
    assert list((tmp_path / "usage").iterdir()) == []


def test_a_usage_file_that_is_damaged_or_full_costs_nothing_but_itself(tmp_path):
    (tmp_path / "cut.use").write_bytes(b"\xff" * 700)
    (dead,) = find_dead(tmp_path)
    assert dict(dead.read()) == {}
    dead.close(entered=True)
    file = UsageFile(tmp_path, "r")
    places = [file.open(f"c{number}") for number in range(5000)]
    assert places.count(None) == 5000 - 4096
    file.free(places[7])
    assert file.open("again") == places[7] and file.open("x" * 300) is None
    file.close()


def test_the_first_use_after_a_quiet_time_wakes_who_reports_it(tmp_path, monkeypatch):
    """Between two heartbeats nothing else would: here they are an hour apart."""
    monkeypatch.setattr("router.identity.leases._HEARTBEAT_S", 3600.0)
    monkeypatch.setattr("router.identity.leases._QUIET_AFTER_S", 0.01)
    limit = Limit("key:k", Kind.REQUESTS, Period.DAY, 100)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    book = LeasedBooks(Counters(database, "mine"), lambda: (limit,))
    book.start()
    window = window_of(Period.DAY, time.time())
    lease = book._leases[limit.counter, window.index]
    for used in (3, 5):
        assert until(lambda: book._asleep and not book._wake.is_set())
        book.take(limit, window.index, used - lease.used)
        assert until(lambda used=used: lease.reported == used)
    book.close()
    database.close()


def until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within seconds."""
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


def test_without_the_store_each_replica_keeps_to_its_share_and_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("router.identity.leases._ALONE_AFTER_S", 0.0)
    limit = Limit("key:k", Kind.REQUESTS, Period.DAY, 100)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    other = Counters(database, "other")
    other.lease([], time.time())
    book = LeasedBooks(Counters(database, "mine"), lambda: (limit,))
    book.start()

    def broken(*_: object) -> None:
        raise StoreError("gone")

    book._counters.lease = broken  # type: ignore[method-assign]
    deadline = time.monotonic() + 5
    while not book._failing and time.monotonic() < deadline:
        book.take(limit, window_of(Period.DAY, time.time()).index, 1)
        time.sleep(0.02)
    used = book._leases[limit.counter, window_of(Period.DAY, time.time()).index].used
    assert book.room(limit, window_of(Period.DAY, time.time()), time.time()) == 50 - used
    book._closing = True
    database.close()


STRICT = Limit("spill", Kind.USD, Period.DAY, 1000, strict=True)


def broken(*_: object) -> None:
    raise StoreError("gone")


def test_of_a_strict_limit_nothing_is_used_that_was_not_granted(tmp_path, monkeypatch):
    monkeypatch.setattr("router.identity.leases._ALONE_AFTER_S", 0.0)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    book = LeasedBooks(Counters(database, "mine"), lambda: (STRICT,))
    window = window_of(Period.DAY, time.time())
    assert book.room(STRICT, window, time.time(), 1) == 0, "the store was not asked yet"
    book.start()
    lease = book._leases[STRICT.counter, window.index]
    assert until(lambda: lease.asked and book.room(STRICT, window, time.time()) > 100)
    lease.free, book._alive = 0, 2  # as where a lease that nobody uses is given back
    book._counters.lease = broken  # type: ignore[method-assign]
    other = Limit("spill:k", Kind.USD, Period.DAY, 1000, strict=True)
    assert until(lambda: book._failing)
    left = book.room(STRICT, window, time.time())
    assert 100 < left == lease.granted, "what was granted stays, for nobody else may have it"
    book.take(STRICT, window.index, left)
    assert until(lambda: lease.used == lease.granted and book.room(STRICT, window, time.time(), 1) == 0)
    assert book.room(other, window, time.time(), 1) == 0, "no share of what the store never granted"
    book._closing = True
    database.close()


def test_what_a_replica_was_granted_of_a_strict_limit_is_nobody_elses_until_its_use_is_known(url):
    database = Database(url)
    vanished, known, alive = (Counters(database, name) for name in ("vanished", "known", "alive"))
    vanished.lease([wish(100, 200, amount=1000, strict=True)], NOW)
    known.lease([wish(0, 400, amount=1000, strict=True)], NOW)
    wanted = wish(0, 1000, amount=1000, strict=True)
    later = alive.lease([wanted], NOW + 3600)[0]["c"]
    assert later.granted == 350 and later.free == 0, "300 and 350 were granted to those that are not heard of"
    alive.bury("known", {"c": 0}, NOW + 3600)
    assert alive.lease([wanted], NOW + 3601)[0]["c"].granted == 700
    alive.bury("vanished", {"c": 150}, NOW + 3600)
    assert alive.lease([wanted], NOW + 3602)[0]["c"].granted == 850
    database.close()


def test_what_is_given_back_of_a_strict_limit_is_out_of_reach_before_it_is_free(tmp_path):
    """The event loop may just have decided by what there was: what it takes then must not be granted to another."""
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    other = Counters(database, "other")
    book = LeasedBooks(Counters(database, "mine"), lambda: (STRICT,))
    book._renew()
    other.lease([], time.time())
    book._renew()
    window = window_of(Period.DAY, time.time())
    lease = book._leases[STRICT.counter, window.index]
    left = book.room(STRICT, window, time.time())
    lease.free = 0  # as if little were left: a lease that nobody uses is given back
    book._renew()
    assert left > 0 == book.room(STRICT, window, time.time())
    name = f"{STRICT.counter}|{window.index}"
    taken = 0
    for turn in range(20):
        grants, _ = other.lease([Wish(name, 1000, 0, 1000, taken, 4e9, strict=True)], time.time())
        taken = grants[name].granted
        assert taken + left <= 1000
        if turn == 10:
            book.take(STRICT, window.index, left)
            book._renew()
    assert taken == 1000 - left
    database.close()


@pytest.mark.parametrize("wrong", ["nonsense", "postgresql://nobody:secret-word@127.0.0.1:1/x"])
def test_a_store_that_cannot_be_opened_is_said_so_without_its_password(wrong):
    with pytest.raises(StoreError) as error:
        Database(wrong)
    assert "secret-word" not in str(error.value)
