"""Texts to tokens, in this thread or in processes beside it, which do not share its lock.

A process is a fresh interpreter that imports the tokenizer and nothing of JAX. It never runs the
user's main module, as one of ``multiprocessing`` would. It answers blocks of texts from its
standard input on its standard output, and ends when its parent does, however that ends.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from jina_jax.text.spans import Span
from jina_jax.text.tokenizer import Tokenizer

_BLOCK = 1 << 16  # characters per block: some hundred texts, 30 ms of tokenising
_LEAST = 1 << 20  # characters for which processes are started: half a second in one thread
_MOST_PROCESSES = 8  # 4 to 5 million tokens per second
_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from jina_jax.runtime.tokenizing import serve; serve()"
)
# NumPy would start a thread per core in each process.
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_DEATH = (
    "a process that tokenises ended with exit code {} (-9: killed, perhaps for lack of memory); "
    "tokenizer_processes=0 does without such processes"
)
_DEATHS = (EOFError, OSError, pickle.UnpicklingError)


class Tokens(NamedTuple):
    """A prompted text's token ids; with chunks also the characters of each, else None."""

    ids: list[int]
    offsets: list[Span] | None = None


class Block(NamedTuple):
    """Texts to tokenise.

    Attributes:
      texts: with their prompts.
      aligned: whether the characters of each token are asked for, per text.
      split_special_tokens: see ``Tokenizer.encode``.
    """

    texts: Sequence[str]
    aligned: Sequence[bool]
    split_special_tokens: bool


def tokenize(tokenizer: Tokenizer, block: Block) -> list[Tokens]:
    """Tokenise the texts of a block, in this thread.

    Raises:
      ValueError: as ``Tokenizer.encode``.
    """
    texts, aligned, special = block
    plain = [text for text, has_offsets in zip(texts, aligned, strict=True) if not has_offsets]
    ids = iter(tokenizer.encode(plain, split_special_tokens=special))
    return [
        Tokens(*tokenizer.encode_with_offsets(text, split_special_tokens=special))
        if has_offsets
        else Tokens(next(ids))
        for text, has_offsets in zip(texts, aligned, strict=True)
    ]


