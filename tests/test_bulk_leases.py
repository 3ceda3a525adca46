"""Leases: every shard is computed, whoever dies, and none is watched too closely."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jina_jax.bulk.leases import Leases, lease_name
from jina_jax.bulk.stores import Store

NAMES = [f"part-{number:05d}-1a2b3c4d.parquet" for number in range(12)]
QUICK = {"seconds": 0.8, "heartbeat": 0.1, "pause": 0.05}


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "vectors"))


def leases(store, worker="a", **options):
    return Leases(store, worker, **{**QUICK, **options})


def work(own, names=NAMES, seconds=0.0):
    """Take shards and commit each before the next."""
    taken = []
    for name in own.take(names):
        time.sleep(seconds)
        taken.append(name)
        own.store.put_new(name, own.worker.encode())
        own.release(name)
    return taken


def beat(store, name):
    return json.loads(store.read(lease_name(name)))["beat"]


class Counting(Store):
    """A store that counts what is asked of it."""

    def __init__(self, url):
        super().__init__(url)
        self.listings, self.reads = 0, 0

    def names(self, folder=""):
        self.listings += 1
        return super().names(folder)

    def read(self, name):
        self.reads += 1
        return super().read(name)


def test_one_worker_takes_all_at_once(store):
    start = time.monotonic()
    with leases(store, pause=5, heartbeat=10, seconds=20) as own:
        assert sorted(work(own)) == NAMES
    assert time.monotonic() - start < 2  # it does not wait for anybody
    assert store.names("_leases") == []


def test_shards_that_are_done_are_not_taken(store):
    store.put(NAMES[3], b"")
    with leases(store) as own:
        assert sorted(work(own)) == NAMES[:3] + NAMES[4:]


def test_nothing_to_take(store):
    with leases(store) as own:
        assert work(own, []) == []


def test_two_workers_never_have_the_same_shard(store):
    with leases(store, "a") as one, leases(store, "b") as two:
        shards = [one.take(NAMES[:6]), two.take(NAMES[:6])] * 3
        taken = [next(own) for own in shards]
        assert sorted(taken) == NAMES[:6]
        assert set(one.held) | set(two.held) == set(NAMES[:6])
        assert json.loads(store.read(lease_name(taken[0])))["worker"] == "a"


def test_threads_divide_shards(store):
    found = {}

    def run(worker):
        with leases(store, worker) as own:
            found[worker] = work(own, seconds=0.02)

    threads = [threading.Thread(target=run, args=(worker,)) for worker in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(name for names in found.values() for name in names) == NAMES
    assert store.names("_leases") == []


def test_a_slow_worker_that_lives_keeps_its_lease(store):
    """For several times ``seconds``; the files' times are of another clock, and do not matter."""
    with leases(store, "slow") as slow, leases(store, "b") as other:
        name = next(slow.take(NAMES[:1]))
        path = store.url + "/" + lease_name(name)
        taken, first = [], beat(store, name)
        thread = threading.Thread(target=lambda: taken.extend(other.take(NAMES[:1])))
        thread.start()
        for moment in range(8):
            time.sleep(0.2)
            os.utime(path, (0, 0) if moment % 2 else (4e9, 4e9))
        assert beat(store, name) > first + 5
        assert not taken
        store.put_new(name, b"slow")
        thread.join(10)
        assert not thread.is_alive()
        assert not taken


def test_a_lease_that_nobody_renews_is_taken_over(store):
    """Whatever it contains; by the time that passes here."""
    name = NAMES[0]
    store.put(lease_name(name), b"of a worker that died")
    os.utime(store.url + "/" + lease_name(name), (4e9, 4e9))
    start = time.monotonic()
    with leases(store) as own:
        assert work(own, [name]) == [name]
    assert QUICK["seconds"] <= time.monotonic() - start < 5


def test_a_lease_is_taken_over_after_its_time(store, monkeypatch):
    """Neither before nor long after ``seconds``, by a clock of this test."""
    clock = [100.0]
    monkeypatch.setattr("jina_jax.bulk.leases.time.monotonic", lambda: clock[0])
    own, name = Leases(store, "w", seconds=10, heartbeat=5, pause=1), NAMES[0]
    store.put(lease_name(name), b"of a worker that died")
    for now, expected in ((100, False), (109.9, False), (110, True)):
        clock[0] = now
        assert own._is_dead(name) is expected
    store.put(lease_name(name), b"of a worker that lives")
    assert not own._is_dead(name)


def test_nothing_is_claimed_after_the_end(store):
    """By a thread that was about to, when a signal came."""
    with leases(store) as own:
        taken = own.take(NAMES)
        next(taken)
        own.stop()
        assert not own._claim(NAMES[5])
    assert store.names("_leases") == []


def test_clocks_are_not_asked(store, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: pytest.fail("leases asked for the time of day"))
    store.put(lease_name(NAMES[0]), b"of a worker that died")
    with leases(store) as own:
        assert sorted(work(own, NAMES[:2])) == NAMES[:2]


def test_a_shard_that_was_done_since_the_listing_is_not_taken(store):
    with leases(store, pause=0.1) as own:
        shards = own.take(NAMES[:2])
        first = next(shards)
        (other,) = {*NAMES[:2]} - {first}
        store.put_new(other, b"another worker, which released its lease")
        assert list(shards) == []
        assert store.names("_leases") == [lease_name(first).split("/")[1]]


