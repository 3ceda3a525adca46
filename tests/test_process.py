"""A library leaves the process alone: what it sets, it puts back."""

import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from runs import PAIRS, ROWS, write_data

from jina_jax import JinaEmbeddings
from jina_jax.runtime.engine import Engine

CODE = """
import csv, gc, json, locale, logging, os, signal, sys, warnings
import jax

names = sorted(name for name in jax.config.values if not name.startswith("jax_pgle"))

def process():
    return {
        "jax": {name: repr(jax.config.values[name]) for name in names},
        "csv": csv.field_size_limit(),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "levels": {
            name: logging.getLogger(name).level for name in ("", "absl", "jax", "orbax", "jina_jax")
        },
        "handlers": {name: len(logging.getLogger(name).handlers) for name in ("", "jina_jax")},
        "hooks": [hook is own for hook, own in (
            (sys.excepthook, sys.__excepthook__),
            (sys.unraisablehook, sys.__unraisablehook__),
        )],
        "interrupt": repr(signal.getsignal(signal.SIGINT)),
        "filters": len(warnings.filters),
        "environment": sorted(os.environ.items()),
        "directory": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
        "locale": locale.setlocale(locale.LC_ALL),
    }

import absl.logging, numpy, optax, flax.nnx, orbax.checkpoint, tqdm, pydantic, pyarrow, sklearn
import fsspec, jax.experimental.pallas.tpu
import scipy.stats, regex, sentencepiece, huggingface_hub  # what others set is theirs
before = process()

import importlib, pkgutil
import jina_jax, jina_jax.convert
for module in pkgutil.walk_packages(jina_jax.__path__, "jina_jax."):
    if not module.name.startswith("jina_jax.integrations.") and not module.name.endswith(
        ("mteb_model", "on_ray", "__main__")
    ):
        importlib.import_module(module.name)
print(json.dumps([before, process()]))

from jina_jax import JinaEmbeddings
model = JinaEmbeddings.from_pretrained(sys.argv[1])
model.encode(["a", "b" * 20], task="separation", long_text="windows", max_length=16)
model.encode_chunks("a b. c", "sentences")
print(json.dumps([before, process()]))

from jina_jax.training import Settings, Trainer
Trainer(Settings.from_dict(json.load(open(sys.argv[2])))).fit()
print(json.dumps([before, process()]))
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """The process before and after importing, encoding and training."""
    directory = write_data(tmp_path_factory.mktemp("process"))
    settings = directory / "settings.json"
    fields = {
        "output": "run",
        "model": {"name": "model", "tasks": ["text-matching"], "max_length": 128},
        "optimizer": {"learning_rate": 1e-2, "steps": 2},
        "batches": {"size": ROWS},
        "data": [PAIRS],
    }
    settings.write_text(json.dumps(fields), encoding="utf-8")
    command = [sys.executable, "-c", CODE, str(directory / "model"), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=directory)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[{")]


@pytest.mark.parametrize("stage", [0, 1, 2], ids=["imported", "encoded", "trained"])
def test_the_process_is_as_it_was(states, stage):
    before, after = states[stage]
    assert after == before


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore")
from jina_jax import JinaEmbeddings
model = JinaEmbeddings.from_pretrained(sys.argv[1])
if sys.argv[2] == "used":
    model.encode("a")
child = os.fork()
if child == 0:
    for call in (
        lambda: model.encode("a"),
        lambda: model.encode_chunks("a", "sentences"),
        lambda: model.warmup(16),
        lambda: model.merged("separation"),
        lambda: model.with_state(model.state),
        lambda: model.functional(),
        lambda: JinaEmbeddings.from_pretrained(sys.argv[1]),
    ):
        try:
            call()
        except RuntimeError as error:
            os.write(1, f"{error}\\n".encode())
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("before", ["used", "unused"])
def test_a_forked_process_is_refused_at_once(directory, before):
    command = [sys.executable, "-c", FORKED, directory, before]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert all("forked after the model was loaded" in line and "'spawn'" in line for line in lines)


FORKED_BEFORE = """
import os, sys, warnings
warnings.simplefilter("ignore")
from jina_jax import JinaEmbeddings
try:
    JinaEmbeddings.from_pretrained("/nothing")
