"""Tokenising in processes: the same tokens as in one thread, and nothing is left behind."""

import copy
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizer_fixtures import SENTENCES, dialects, train, write

from jina_jax import Batching, JinaEmbeddings, make_mesh
from jina_jax.runtime import tokenizing
from jina_jax.runtime.pipeline import Pipeline
from jina_jax.runtime.requests import Preparation, Request
from jina_jax.runtime.tokenizing import Block, TokenizerProcesses, tokenize, usual_processes
from jina_jax.text.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and process ids of POSIX")
SPECIAL = ("<s>", "</s>", "<mask>", "<pad>", "", " ", "\n", "😀\u200d", "▁")


def draw(count):
    """Random texts of many scripts and special tokens, empty and long ones among them."""
    random_ = random.Random(0)
    words = [*itertools.chain.from_iterable(s.split() for s in SENTENCES), *SPECIAL]
    sizes = [random_.choice([0, 1, 5, 20, 200]) for _ in range(count)]
    return [" ".join(random_.choices(words, k=size)) for size in sizes]


TEXTS = draw(300)
MIXED = Block(TEXTS, [i % 3 == 0 for i in range(len(TEXTS))], False)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tokenizing, "_BLOCK", 500)
    monkeypatch.setattr(tokenizing, "_LEAST", 2000)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    return write(folder / "tokenizer.json", dialects(train(folder))["words"])


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.from_file(path)


@pytest.fixture(scope="module")
def both(tokenizer):
    """Two processes that are ready."""
    processes = ready(TokenizerProcesses(tokenizer, 2))
    yield processes
    processes.close()


@pytest.fixture(autouse=True)
def no_test_waits_forever():
    """Fail a test that waits for a job nobody does."""

    def fail(number, frame):
        raise TimeoutError("two minutes have passed")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def ready(processes, count=2):
    processes.start()
    wait_until(lambda: len(processes.ready) == count)
    return processes


def tokenize_often(processes):
    """Give every process something to do."""
    for _ in range(1000):
        processes.tokenize(MIXED)


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid):
    """Return whether a process runs; one that waits to be reaped does not."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self").exists():
        try:
            return stat.read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def elsewhere(monkeypatch):
    """Let tokenising in this process fail."""

    def refuse(tokenizer, block):
        assert not block.texts, "tokenised in this process"
        return []

    return lambda: monkeypatch.setattr(tokenizing, "tokenize", refuse)


# ---------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("aligned", ["none", "all", "mixed"])
def test_tokens_are_those_of_the_thread(both, tokenizer, elsewhere, aligned, split):
    choices = {"none": [False] * 300, "all": [True] * 300, "mixed": MIXED.aligned}
    block = Block(TEXTS, choices[aligned], split)
    expected = tokenize(tokenizer, block)
    elsewhere()
    found = both.tokenize(block)
    assert found == expected
    assert {type(token) for own in found for token in own.ids} == {int}


def test_the_same_in_several_threads(both, tokenizer, elsewhere):
    blocks = [Block(TEXTS[i:], MIXED.aligned[i:], False) for i in range(4)]
    expected = [tokenize(tokenizer, block) for block in blocks]
    elsewhere()
    found = [None] * 4
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, both.tokenize(blocks[i])))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_an_error_is_that_of_the_thread(both, tokenizer):
    for at, wrong in ((0, "\ud800"), (250, "x\udc80"), (299, "\udfff")):
        texts = [*TEXTS[:at], wrong, *TEXTS[at + 1 :]]
        block = Block(texts, [False] * 300, False)
        with pytest.raises(ValueError, match=rf"texts\[{at}\]: expected Unicode") as ours:
            both.tokenize(block)
        with pytest.raises(ValueError, match="texts") as theirs:
            tokenize(tokenizer, block)
        assert str(ours.value) == str(theirs.value)
    assert both.tokenize(MIXED) == tokenize(tokenizer, MIXED)  # they are still of use


def test_the_memory_of_words_does_not_travel(tokenizer):
    tokenizer.encode(TEXTS)
    assert tokenizer._unigram.ids
    other = pickle.loads(pickle.dumps(tokenizer))
    assert not other._unigram.ids
    assert other.encode(TEXTS) == tokenizer.encode(TEXTS)


# ---------------------------------------------------------------- where it pays


def test_small_inputs_start_nothing_and_stay_here(both, tokenizer, monkeypatch):
    idle = TokenizerProcesses(tokenizer, 1)
    small = Block(["a" * 1999], [False], False)
    assert idle.tokenize(small) == tokenize(tokenizer, small)
    assert idle._end is None
    monkeypatch.setattr(both, "_submit", None)
    tiny = Block(["a" * 999], [False], False)
    assert both.tokenize(tiny) == tokenize(tokenizer, tiny)


def test_nothing_waits_for_processes_to_start(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizing, "_CODE", "import time; time.sleep(600)")
    processes = TokenizerProcesses(tokenizer, 2)
    assert processes.tokenize(MIXED) == tokenize(tokenizer, MIXED)
    assert processes._end is not None
    assert processes.ready == ()
    processes.close()


def test_work_moves_to_processes_as_soon_as_one_is_ready(both, tokenizer, monkeypatch):
    """The first block is tokenised here, the others there."""
    seen = []
    ids = both._ready
    monkeypatch.setattr(both, "_ready", [])

    def watched(tokenizer, block):
        seen.append(block)
        both._ready = ids
        return tokenize(tokenizer, block)

    monkeypatch.setattr(tokenizing, "tokenize", watched)
    assert both.tokenize(MIXED) == tokenize(tokenizer, MIXED)
    assert len(seen) == 1
    assert len(seen[0].texts) < len(TEXTS) / 2


@pytest.mark.parametrize(
    ("platform", "cores", "expected"),
    [("cpu", 64, 0), ("gpu", 2, 0), ("gpu", 3, 0), ("gpu", 4, 2), ("tpu", 16, 8), ("gpu", 96, 8)],
)
def test_number_of_processes(monkeypatch, platform, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    assert usual_processes(platform) == expected
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # the executable is the program itself
    assert usual_processes(platform) == 0


def test_a_process_imports_nothing_of_jax():
    code = f"""
