"""JinaEmbeddings: texts in, vectors out."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jina_jax.cache import set_compilation_cache
from jina_jax.checkpoints.hub import fetch
from jina_jax.checkpoints.native import to_state
from jina_jax.config import Config
from jina_jax.convert import open_checkpoint
from jina_jax.nn.pooling import truncate
from jina_jax.runtime import distributed
from jina_jax.runtime.batching import DEFAULTS, Batching, shapes
from jina_jax.runtime.engine import Engine, Program
from jina_jax.runtime.pipeline import Item, Pipeline, ahead
from jina_jax.runtime.sharding import check_mesh, make_mesh, placer
from jina_jax.tasks import LONG_TEXT
from jina_jax.text import spans as chunking
from jina_jax.text.tokenizer import Tokenizer, check_texts

_LOGGER = logging.getLogger("jina_jax")
OUTPUT_VALUES = ("sentence_embedding", "token_embeddings")
_PASSAGE = "retrieval.passage"  # the adapter that late chunking was published with
_OVERLAP = 256


class EncodeInfo(NamedTuple):
    """What became of the tokens of each text.

    Attributes:
      tokens: int (n,), tokens used, prompt, ``<s>`` and ``</s>`` included.
      dropped: int (n,), tokens cut off at the end because of ``max_length``.
      padding: share of the computed positions that held no token, in 0 … 1.
    """

    tokens: np.ndarray
    dropped: np.ndarray
    padding: float


class Chunks(NamedTuple):
    """A text's chunks.

    Attributes:
      spans: first character of each chunk and the one after its last, in the order asked for.
      embeddings: float32 (chunks, d).
    """

    spans: list[tuple[int, int]]
    embeddings: np.ndarray


class JinaEmbeddings:
    """An encoder with its weights and its tokenizer.

    Usually made by ``from_pretrained``.

    Args:
      config: the architecture, tasks, prompts and dimensions.
      state: the encoder's weights, an ``nnx.State``, where they are to be used.
      tokenizer: text to ids.
      split_special_tokens: whether "<s>", "<mask>" and their like inside a text are plain text
        (True), or the special tokens of that name (False, what other libraries do).
      mesh: where the state lies (``jina_jax.runtime.sharding.placer``); None for one device.
      batching: how texts are put into batches; None for the platform's default.
      attn_implementation: see ``from_pretrained``.
      scan_layers: whether the state has its layers stacked (``Encoder``).
    """

    def __init__(
        self,
        config: Config,
        state: nnx.State,
        tokenizer: Tokenizer,
        *,
        split_special_tokens: bool = False,
        mesh: Mesh | None = None,
        batching: Batching | None = None,
        attn_implementation: str | None = None,
        scan_layers: bool = False,
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most vocab_size={config.vocab_size} ids, "
                f"got {tokenizer.vocab_size}"
            )
        self.config = config
        self.state = state
        self.tokenizer = tokenizer
        self.split_special_tokens = split_special_tokens
        self.engine = Engine(
            config,
            state,
            mesh=mesh,
            scan_layers=scan_layers,
            attn_implementation=attn_implementation,
        )
        self.batching = batching or DEFAULTS[self.engine.platform]

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        dtype: str | None = None,
        split_special_tokens: bool = False,
        mesh: Mesh | None = None,
        batching: Batching | None = None,
        attn_implementation: str | None = None,
        scan_layers: bool | None = None,
        compilation_cache: bool | str | os.PathLike[str] = True,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> JinaEmbeddings:
        """Load a checkpoint of any layout that ``jina_jax.convert`` knows, converting nothing.

        Args:
          name_or_path: a directory, or a Hugging Face Hub id. "tiny", or None with a warning: the
            small model that comes with the package.
          dtype: of weights and activations, "float32", "bfloat16" or "float16"; None for the
            file's own.
          split_special_tokens: treat special tokens inside a text as plain text; set it where texts
            come from strangers.
          mesh: devices to use (``jina_jax.make_mesh``); None for all of them, each with a copy of
            the weights and a part of every batch.
          batching: how texts are put into batches; None for the platform's default.
          attn_implementation: kernel to insist on, one of
            ``jina_jax.nn.attention.IMPLEMENTATIONS``; None for the best that can run
            (``jina-jax info --devices`` tells).
          scan_layers: compile one layer for all, see ``Encoder``; None for TPU only.
          compilation_cache: directory in which compiled programs are kept; True for JAX's own
            setting or, without one, a folder in ``$JINA_JAX_CACHE`` (~/.cache/jina_jax); False for
            none. It is a setting of the process.
          revision, token, cache_dir, local_files_only: as in huggingface_hub.

        Raises:
          ValueError: for an unknown dtype or kernel, a mesh that does not fit, or files that cannot
            be used (``ConfigError``, ``CheckpointError``).
          FileNotFoundError: if there is no such checkpoint.
        """
        directory = fetch(
            name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        checkpoint = open_checkpoint(directory)
        tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        set_compilation_cache(compilation_cache)
        if mesh is None and len(jax.devices()) > 1:
            mesh = make_mesh()
        place = None
        if scan_layers is None:
            scan_layers = jax.default_backend() == "tpu"
        if mesh is not None:
            check_mesh(mesh, checkpoint.config)
            place = placer(mesh, checkpoint.config, stacked=scan_layers)
        state = to_state(
            checkpoint.config, checkpoint.tensors, dtype, place=place, scan_layers=scan_layers
        )
        return cls(
            checkpoint.config,
            state,
            tokenizer,
            split_special_tokens=split_special_tokens,
            mesh=mesh,
            batching=batching,
            attn_implementation=attn_implementation,
            scan_layers=scan_layers,
        )

    def with_state(self, state: nnx.State) -> JinaEmbeddings:
        """Return the same with other weights of the same shapes; compiled programs are shared."""
        other = copy.copy(self)
        other.state, other.engine = state, self.engine.with_state(state)
        return other

    def tokenize(self, texts: str | Sequence[str]) -> Any:
        """Return the ids of each text, ``<s>`` and ``</s>`` included, without prompt or truncation.

        Args:
          texts: a list of strings; a single string gives a single list.
        """
        if isinstance(texts, str):
            return self.tokenize([texts])[0]
        return self.tokenizer.encode(texts, split_special_tokens=self.split_special_tokens)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        task: str | Sequence[str | None] | None = None,
        prompt: str | None = "auto",
        truncate_dim: int | None = None,
        max_length: int | None = None,
        long_text: str = "truncate",
        overlap: int | None = None,
        batch_size: int | None = None,
        normalize_embeddings: bool = True,
        output_value: str = "sentence_embedding",
        show_progress_bar: bool | None = None,
        return_info: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
          texts: a string or a sequence of n strings. On a mesh of several processes, the same on
            each of them.
          task: adapter to use, one of ``config.lora_adaptations``, or None for the base model; or
            a sequence with one of these for each text.
          prompt: "auto" for the prompt that belongs to each text's task, None for no prompt, or a
            string to put in front of every text.
          truncate_dim: Matryoshka dimension d to cut to before normalising; None or 0 for the
            checkpoint's own.
          max_length: most tokens that the encoder sees at once, prompt, ``<s>`` and ``</s>``
            included; None for the model's limit.
          long_text: what happens to a text of more tokens: "truncate" cuts it at the end, with a
            warning; "windows" encodes it in windows of ``max_length`` tokens and averages over the
            tokens of all.
          overlap: tokens that a window has in common with the one before, in which they count;
            None for a quarter of ``max_length``, at most 256.
          batch_size: most texts in one step, each in a row of its own; None for as many tokens as
            run best (``batching``).
          normalize_embeddings: scale embeddings to unit length (token embeddings never are).
          output_value: "sentence_embedding", or "token_embeddings" for the last hidden states.
          show_progress_bar: None shows it if the logger "jina_jax" is at INFO or below.
          return_info: also return an ``EncodeInfo``, which tells what was cut from which text, and
            how much of the work was padding.

        Returns:
          float32 (n, d), or (d,) for a string. With "token_embeddings" a list of float32
          (tokens, d), or one for a string. With ``return_info`` a pair of that and an
          ``EncodeInfo``.

        Raises:
          ValueError: for an argument out of range, or a text that is not a valid string; the
            message names it.
        """
        single = isinstance(texts, str)
        texts = check_texts([texts] if isinstance(texts, str) else texts)
        tasks = self._tasks(task, len(texts))
        task_ids = np.array([self.config.task_id(task) for task in tasks], np.int32)
        dim = self.config.embedding_dim(truncate_dim)
        max_length = self._max_length(max_length)
        if output_value not in OUTPUT_VALUES:
            raise ValueError(f"output_value={output_value!r}: expected one of {OUTPUT_VALUES}")
        if long_text not in LONG_TEXT:
            raise ValueError(f"long_text={long_text!r}: expected one of {LONG_TEXT}")
        if long_text == "windows" and (
            output_value != OUTPUT_VALUES[0] or self.config.emb_pooler != "mean"
        ):
            raise ValueError(
                f"long_text='windows': expected sentence embeddings of a model with the 'mean' "
                f"pooler, got output_value={output_value!r}, pooler {self.config.emb_pooler!r}"
            )
        overlap = _overlap(overlap, max_length)
        tokens_wanted = output_value == "token_embeddings"
        tokens, dropped = np.zeros((2, len(texts)), np.int64)
        batching = self._batching(batch_size)
        results: Any = (
            [None] * len(texts) if tokens_wanted else np.zeros((len(texts), dim), np.float32)
        )
        texts = self._with_prompts(texts, tasks, prompt)

        def items(pool: list[int], ids: list[list[int]]) -> Iterator[Item]:
            for text, row in zip(pool, ids, strict=True):
                if long_text == "truncate" and len(row) > max_length:
                    dropped[text] = len(row) - max_length
                    row = [*row[: max_length - 1], row[-1]]
                tokens[text] = len(row)
                yield from _windowed(text, row, max_length, overlap)

        pipeline = Pipeline(self.engine, batching, task_ids)
        pools = self._pools(pipeline, texts, items)
        pooling = None if tokens_wanted else self.config.emb_pooler
        with tqdm(total=len(texts), unit="text", disable=not _shown(show_progress_bar)) as progress:
            for item, vectors in pipeline.run(pools, pooling):
                if tokens_wanted:
                    results[item.text] = vectors[:, :dim].copy()
                elif item.pieces is None:
                    results[item.text] = vectors[0, :dim]
                else:
                    (_, start, stop), *_ = item.pieces
                    share = np.float32((stop - start) / tokens[item.text])
                    results[item.text] += share * vectors[0, :dim]
                progress.update(item.is_last)
        _tell_dropped(dropped, max_length)
        _LOGGER.debug("%d texts; padding: %.1f %%", len(texts), 100 * pipeline.padding)
        embeddings: Any = results
        if not tokens_wanted:
            embeddings = truncate(results, dim, normalize=normalize_embeddings)
        embeddings = embeddings[0] if single else embeddings
        info = EncodeInfo(tokens, dropped, pipeline.padding)
        return (embeddings, info) if return_info else embeddings

    def encode_chunks(
        self,
        texts: str | Sequence[str],
        chunks: int | str | chunking.Chunker | Sequence[Any],
        *,
        task: str | Sequence[str | None] | None = "auto",
        prompt: str | None = "auto",
        truncate_dim: int | None = None,
        max_length: int | None = None,
        overlap: int | None = None,
        normalize_embeddings: bool = True,
        show_progress_bar: bool | None = None,
    ) -> Any:
        """Embed chunks of texts, each in the light of its whole text: late chunking.

        A text is encoded whole, and each chunk's vector is the mean of its own tokens' (arXiv
        2409.04701). The first chunk also takes ``<s>`` and the prompt, the last one ``</s>``.

        Args:
          texts: a string or a sequence of n strings.
          chunks: an integer for chunks of that many tokens; "sentences" for one a sentence; a
            function from a text to spans (``jina_jax.text.spans`` has some); or the spans
            themselves, for a single text [(start, stop), …] in characters, for several a list of
            these. Spans may overlap and need not cover the text.
          task: adapter, as for ``encode``; "auto" for "retrieval.passage" where there is one.
          prompt, truncate_dim, normalize_embeddings, show_progress_bar: as for ``encode``.
          max_length: most tokens that the encoder sees at once. Longer texts are encoded in windows
            of so many; nothing is cut off.
          overlap: tokens that a window has in common with the one before, in which they count;
            None for a quarter of ``max_length``, at most 256.

        Returns:
          ``Chunks`` for a string, a list of them for a sequence: a vector for every chunk asked
          for.

        Raises:
          ValueError: for an argument out of range, a span that is not in its text or covers no
            token, or a text that is not a valid string; the message names it.
        """
        single = isinstance(texts, str)
        texts = check_texts([texts] if isinstance(texts, str) else texts)
        if task == "auto":
            task = _PASSAGE if _PASSAGE in self.config.lora_adaptations else None
        tasks = self._tasks(task, len(texts))
        task_ids = np.array([self.config.task_id(task) for task in tasks], np.int32)
        dim = self.config.embedding_dim(truncate_dim)
        max_length = self._max_length(max_length)
        overlap = _overlap(overlap, max_length)
        prompted = self._with_prompts(texts, tasks, prompt)
        wanted = _spans_of(chunks, texts, single)
        spans: list[list[chunking.Span]] = [[] for _ in texts]
        sums: list[np.ndarray] = [np.zeros((0, dim), np.float32)] * len(texts)
        counts: list[np.ndarray] = [np.zeros(0)] * len(texts)

        def items(pool: list[int]) -> Iterator[Item]:
            for text in pool:
                ids, offsets = self.tokenizer.encode_with_offsets(
                    prompted[text], split_special_tokens=self.split_special_tokens
                )
                prefix = len(prompted[text]) - len(texts[text])
                first, _, offsets = chunking.content_tokens(offsets, prefix)
                found = wanted(text, offsets)
                found = list(found) if isinstance(found, Iterator) else found
                ranges = chunking.token_spans(offsets, found, texts[text])
                spans[text] = [(int(start), int(stop)) for start, stop in found]
                ranges = chunking.with_special_tokens(ranges, first, len(ids))
                sums[text] = np.zeros((len(ranges), dim), np.float32)
                counts[text] = ranges[:, 1] - ranges[:, 0]
                yield from _windowed(text, ids, max_length, overlap, ranges)

        pipeline = Pipeline(self.engine, self.batching, task_ids)
        if distributed.spans_processes(self.engine.mesh):
            distributed.check_same(prompted)
        pools = ahead(list(items(pool)) for pool in pipeline.pools(texts))
        with tqdm(total=len(texts), unit="text", disable=not _shown(show_progress_bar)) as progress:
            for item, vectors in pipeline.run(pools, "mean"):
                for (chunk, start, stop), vector in zip(item.pieces or (), vectors, strict=False):
                    weight = (stop - start) / counts[item.text][chunk]
                    sums[item.text][chunk] += np.float32(weight) * vector[:dim]
                progress.update(item.is_last)
        done = [
            Chunks(mine, truncate(vectors, dim, normalize=normalize_embeddings))
            for mine, vectors in zip(spans, sums, strict=True)
        ]
        return done[0] if single else done

    def warmup(
        self,
        max_length: int = 512,
        *,
        tasks: bool | None = None,
        batch_size: int | None = None,
        threads: int = 2,
    ) -> int:
        """Compile ahead what ``encode`` may need, or read it from the compilation cache.

        Token embeddings, windows of long texts and chunks have programs of their own, which are
        compiled when they come.

        Args:
          max_length: tokens of the longest text to expect.
          tasks: whether texts will have a task; None for both cases.
          batch_size: as for ``encode``.
          threads: programs compiled at once.

        Returns:
          The number of programs that are ready now.
        """
        longest = self._max_length(min(max_length, self.config.max_length))
        found = shapes(self._batching(batch_size), longest, self.engine.row_multiple)
        cases = (True, False) if tasks is None else (tasks,)
        adapted = [case for case in cases if not case or self.config.num_tasks]
        pooling = self.config.emb_pooler
        self.engine.compile(
            [Program(*shape, None, case, pooling) for shape in found for case in adapted], threads
        )
        return self.engine.compiled

    def _tasks(self, task: str | Sequence[str | None] | None, count: int) -> list[str | None]:
        """Spread one task over all texts, or check that there is one for each."""
        if task is None or isinstance(task, str):
            self.config.task_id(task)  # a wrong name is an error without any text, too
            return [task] * count
        if not isinstance(task, Sequence):
            raise ValueError(f"task={task!r}: expected None, a string, or one of these a text")
        if len(task) != count:
            raise ValueError(f"task: expected one for each of {count} texts, got {len(task)}")
        return list(task)

    def _batching(self, batch_size: int | None) -> Batching:
        if batch_size is None:
            return self.batching
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: expected None or a positive integer")
        return dataclasses.replace(self.batching, row_lengths=(), max_rows=batch_size)

    def _max_length(self, max_length: int | None) -> int:
        limit = self.config.max_length
        max_length = limit if max_length is None else max_length
        if type(max_length) is not int or not 2 <= max_length <= limit:
            raise ValueError(f"max_length={max_length!r}: expected an integer from 2 to {limit}")
        return max_length

    def _with_prompts(
        self, texts: list[str], tasks: list[str | None], prompt: str | None
    ) -> list[str]:
        if prompt is None:
            return texts
        if not isinstance(prompt, str):
            raise ValueError(f"prompt={prompt!r}: expected 'auto', None or a string")
        if prompt != "auto":
            return [prompt + text for text in texts]
        prompts = {task: self.config.prompt(task) for task in set(tasks)}
        return [prompts[task] + text for task, text in zip(tasks, texts, strict=True)]

    def _pools(
        self,
        pipeline: Pipeline,
        texts: list[str],
        items: Callable[[list[int], list[list[int]]], Iterator[Item]],
    ) -> Iterator[list[Item]]:
        """Tokenise pool by pool ahead of the device; on several processes, a share on each."""
        if distributed.spans_processes(self.engine.mesh):
            ids = distributed.share_tokenization(texts, self.tokenize)
            yield list(items(list(range(len(texts))), ids))
            return
        pools = pipeline.pools(texts)
        yield from ahead(
            list(items(pool, self.tokenize([texts[i] for i in pool]))) for pool in pools
        )