def usual_processes(platform: str) -> int:
    """Return how many processes pay: half of the cores beside an accelerator, from 4 cores on."""
    if platform == "cpu" or not sys.executable or getattr(sys, "frozen", False):
        return 0
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(cores // 2, _MOST_PROCESSES) if cores >= 4 else 0


class TokenizerProcesses:
    """Processes that tokenise large inputs; they start with the first one and end with the object.

    Copies and pickles start their own. Threads may share one object.

    Args:
      tokenizer: text to ids.
      count: number of processes.
    """

    def __init__(self, tokenizer: Tokenizer, count: int):
        self._tokenizer, self._count = tokenizer, count
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[tuple[Block, Future] | None] = SimpleQueue()
        self._ready: list[int] = []
        self._end: weakref.finalize | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenizerProcesses, (self._tokenizer, self._count)

    @property
    def ready(self) -> tuple[int, ...]:
        """Ids of the processes that have loaded the tokenizer."""
        return tuple(self._ready)

    def start(self) -> None:
        """Start the processes, unless they have been; does not wait for them."""
        with self._lock:
            if self._end is not None:
                return
            content = pickle.dumps(self._tokenizer)
            processes = [_launch() for _ in range(self._count)]
            threads = [
                threading.Thread(
                    target=_work, args=(process, content, self._jobs, self._ready), daemon=True
                )
                for process in processes
            ]
            self._end = weakref.finalize(self, _end, processes, threads, self._jobs)
            for thread in threads:
                thread.start()

    def close(self) -> None:
        """End the processes; the next large input starts new ones."""
        with self._lock:
            end, self._end = self._end, None
            self._jobs, self._ready = SimpleQueue(), []
        if end is not None:
            end()

    def tokenize(self, block: Block) -> list[Tokens]:
        """Tokenise the texts of a block, here as long as no process is ready.

        Raises:
          ValueError: as ``Tokenizer.encode``.
          RuntimeError: if a process has ended by itself.
        """
        size = sum(map(len, block.texts))
        if size >= _LEAST:
            self.start()
        elif size < 2 * _BLOCK or not self._ready:
            return tokenize(self._tokenizer, block)
        try:
            parts = [self._submit(part) for part in _cut(block)]
            return list(itertools.chain.from_iterable(part.result() for part in parts))
        except ValueError:  # is raised here with positions in the whole block
            return tokenize(self._tokenizer, block)
        except RuntimeError:
            self.close()
            raise

    def _submit(self, part: Block) -> Future:
        """Give a part to the processes, or tokenise it if none is ready."""
        done: Future = Future()
        with self._lock:  # after ``close`` nobody reads the jobs
            if self._ready:
                self._jobs.put((part, done))
                return done
        done.set_result(tokenize(self._tokenizer, part))
        return done


def serve() -> None:
    """Read a tokenizer and then blocks from standard input; write the tokens of each."""
    given, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    with contextlib.suppress(EOFError, BrokenPipeError):
        tokenizer = pickle.load(given)
        answer: Any = True
        while True:
            pickle.dump(answer, answers)
            answers.flush()
            block = pickle.load(given)
            try:
                answer = _pack(tokenize(tokenizer, block))
            except Exception:
                answer = None
    os._exit(0)  # nothing is to be flushed into a broken pipe


def _launch() -> subprocess.Popen:
    """Start a process, in a session of its own: Ctrl-C is for the parent."""
    return subprocess.Popen(
        [sys.executable, "-c", _CODE, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT},
        start_new_session=True,
    )


def _work(process: subprocess.Popen, content: bytes, jobs: SimpleQueue, ready: list[int]) -> None:
    """Pass jobs to a process, in a thread of its own; if it has ended, fail each of them."""
    with contextlib.suppress(*_DEATHS):
        _ask(process, content)
        ready.append(process.pid)
    with contextlib.suppress(OSError), process:  # closes its pipes
        for part, done in iter(jobs.get, None):
            try:
                done.set_result(_unpack(part, _ask(process, pickle.dumps(part))))
            except _DEATHS:
                process.kill()  # one that answers nonsense would be waited for forever
                done.set_exception(RuntimeError(_DEATH.format(process.wait())))
            except Exception as error:
                done.set_exception(error)


def _ask(process: subprocess.Popen, content: bytes) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(content)
    process.stdin.flush()
    answer = pickle.load(process.stdout)
    if answer is None:
        raise ValueError("refused by the tokenizer")
    return answer


def _end(
    processes: list[subprocess.Popen], threads: list[threading.Thread], jobs: SimpleQueue
) -> None:
    """End processes and their threads; jobs that are left fail."""
    for process in processes:
        jobs.put(None)
        process.kill()
    for process, thread in zip(processes, threads, strict=True):
        process.wait()
        if thread is not threading.current_thread():  # which may be collecting garbage
            thread.join()


def _cut(block: Block) -> Iterator[Block]:
    """Cut a block into parts of about ``_BLOCK`` characters."""
    texts, aligned, special = block
    start = size = 0
    for stop, text in enumerate(texts, 1):
        size += len(text) + 1
        if size >= _BLOCK or stop == len(texts):
            yield Block(texts[start:stop], aligned[start:stop], special)
            start, size = stop, 0


def _pack(tokens: list[Tokens]) -> tuple[np.ndarray, ...]:
    """Return numbers of ids, all ids and the ends of all offsets, int32."""
    counts = [len(own.ids) for own in tokens]
    ids = itertools.chain.from_iterable(own.ids for own in tokens)
    spans = itertools.chain.from_iterable(own.offsets or () for own in tokens)
    ends = itertools.chain.from_iterable(spans)
    return np.array(counts, np.int32), np.fromiter(ids, np.int32), np.fromiter(ends, np.int32)


def _unpack(block: Block, packed: tuple[np.ndarray, ...]) -> list[Tokens]:
    counts, ids, ends = (array.tolist() for array in packed)
    spans = zip(ends[::2], ends[1::2], strict=True)
    starts = itertools.accumulate(counts, initial=0)
    return [
        Tokens(
            ids[start : start + count],
            list(itertools.islice(spans, count)) if has_offsets else None,
        )
        for start, count, has_offsets in zip(starts, counts, block.aligned, strict=False)
    ]