import sys
import {tokenizing.__name__}
heavy = {{"jax", "jaxlib", "flax", "jina_jax.embedder", "multiprocessing"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- ends


def test_a_killed_process_is_an_error_and_the_next_call_starts_others(tokenizer):
    processes = ready(TokenizerProcesses(tokenizer, 2))
    pids = processes.ready
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"exit code -9 .*tokenizer_processes=0"):
        tokenize_often(processes)
    assert not any(map(is_running, pids))
    ready(processes)
    assert not set(processes.ready) & set(pids)
    assert processes.tokenize(MIXED) == tokenize(tokenizer, MIXED)
    processes.close()


def test_no_job_hangs_when_all_are_killed(tokenizer):
    processes = ready(TokenizerProcesses(tokenizer, 2))
    for pid in processes.ready:
        os.kill(pid, signal.SIGSTOP)
    pids = processes.ready
    errors = []

    def call():
        try:
            processes.tokenize(MIXED)
        except RuntimeError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: processes._jobs.qsize() > 10)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors
    processes.close()


def test_processes_end_with_their_object(tokenizer):
    processes = ready(TokenizerProcesses(tokenizer, 2))
    pids = processes.ready
    count = threading.active_count()
    assert all(map(is_running, pids))
    del processes
    assert not any(map(is_running, pids))
    assert threading.active_count() == count - 2


SCRIPT = """
import os, sys, time
print("main", flush=True)  # a script without `if __name__ == "__main__"`
from jina_jax.runtime import tokenizing
from jina_jax.text.tokenizer import Tokenizer

tokenizing._BLOCK, tokenizing._LEAST = 500, 2000
tokenizer = Tokenizer.from_file(sys.argv[1])
processes = tokenizing.TokenizerProcesses(tokenizer, 2)
processes.start()
while len(processes.ready) < 2:
    time.sleep(0.01)
block = tokenizing.Block(["Hello <mask> world"] * 1000, [False] * 1000, False)
assert processes.tokenize(block) == tokenizing.tokenize(tokenizer, block)
print(*processes.ready, flush=True)
if len(sys.argv) > 2:
    try:
        while True:
            processes.tokenize(block)
    except BaseException:  # or the RuntimeError of a Condition interrupted midway
        sys.exit(130)
"""