def _windowed(
    text: int, ids: list[int], size: int, overlap: int, ranges: np.ndarray | None = None
) -> Iterator[Item]:
    """Make a text's items: one, or one for each window that ranges of its tokens touch."""
    if ranges is None:
        if len(ids) <= size:
            yield Item(text, ids)
            return
        ranges = np.array([[0, len(ids)]])
    windows = chunking.windows(len(ids), size, overlap)
    parts = zip(windows, chunking.split_ranges(ranges, windows), strict=True)
    touched = [(window, pieces) for window, pieces in parts if pieces]
    for i, (window, pieces) in enumerate(touched, start=1):
        yield Item(text, ids[window.start : window.stop], pieces, is_last=i == len(touched))


def _spans_of(
    chunks: Any, texts: list[str], single: bool
) -> Callable[[int, list[chunking.Span]], Sequence[chunking.Span]]:
    """Return a function (text, its tokens' offsets) → the spans asked for."""
    if isinstance(chunks, bool | int):
        return lambda text, offsets: chunking.chunk_by_tokens(offsets, chunks)
    if isinstance(chunks, str) and chunks == "sentences":
        return lambda text, offsets: chunking.chunk_by_sentences(texts[text])
    if callable(chunks):
        return lambda text, offsets: chunks(texts[text])
    if isinstance(chunks, str) or not isinstance(chunks, Sequence | np.ndarray):
        raise ValueError(
            f"chunks={chunks!r}: expected a number of tokens, 'sentences', a function or spans"
        )
    spans: Any = [chunks] if single else chunks
    if len(spans) != len(texts):
        raise ValueError(f"chunks: expected spans for each of {len(texts)} texts, got {len(spans)}")
    return lambda text, offsets: spans[text]


def _overlap(overlap: int | None, max_length: int) -> int:
    if overlap is None:
        return min(_OVERLAP, max_length // 4)
    if type(overlap) is not int or not 0 <= overlap < max_length:
        raise ValueError(
            f"overlap={overlap!r}: expected an integer from 0 to max_length - 1 = {max_length - 1}"
        )
    return overlap


def _tell_dropped(dropped: np.ndarray, max_length: int) -> None:
    if dropped.any():
        warnings.warn(
            f"{np.count_nonzero(dropped)} of {len(dropped)} texts were longer than "
            f"max_length={max_length} tokens; {dropped.sum()} tokens were cut off",
            stacklevel=3,
        )


def _shown(show_progress_bar: bool | None) -> bool:
    if show_progress_bar is None:
        return _LOGGER.getEffectiveLevel() <= logging.INFO
    return show_progress_bar
