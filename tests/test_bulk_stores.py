"""Stores of bulk jobs: whole files or none, whoever is killed, whatever fails."""

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import fsspec
import loopback_store
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.bulk import retries
from jina_jax.bulk.stores import Store

TESTS = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def loop():
    with loopback_store.running() as address:
        yield address


@pytest.fixture(params=["local", "file", "memory", "loop", "failing", "failing loop"])
def url(request, tmp_path, monkeypatch):
    """Stores of each kind, empty."""
    name = uuid.uuid4().hex
    if request.param == "local":
        yield str(tmp_path / name)
    elif request.param == "file":
        yield f"file://{tmp_path}/{name}"
    elif request.param == "memory":
        yield f"memory://{name}"
    elif request.param == "loop":
        request.getfixturevalue("loop")
        yield f"loop://{name}"
    elif request.param == "failing":
        yield f"failing://{name}"
    else:
        with loopback_store.running(fail_every=5):
            yield f"loop://{name}"


class FailingFileSystem(MemoryFileSystem):
    """Every tenth call fails: of puts, every second of these after the work is done."""

    protocol = "failing"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    calls = itertools.count(1)
    puts = itertools.count()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("failing://"))


def failing(name):
    work = getattr(MemoryFileSystem, name)

    def method(self, *args, **kwargs):
        if next(self.calls) % 10:
            return work(self, *args, **kwargs)
        if name == "pipe_file" and next(self.puts) % 2:
            work(self, *args, **kwargs)
        raise OSError("the store is busy")

    return method


for method_name in ("ls", "info", "cat_file", "pipe_file", "rm_file", "find", "glob"):
    setattr(FailingFileSystem, method_name, failing(method_name))
fsspec.register_implementation("failing", FailingFileSystem, clobber=True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.001, 0.001, 0.001))


def test_files(url):
    store = Store(url)
    assert store.names() == []
    assert store.names("_stats") == []
    assert store.read("a") is None
    assert not store.exists("a")
    store.remove("a")
    for data in (b"", b"one", bytes(range(256)) * 5000):
        store.put("a", data)
        assert store.read("a") == data
    store.put("_stats/b.json", b"{}")
    store.put("_stats/deep/c.json", b"{}")
    assert store.names() == ["a"]
    assert store.names("_stats") == ["b.json"]
    assert store.exists("_stats/b.json")
    store.remove("a")
    assert not store.exists("a")
    assert store.names() == []


def test_names_are_sorted(url):
    store = Store(url + "/")
    for number in (3, 10, 1, 2):
        store.put(f"part-{number:05}", b"x")
    assert store.names() == ["part-00001", "part-00002", "part-00003", "part-00010"]


def test_reading_makes_nothing(tmp_path):
    store = Store(str(tmp_path / "out"))
    assert store.names() == []
    assert store.clean(0) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_only_the_first_is_put(url, kind):
    store = Store(url)
    for number in range(12):  # enough for each failure of the stores that fail
        name = f"_errors/part-{number}"
        assert put_new(store, name, b"first" * 1000, kind)
        assert not put_new(store, name, b"other" * 1000, kind)
        assert not put_new(store, name, b"longer" * 1000, kind)
        assert store.read(name) == b"first" * 1000


def put_new(store, name, data, kind):
    if kind == "bytes":
        return store.put_new(name, data)
    with store.scratch(name) as path:
        path.write_bytes(data)
        return store.put_new(name, path)


def test_of_many_threads_one_is_first(url):
    store, wins = Store(url), []
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        if store.put_new("part", bytes([number]) * 10_000):
            wins.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.read("part") == bytes(wins) * 10_000


PUT = """
import sys
sys.path.insert(0, sys.argv[4])
import loopback_store
from jina_jax.bulk.stores import Store
store, number = Store(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
data = bytes([number]) * 50_000
won = sum(store.put_new(f"part-{i}", data) << i for i in range(int(sys.argv[3])))
print(won, flush=True)
"""