except FileNotFoundError:
    pass
if os.fork() == 0:
    print(JinaEmbeddings.from_pretrained(sys.argv[1]).encode("a").shape, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_that_is_forked_before_any_model_may_load_one(directory):
    assert run(FORKED_BEFORE, directory).startswith("(")


SPAWNED = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import numpy as np

def keep(given):
    global model
    model = given

def encode(texts):
    return model.encode(texts, task="separation")

if __name__ == "__main__":
    from jina_jax import JinaEmbeddings
    own = JinaEmbeddings.from_pretrained(sys.argv[1])
    expected = own.encode(["a", "b c"], task="separation")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, keep, (own,)) as pool:
        (found,) = pool.map(encode, [["a", "b c"]])
    assert np.array_equal(found, expected)
"""


def run(code, *args):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *([str(code)] if not isinstance(code, str) else ["-c", code]), *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_spawned_pool_gets_the_model(directory, tmp_path):
    (tmp_path / "main.py").write_text(SPAWNED)
    run(tmp_path / "main.py", directory)


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from jina_jax import JinaEmbeddings
from jina_jax.runtime.engine import Engine

model = JinaEmbeddings.from_pretrained(sys.argv[1])
expected = model.encode(["a", "b c"])
start, calls, texts = Engine._start, 0, ["word %d" % i for i in range(3000)]

def interrupt(*args):
    global calls
    calls += 1
    if calls == 3:
        signal.raise_signal(signal.SIGINT)
    return start(*args)

Engine._start = interrupt
caught = 0
for _ in range(2):
    calls = 0
    try:
        model.encode(texts, batch_size=64)
    except KeyboardInterrupt:
        caught += 1
    assert np.array_equal(model.encode(["a", "b c"]), expected)
print(caught)
"""


def test_an_interruption_leaves_the_model_usable(directory):
    assert int(run(INTERRUPTED, directory)) == 2


def test_threads_share_a_model(directory, monkeypatch):
    """Each program is compiled once, and vectors are those of one thread, of asyncio too."""
    lowered, lower = [], Engine.lower

    def slowly(self, program):
        lowered.append(program)
        time.sleep(0.2)  # for other threads to ask for the same
        return lower(self, program)

    monkeypatch.setattr(Engine, "lower", slowly)
    jobs = [[f"{i} word " * (i % 3 + 1)] * 3 for i in range(12)]
    model = JinaEmbeddings.from_pretrained(directory, compilation_cache=False)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(model.encode, jobs))
    assert 0 < len(lowered) == len(set(lowered)) == model.engine.compiled

    async def together():
        return await asyncio.gather(*(asyncio.to_thread(model.encode, job) for job in jobs))

    for vectors, others, job in zip(found, asyncio.run(together()), jobs, strict=True):
        np.testing.assert_array_equal(vectors, model.encode(job))
        np.testing.assert_array_equal(vectors, others)


@pytest.mark.parametrize("setting", [jax.disable_jit, jax.debug_nans])
def test_settings_for_debugging(directory, model, setting):
    texts = ["a", "b c"]
    expected = model.encode(texts, task="separation")
    with setting(True):
        found = JinaEmbeddings.from_pretrained(directory).encode(texts, task="separation")
    np.testing.assert_allclose(found, expected, atol=1e-5)


AT_EXIT = """
import atexit, sys
from jina_jax import JinaEmbeddings
model = JinaEmbeddings.from_pretrained(sys.argv[1])
model.encode("a")
atexit.register(lambda: print(model.encode("a").shape))
"""


def test_a_program_may_encode_at_its_exit(directory):
    assert run(AT_EXIT, directory).startswith("(")