def start_script(folder, path, *arguments):
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(script), str(path), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_an_unguarded_script_runs_once_and_leaves_nothing_behind(tmp_path, path):
    with start_script(tmp_path, path) as script:
        out, err = script.communicate(timeout=60)
    assert (script.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "main"
    assert len(lines) == 2
    assert not any(is_running(int(pid)) for pid in lines[1].split())


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL", "SIGTERM"])
def test_processes_end_with_a_parent_that_is_stopped(tmp_path, path, name):
    """In the midst of work; Ctrl-C is a signal to all of a terminal's group."""
    with start_script(tmp_path, path, "forever") as script:
        assert script.stdout.readline() == "main\n"
        pids = [int(pid) for pid in script.stdout.readline().split()]
        time.sleep(0.1)
        os.killpg(script.pid, getattr(signal, name))
        _, err = script.communicate(timeout=60)
    wait_until(lambda: not any(map(is_running, pids)))
    assert err == ""
    number = getattr(signal, name)
    assert script.returncode == (130 if name == "SIGINT" else -number)


# ---------------------------------------------------------------- in a model


def load(directory, count):
    return JinaEmbeddings.from_pretrained(
        directory,
        mesh=make_mesh(devices=jax.devices()[:1]),
        batching=Batching(token_budget=512, packing=False),
        tokenizer_processes=count,
    )


@pytest.fixture(scope="module")
def pair(directory):
    """A model without processes, and one with two that are ready."""
    models = load(directory, 0), load(directory, 2)
    ready(models[1]._processes)
    return models


LETTERS = ["".join(c for c in text if c.isascii())[:100] for text in TEXTS]


def test_vectors_are_the_same(pair, elsewhere):
    expected = pair[0].encode(LETTERS, max_length=32, long_text="windows")
    elsewhere()
    np.testing.assert_array_equal(
        pair[1].encode(LETTERS, max_length=32, long_text="windows"), expected
    )


def test_chunks_are_the_same_and_their_functions_stay_here(pair, elsewhere):
    texts = [text for text in LETTERS if text.strip()]
    here = []

    def halves(text):
        here.append(text)
        return [(0, len(text))]

    expected = pair[0].encode_chunks(texts, halves)
    elsewhere()
    found = pair[1].encode_chunks(texts, halves)
    assert sorted(here) == sorted([*texts, *texts])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.spans == theirs.spans
        np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)


def test_copies_have_processes_of_their_own(pair):
    model = pair[1]
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other._processes is not model._processes
        assert other._processes.ready == ()
        assert other._processes._count == 2
        assert other._processes._tokenizer.encode(["ab"]) == model.tokenize(["ab"])
    assert model.with_state(model.state)._processes is model._processes
    assert pair[0]._processes is None


def test_a_number_is_checked(directory):
    with pytest.raises(ValueError, match="tokenizer_processes=-1: expected an integer of at least"):
        load(directory, -1)


def pipeline(model):
    preparation = Preparation(model.tokenizer, False, 32, None, model._processes)
    return Pipeline(model.engine, model.batching, preparation, "mean")


def test_results_before_a_none_do_not_wait_for_more(pair, elsewhere):
    elsewhere()
    arrived = threading.Event()
    text = "x" * 600

    def stream():
        yield from [Request(text)] * 3
        yield None
        assert arrived.wait(60)
        yield from [Request(text)] * 2

    results = pipeline(pair[1]).run(stream())
    assert sorted(next(results).owner for _ in range(3)) == [0, 1, 2]
    arrived.set()
    assert sorted(result.owner for result in results) == [3, 4]


def test_memory_is_bounded(pair, elsewhere, monkeypatch):
    """A stream without end: little more than two pools are read, a pool's blocks under way."""
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_POOL", 4)
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_FIRST_POOL", 4)
    elsewhere()
    processes = pair[1]._processes
    read, most = itertools.count(), 0
    submit = processes._submit

    def watched(part):
        nonlocal most
        done = submit(part)
        most = max(most, processes._jobs.qsize())
        return done

    def endless():
        while True:
            next(read)
            yield Request("x" * 100)

    monkeypatch.setattr(processes, "_submit", watched)
    results = pipeline(pair[1]).run(endless())
    assert len([next(results) for _ in range(200)]) == 200
    results.close()
    pool = 4 * 512 * 4  # characters
    assert most <= pool / 500 + 1
    assert next(read) <= 200 + 4 * pool / 100
