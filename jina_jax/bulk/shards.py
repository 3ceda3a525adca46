"""A worker: it reads shards, encodes their texts, and commits their files, without a pause.

A thread reads, one prepares texts (``jina_jax.runtime.pipeline``), the caller's computes, and one
writes; each is at most some blocks of rows ahead of the next. Texts of different shards share no
step, so that the bytes of a shard do not depend on those that were computed before.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from jina_jax.bulk.inputs import InputFile, describe
from jina_jax.bulk.output import ShardFiles
from jina_jax.bulk.plan import Manifest
from jina_jax.bulk.rows import Block, Text
from jina_jax.bulk.sources import MOST_BYTES, MOST_ROWS, Batch, open_source, smaller
from jina_jax.bulk.stores import Store
from jina_jax.runtime.arguments import check_mean_pooler, pick_overlap
from jina_jax.runtime.pipeline import Pipeline, ahead
from jina_jax.runtime.requests import Request

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_BLOCKS_TO_WRITE = 2
# Rows, and bytes of them, that may wait for the pipeline to have texts for a pool: where most are
# null or duplicates that could be all rows of a file.
_ROWS_THAT_WAIT = 8 * MOST_ROWS
_BYTES_THAT_WAIT = 8 * MOST_BYTES
# Of rows that are read together with chunks, whose vectors may have forty times the bytes of texts.
_BYTES_TO_CHUNK = 1 << 20


class Progress(NamedTuple):
    """What a worker has just written.

    Attributes:
      shard: of which.
      rows, tokens, bad: in the output, encoded, and not in the output.
      is_done: whether the shard is in the output now.
      waits: seconds so far in which the device waited for "input", read and tokenised, and for
        "output".
      padding: share of the positions computed so far that held no token.
    """

    shard: int
    rows: int
    tokens: int
    bad: int
    is_done: bool
    waits: dict[str, float]
    padding: float


@dataclasses.dataclass(eq=False)
class _Waiting:
    """Rows until they are written; without a block, the end of a shard."""

    files: ShardFiles
    url: str
    block: Block | None
    missing: int


class Worker:
    """Computes shards of a plan.

    Args:
      model: the plan's, loaded with the plan's settings.
      manifest: the plan.
      store: the output.
      report: called with what was written, in the thread that writes.
      stop: called after an error, in any thread, so that shards that wait for other workers end.

    Raises:
      ValueError: for chunks or windows of a model whose pooler is not the mean.
    """

    def __init__(
        self,
        model: JinaEmbeddings,
        manifest: Manifest,
        store: Store,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], None] = lambda: None,
    ):
        self._model, self._manifest, self._store = model, manifest, store
        self._report, self._stop = report, stop
        self._failed = False
        settings = manifest.settings
        overlap = None
        self._most_bytes = MOST_BYTES if settings.chunks is None else _BYTES_TO_CHUNK
        if settings.chunks is not None or settings.long_text == "windows":
            check_mean_pooler(model.config, "chunks" if settings.chunks else "long_text='windows'")
            overlap = pick_overlap(None, settings.max_length)
        self._pipeline = Pipeline(
            model.engine,
            model.batching,
            model.preparation(settings.max_length, overlap),
            model.config.emb_pooler,
        )
        self._open: deque[_Waiting] = deque()
        self._owners: dict[int, tuple[_Waiting, Text]] = {}
        self._writing: deque[Future[None]] = deque()
        self._files: deque[ShardFiles] = deque()  # of shards that are not committed
        self._passing = threading.Lock()
        self._waited = 0.0

    def run(self, shards: Iterable[int]) -> None:
        """Compute and commit shards.

        Args:
          shards: their numbers; the next one is taken while those before it are computed, and one
            that is late lets these be committed.

        Raises:
          ValueError: for an input that has changed or cannot be read.
          OSError: if a file cannot be read or written.
        """
        with ThreadPoolExecutor(1, "jina-jax-write") as pool:
            self._pool = pool
            try:
                for result in self._pipeline.run(self._requests(shards)):
                    waiting, text = self._owners.pop(result.owner)
                    text.add(result)
                    waiting.missing -= 1
                    if not waiting.missing:
                        self._pass_on()
                self._pass_on(most=0)
            except BaseException:
                self._fail()
                raise
            finally:
                pool.shutdown()
                for files in list(self._files):
                    files.close()

    # ------------------------------------------------------------ in the thread that prepares

    def _requests(self, shards: Iterable[int]) -> Iterator[Request | None]:
        """Yield the texts of shards, and None behind each shard."""
        manifest, position = self._manifest, 0
        for shard in shards:
            files = ShardFiles(manifest, shard, self._store)
            self._files.append(files)
            seen: dict[Any, Text] | None = {} if manifest.settings.dedup else None
            rows = size = 0
            for url, batch in ahead(self._batches(shard)):
                if self._failed:
                    return
                block = Block(batch, manifest.settings, self._model.config, seen)
                waiting = _Waiting(files, url, block, len(block.texts))
                texts = self._ordered(block.texts)
                self._owners |= {position + k: (waiting, text) for k, text in enumerate(texts)}
                self._open.append(waiting)
                position += len(texts)
                yield from (text.request for text in texts)
                rows, size = rows + batch.table.num_rows, size + batch.table.nbytes
                if rows >= _ROWS_THAT_WAIT or size >= _BYTES_THAT_WAIT:
                    rows = size = 0
                    yield None
                if not texts:
                    self._pass_on()
            self._open.append(_Waiting(files, "", None, 0))
            self._pass_on()
            yield None

    def _ordered(self, texts: list[Text]) -> list[Text]:
        """Return texts as they are encoded: those that are padded alike together."""
        if self._model.batching.row_lengths:
            return texts
        return sorted(texts, key=lambda text: -len(text.request.text))

    def _batches(self, shard: int) -> Iterator[tuple[str, Batch]]:
        for piece in self._manifest.shards[shard]:
            file = self._manifest.inputs[piece.file]
            _check_unchanged(file)
            for batch in open_source(file).read(piece, self._manifest.columns, is_checked=True):
                for part in smaller(batch, self._most_bytes):
                    yield file.url, part
            _check_unchanged(file)

    # ------------------------------------------------------------ in both

    def _pass_on(self, most: int = _BLOCKS_TO_WRITE) -> None:
        """Let complete blocks be written, in their order; wait until few are left."""
        with self._passing:
            while self._open and not self._open[0].missing:
                self._writing.append(self._pool.submit(self._write, self._open.popleft()))
            begun = time.perf_counter()
            while len(self._writing) > most:
                self._writing.popleft().result()
            self._waited += time.perf_counter() - begun

    def _fail(self) -> None:
        """Let all threads end, and commit nothing any more."""
        self._failed = True
        self._stop()

    # ------------------------------------------------------------ in the thread that writes

    def _write(self, waiting: _Waiting) -> None:
        """Write a block, or commit a shard; nothing after an error, as it would lack rows."""
        if self._failed:
            return
        try:
            self._put(waiting)
        except BaseException:
            self._fail()
            raise

    def _put(self, waiting: _Waiting) -> None:
        files, block = waiting.files, waiting.block
        if block is None:
            self._files.popleft()
            files.commit({"padding": round(self._pipeline.padding, 4), "waits": self._waits})
            self._report(Progress(files.shard, 0, 0, 0, True, self._waits, self._pipeline.padding))
            return
        written = 0
        for rows in block.finish(self._model.project):
            files.write(waiting.url, rows)
            written += rows.table.num_rows
        tokens, bad = sum(text.tokens for text in block.texts), len(block.bad)
        files.count(waiting.url, block.bad, {"tokens": tokens, **block.counts})
        progress = (files.shard, written, tokens, bad, False, self._waits, self._pipeline.padding)
        self._report(Progress(*progress))

    @property
    def _waits(self) -> dict[str, float]:
        found = {"input": self._pipeline.waited, "output": self._waited}
        return {name: round(seconds, 3) for name, seconds in found.items()}


def _check_unchanged(file: InputFile) -> None:
    now = describe(file.url)
    if now != file:
        raise ValueError(f"{file.url}: has changed since the plan was made")