def start(url, number, files):
    command = [sys.executable, "-c", PUT, url, str(number), str(files), TESTS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kind", ["local", "loop"])
def test_of_two_processes_one_is_first(kind, tmp_path, loop):
    url = str(tmp_path) if kind == "local" else f"loop://{tmp_path.name}"
    processes = [start(url, number, 40) for number in (1, 2)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    one, two = (int(process.communicate()[0]) for process in processes)
    assert one & two == 0
    assert one | two == 2**40 - 1
    for number in range(40):
        assert Store(url).read(f"part-{number}") == bytes([1 if one >> number & 1 else 2]) * 50_000


@pytest.mark.parametrize("kind", ["local", "loop"])
def test_killed_while_it_puts(kind, tmp_path, loop):
    url = str(tmp_path) if kind == "local" else f"loop://{tmp_path.name}"
    store = Store(url)
    process = start(url, 7, 10_000)
    process.stdin.write("\n")
    process.stdin.flush()
    while not store.names():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    names = store.names()
    assert 0 < len(names) < 10_000
    assert all(store.read(name) == b"\7" * 50_000 for name in names)


KILL = """
import os, signal, sys
from jina_jax.bulk import local_disk
from jina_jax.bulk.stores import Store
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[2], die)
Store(sys.argv[1]).put_new("part", b"x" * 1000)
"""


@pytest.mark.parametrize("step", ["fsync", "link"])
def test_killed_before_the_link(step, tmp_path):
    (tmp_path / "_tmp").mkdir()
    done = subprocess.run([sys.executable, "-c", KILL, str(tmp_path), step], check=False)
    assert done.returncode == -signal.SIGKILL
    store = Store(str(tmp_path))
    assert store.names() == []
    assert len(store.names("_tmp")) == 1
    assert store.clean(3600) == 0
    assert store.clean(-1) == 1
    assert store.names("_tmp") == []
    assert store.put_new("part", b"y")


def test_without_hard_links(tmp_path, monkeypatch):
    def link(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    store = Store(str(tmp_path))
    for kind in ("bytes", "path"):
        assert put_new(store, kind, b"one", kind)
        assert not put_new(store, kind, b"two", kind)
        assert store.read(kind) == b"one"
    assert store.names("_tmp") == []


def test_a_link_of_which_nobody_heard(tmp_path, monkeypatch):
    link, failures = os.link, [OSError(errno.EIO, "lost")]

    def lose(*args):
        link(*args)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(os, "link", lose)
    store = Store(str(tmp_path))
    assert store.put_new("part", b"one")
    assert not failures
    assert not store.put_new("part", b"one")


def test_scratch_is_removed(url):
    store = Store(url)
    paths = []

    def work():
        with store.scratch("_errors/part") as path:
            path.write_bytes(b"x")
            paths.append(path)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not paths[0].exists()
    assert store.names("_tmp") == []


FULL = """
import resource, sys
from jina_jax.bulk.stores import Store
store = Store(sys.argv[1])
store.put("small", b"x")
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
def scratch():
    with store.scratch("_errors/part") as path:
        path.write_bytes(b"x" * 100_000)
for work in (lambda: store.put("part", b"x" * 100_000), lambda: store.put("small", b"x" * 100_000),
             lambda: store.put_new("part", b"x" * 100_000), scratch):
    try:
        work()
    except OSError as error:
        print(error.errno, error)
"""


def test_full_disk(tmp_path):
    run = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    names = ("part", "small", "part", "_errors/part")
    expected = [
        f"{errno.EFBIG} [Errno {errno.EFBIG}] File too large: '{tmp_path}/{n}'" for n in names
    ]
    assert done.stdout.splitlines() == expected
    store = Store(str(tmp_path))
    assert store.names() == ["small"]
    assert store.read("small") == b"x"
    assert store.names("_tmp") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_full_or_read_only(number, tmp_path, monkeypatch):
    calls = []

    def fail(*args):
        calls.append(args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="part-1") as caught:
        Store(str(tmp_path)).put("part-1", b"x")
    assert caught.value.errno == number
    assert len(calls) == 1  # it is not tried again
    assert [path.name for path in tmp_path.iterdir()] in (["_tmp"], [])


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    store = Store(str(tmp_path / "file" / "out"))
    for put in (store.put, store.put_new, Store(str(tmp_path)).put_new):
        with pytest.raises(NotADirectoryError, match=f"{tmp_path}/file"):
            put("file/part", b"x")
    with pytest.raises(NotADirectoryError, match="file"):
        store.names()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_open(url):
    store = Store(url)
    data = os.urandom(3_000_000)
    store.put("a", data)
    with store.open("a") as file:
        assert file.seek(0, 2) == len(data)
        assert file.read() == b""
        file.seek(-8, 2)
        assert file.read(100) == data[-8:]
        file.seek(10)
        assert file.read(5) == data[10:15]
        assert file.tell() == 15
        file.seek(5, 1)
        assert file.read(2_000_000) == data[20:2_000_020]
        assert file.read() == data[2_000_020:]
    with pytest.raises(FileNotFoundError, match="absent"):
        store.open("absent")


def test_errors_name_the_url(loop):
    store = Store("loop://bucket/none")
    with loopback_store.running(fail_every=1), pytest.raises(OSError, match="loop://bucket/none/a"):
        store.put("a", b"x")
    assert store.read("a") is None


def test_a_store_that_is_never_back(monkeypatch):
    def fail(*args, **kwargs):
        raise TimeoutError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    with pytest.raises(TimeoutError, match="memory://never/a"):
        Store("memory://never").put("a", b"x")


def test_errors_of_libraries():
    class ClientError(Exception):
        pass

    failures = [ClientError("busy"), ConnectionError("reset"), EOFError()]

    def work():
        if failures:
            raise failures.pop()
        return "done"

    assert retries.retry("a", work) == "done"
    with pytest.raises(TypeError):
        retries.retry("a", lambda: len(3))
    failures = [ClientError("busy")] * 9
    with pytest.raises(OSError, match="ClientError: busy: 's3://b/x'"):
        retries.retry("s3://b/x", work)


@pytest.mark.parametrize("text", ["Precondition Failed", "At least one of the pre-conditions"])
def test_conditions_in_words(text, monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.put("a", b"x")

    def refuse(*args, **kwargs):
        raise OSError(errno.EINVAL, text)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    assert not store.put_new("a", b"x")


def test_stores_that_show_half_files_are_no_output(monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "protocol", ("sftp", "ssh"))
    with pytest.raises(ValueError, match=r"memory://x: expected an object store .* got sftp://"):
        Store("memory://x").put("a", b"x")


def test_urls_and_options(tmp_path):
    with pytest.raises(ValueError, match="expected a path or one URL, got a chain"):
        Store("simplecache::memory://x")
    with pytest.raises(ValueError, match=r"storage_options: .* got anon, secret") as caught:
        Store(str(tmp_path), anon=True, secret="a key")
    assert "a key" not in str(caught.value)


def test_memory_is_asked_by_one_thread_at_a_time(monkeypatch):
    exists = MemoryFileSystem.exists

    def slow(self, *args, **kwargs):
        found = exists(self, *args, **kwargs)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(MemoryFileSystem, "exists", slow)
    test_of_many_threads_one_is_first(f"memory://{uuid.uuid4().hex}")


def test_an_answer_that_is_cut(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.put("a", b"0123456789")
    whole, cuts = MemoryFileSystem.cat_file, [3, 0]

    def cut(self, *args, **kwargs):
        content = whole(self, *args, **kwargs)
        return content[: cuts.pop()] if cuts else content

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cut)
    with store.open("a") as file:
        assert file.read() == b"0123456789"
    assert not cuts


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for names")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a crash of the machine could leave a name without its content."""
    store, calls = Store(str(tmp_path)), []
    fsync, link = os.fsync, os.link

    def flush(number):
        calls.append(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    def named(path, target):
        calls.append("link")
        link(path, target)

    with store.scratch("a") as path:
        path.write_bytes(b"content")
        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(os, "link", named)
        assert store.put_new("a", path)
        assert calls == [str(path), "link", str(tmp_path)]