def test_closing_leaves_shards_to_others_at_once(store):
    own = leases(store)
    name = next(own.take(NAMES[:1]))
    own.close()
    own.close()
    assert store.names("_leases") == []
    start = time.monotonic()
    with leases(store, "b", seconds=60, heartbeat=1) as other:
        assert work(other, [name]) == [name]
    assert time.monotonic() - start < 2


def test_a_lease_goes_away_once_its_shard_is_done(store):
    """By the heartbeat, while another thread asks for the next shard."""
    with leases(store, heartbeat=0.05) as own:
        name = next(own.take(NAMES[:1]))
        store.put_new(name, b"")
        until = time.monotonic() + 10
        while store.names("_leases"):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert own.held == {}


def test_a_lease_that_another_took_over_is_left_to_it(store, caplog):
    """As after a pause of this process; both compute the shard, and one puts it."""
    with leases(store, "slow", heartbeat=0.05) as own:
        shards = own.take(NAMES[:1])
        name = next(shards)
        with own._lock:
            store.put(lease_name(name), b"of another")
        deadline = time.monotonic() + 5
        while own.held and time.monotonic() < deadline:
            time.sleep(0.02)
        assert own.held == {}
        assert f"another worker took {name} over" in caplog.text
        assert list(shards) == []
    assert store.read(lease_name(name)) == b"of another"


def test_leases_of_shards_that_are_done_go_away(store):
    """A worker may die between its commit and the removal of the lease."""
    store.put(NAMES[0], b"")
    store.put(lease_name(NAMES[0]), b"of a worker that died")
    store.put("_leases/part-00000-another.json", b"of another plan")
    with leases(store) as own:
        assert work(own, NAMES[:1]) == []
    assert store.names("_leases") == ["part-00000-another.json"]


def test_a_store_that_fails_for_the_heartbeat_does_not_end_the_worker(store, monkeypatch, caplog):
    with leases(store, heartbeat=0.05) as own:
        name = next(own.take(NAMES[:1]))
        with monkeypatch.context() as broken:

            def fail(*args):
                raise OSError("no space left")

            broken.setattr(store, "put", fail)
            time.sleep(0.2)
        assert f"the lease of {name} was not renewed: no space left" in caplog.text
        first = beat(store, name)
        time.sleep(0.2)
        assert beat(store, name) > first


def test_waiting_lists_rarely(tmp_path):
    """Some workers wait for one with many shards: two listings per pause each, and few reads."""
    store = Counting(str(tmp_path / "vectors"))
    names = [f"part-{number:05d}.parquet" for number in range(200)]
    for name in names:
        store.put(lease_name(name), b"x")
    own = leases(store, seconds=60, heartbeat=0.4, pause=0.1)
    thread = threading.Thread(target=lambda: list(own.take(names)))
    thread.start()
    time.sleep(2)
    own.close()
    thread.join(5)
    assert not thread.is_alive()
    assert 4 <= store.listings <= 2 * 12  # after 0.1, 0.15, 0.23, 0.34, and then each 0.4 seconds
    assert store.reads <= 32 * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 50, "heartbeat": 30}, "heartbeat=30: .* at most half of seconds=50"),
        ({"heartbeat": 0}, "heartbeat=0"),
        ({"pause": 0}, "pause=0: expected a positive number"),
        ({"pause": 31}, "pause=31: .* at most heartbeat=30"),
    ],
)
def test_settings_that_are_refused(store, options, message):
    with pytest.raises(ValueError, match=message):
        Leases(store, "a", **options)


WORKER = """
import json, os, sys, time
time.time = lambda: float(sys.argv[3])  # clocks that differ
from jina_jax.bulk.leases import Leases
from jina_jax.bulk.stores import Store
store, names = Store(sys.argv[1]), json.loads(sys.argv[2])
with Leases(store, str(os.getpid()), seconds=1.5, heartbeat=0.2, pause=0.1) as leases:
    for name in leases.take(names):
        print(name, flush=True)
        time.sleep(0.15)
        store.put_new(name, b"vectors")
        leases.release(name)
"""


def test_killed_workers(store):
    """Four processes, of which three are killed while they work."""
    names = [f"part-{number:05d}.parquet" for number in range(24)]

    def start(clock):
        command = [sys.executable, "-c", WORKER, store.url, json.dumps(names), str(clock)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    workers = [start(clock) for clock in (0, 1e9, 2e9, 4e9)]
    taken = [worker.stdout.readline().strip() for worker in workers]  # each is at work
    for worker in workers[:3]:
        worker.send_signal(signal.SIGKILL)
    for worker in workers:  # not communicate(timeout=…), which loses what readline has read ahead
        taken += worker.stdout.read().split()
        worker.wait(60)
        worker.stdout.close()
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL] * 3 + [0]
    assert store.names() == names
    assert store.names("_leases") == []
    counts = {name: taken.count(name) for name in names}
    assert set(counts.values()) <= {1, 2}
    assert sum(count == 2 for count in counts.values()) <= 3  # those of the killed, again
