"""A model on its devices: encoder, tokenizer, settings, and the way of requests through them."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Self, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from jina_jax.checks import check_flags, check_integer
from jina_jax.config import Config
from jina_jax.nn.dense import project_on_host
from jina_jax.runtime.batching import Batching, CompleteBatching, shapes
from jina_jax.runtime.engine import Engine, Program
from jina_jax.runtime.pipeline import Pipeline
from jina_jax.runtime.requests import Preparation, Request
from jina_jax.runtime.results import EncodeInfo
from jina_jax.runtime.similarity import pair_similarities, similarities
from jina_jax.runtime.steps import Result
from jina_jax.runtime.tokenizing import TokenizerProcesses, usual_processes
from jina_jax.text.tokenizer import Tokenizer

_LOGGER = logging.getLogger("jina_jax")


class Model:
    """Weights, tokenizer and settings; copies and pickles compile their programs anew.

    Threads may share a model, those of ``asyncio.to_thread`` too. Processes must be spawned, as JAX
    does not survive a fork. A pickle has the weights; or each process loads the model once:

    >>> def load():
    ...     global model
    ...     model = JinaEmbeddings.from_pretrained("jinaai/jina-embeddings-v3")
    >>> def encode(texts):
    ...     return model.encode(texts)
    >>> with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), load) as pool:
    ...     vectors = np.concatenate(list(pool.map(encode, batches)))

    Args:
      config: architecture, tasks, prompts and dimensions.
      state: the encoder's weights, an ``nnx.State``, where they are to be used.
      tokenizer: text to ids.
      split_special_tokens, batching, tokenizer_processes, attn_implementation, compilation_cache:
        see ``JinaEmbeddings.from_pretrained``.
      mesh: devices of the state (``jina_jax.runtime.sharding.placer``); None for one device.
      scan_layers: whether the state has its layers stacked (``Encoder``).

    Attributes:
      config, tokenizer, split_special_tokens: as given.
      engine: the encoder on its devices, with its compiled programs.
      batching: how texts are put into batches, complete.
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
        tokenizer_processes: int | None = None,
        attn_implementation: str | None = None,
        scan_layers: bool = False,
        compilation_cache: bool | str | os.PathLike[str] = False,
    ):
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most vocab_size={config.vocab_size} ids, "
                f"got {tokenizer.vocab_size}"
            )
        # A BERT's config names <s>: its positions do not depend on padding.
        if config.position_offset and tokenizer.pad_id != config.pad_token_id:
            raise ValueError(
                f"config: pad_token_id={config.pad_token_id}: expected {tokenizer.pad_id}, the "
                "tokenizer's <pad>"
            )
        if not isinstance(batching, Batching | CompleteBatching | None):
            raise ValueError(f"batching={batching!r}: expected a Batching or None")
        check_flags(split_special_tokens=split_special_tokens, scan_layers=scan_layers)
        self.config, self.tokenizer = config, tokenizer
        self.split_special_tokens = split_special_tokens
        self.engine = Engine(
            config,
            state,
            mesh=mesh,
            scan_layers=scan_layers,
            attn_implementation=attn_implementation,
            cache=compilation_cache,
        )
        self.batching = (Batching() if batching is None else batching).on(self.engine.platform)
        count = usual_processes(self.engine.platform)
        if tokenizer_processes is not None:
            count = check_integer("tokenizer_processes", tokenizer_processes, 0)
        self._processes = TokenizerProcesses(tokenizer, count) if count else None
        self._max_seq_length = config.max_seq_length or config.max_length

    def __repr__(self) -> str:
        config = self.config
        quantized = f" with {self.engine.quantization}" if self.engine.quantization else ""
        return (
            f"{type(self).__name__}({config.num_hidden_layers} layers, dimension "
            f"{config.embedding_dim(None)}, tasks {list(config.lora_adaptations)}, "
            f"{self.engine.dtype}{quantized} on {self.engine.platform}, "
            f"max_seq_length={self.max_seq_length})"
        )

    @property
    def state(self) -> nnx.State:
        """The encoder's weights; ``with_state`` returns a model with others."""
        return self.engine.state

    @property
    def device(self) -> jax.Device:
        """The device of the weights; of a mesh the first."""
        return self.engine.device

    @property
    def max_seq_length(self) -> int:
        """The ``max_length`` of calls that name none; can be set, up to the model's limit."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self._max_seq_length = check_integer("max_seq_length", value, 2, self.config.max_length)

    def get_embedding_dimension(self) -> int:
        """Return the dimension of embeddings without ``truncate_dim``."""
        return self.config.embedding_dim(None)

    get_sentence_embedding_dimension = get_embedding_dimension

    def with_state(self, state: nnx.State) -> Self:
        """Return the same with other weights of the same shapes; compiled programs are shared.

        Raises:
          ValueError: for weights of other names, shapes or dtypes, or in 8 bits.
        """
        other = copy.copy(self)
        other.engine = self.engine.with_state(state)
        return other

    def merged(self, task: str) -> Self:
        """Return a model for one task, with its adapter merged into the weights.

        Its texts have ``task=None`` and by default the task's prompt, in ``encode_query``,
        ``encode_document`` and ``encode_chunks``, too. On an accelerator it is
        faster, as nothing is computed for adapters, and it takes the memory of further weights.
        Merged weights are rounded to their dtype: in bfloat16 the vectors differ from those of
        this model by that rounding (cosine 0.9999).

        Args:
          task: one of ``config.lora_adaptations``.

        Raises:
          ValueError: for an unknown task.
        """
        other = copy.copy(self)
        other.engine = self.engine.merged(task)
        other.config = other.engine.config
        return other

    @overload
    def tokenize(self, texts: str) -> list[int]: ...  # type: ignore[overload-overlap]
    @overload
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]: ...
    def tokenize(self, texts: str | Sequence[str]) -> list[int] | list[list[int]]:
        """Return the ids of each text, ``<s>`` and ``</s>`` included, without prompt or truncation.

        Args:
          texts: a list of strings; a single string gives a single list.
        """
        if isinstance(texts, str):
            return self.tokenize([texts])[0]
        return self.tokenizer.encode(texts, split_special_tokens=self.split_special_tokens)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the similarity of all pairs, float32 (n, m), of vectors (n, d) and (m, d).

        It is the cosine, unless ``config.similarity_fn_name`` names another function, which sees
        the vectors as they are; distances are negative, as in sentence-transformers.

        Raises:
          ValueError: for other shapes, infinities or NaN.
        """
        return similarities(self.config.similarity_fn_name, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Return the similarity of each pair, float32 (n,), of vectors (n, d) and (n, d).

        Raises:
          ValueError: for other shapes, infinities or NaN.
        """
        return pair_similarities(self.config.similarity_fn_name, embeddings1, embeddings2)

    def functional(self) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
        """Return the network as a pure function, and its parameters, for ``jit`` and ``grad``.

        Returns:
          ``apply`` and the parameters by path. ``apply(parameters, input_ids, attention_mask=None,
          task_ids=None)`` takes int (B, T), bool (B, T) and int (B,) (-1 for no adapter), and
          returns float32 (B, D): pooled, mapped by ``config.dense``, not normalised.
        """
        return self.engine.functional()

    def preparation(
        self, max_length: int | None = None, overlap: int | None = None, *, by_token: bool = False
    ) -> Preparation:
        """Return how this model makes items of requests.

        Args:
          max_length: as for ``JinaEmbeddings.encode``.
          overlap: tokens that windows of longer texts share; None cuts longer texts.
          by_token: whether the vectors of tokens are asked for, those of the prompt included.
        """
        return Preparation(
            self.tokenizer,
            self.split_special_tokens,
            self._max_length(max_length),
            overlap,
            self._processes,
            include_prompt=self.config.include_prompt or by_token,
        )

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
        compiled when they are needed.

        Args:
          max_length: tokens of the longest text to expect.
          tasks: whether texts will have a task; None for both cases.
          batch_size: as for ``encode``.
          threads: programs compiled at once.

        Returns:
          The number of programs that are ready now.
        """
        longest = min(check_integer("max_length", max_length, 2), self.config.max_length)
        threads = check_integer("threads", threads, 1)
        if tasks is not None:
            check_flags(tasks=tasks)
        found = shapes(self._batching(batch_size), longest, self.engine.row_multiple)
        cases = (True, False) if tasks is None else (tasks,)
        adapted = [case for case in cases if not case or self.config.num_tasks]
        pooling = self.config.emb_pooler
        self.engine.compile(
            [Program(*shape, None, case, pooling) for shape in found for case in adapted], threads
        )
        return self.engine.compiled

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Map complete vectors, float32 (n, D), by ``config.dense``, if it has any."""
        if not self.config.dense:
            return vectors
        return project_on_host(vectors, self.config, self.engine.dense)

    def _max_length(self, max_length: int | None) -> int:
        if max_length is None:
            return self.max_seq_length
        return check_integer("max_length", max_length, 2, self.config.max_length)

    def _batching(self, batch_size: int | None) -> CompleteBatching:
        if batch_size is None:
            return self.batching
        return self.batching._replace(max_texts=check_integer("batch_size", batch_size, 1))

    def _run(
        self,
        requests: Sequence[Request],
        store: Callable[[int, Result], None],
        *,
        pooling: str | None,
        max_length: int,
        overlap: int | None,
        batch_size: int | None,
        show_progress_bar: bool | None,
    ) -> EncodeInfo:
        """Encode requests, and pass the position and result of each to ``store``."""
        batching = self._batching(batch_size)
        preparation = self.preparation(max_length, overlap, by_token=pooling is None)
        pipeline = Pipeline(self.engine, batching, preparation, pooling)
        order: Sequence[int] = range(len(requests))
        if not batching.row_lengths:
            # Texts that are padded alike are encoded together, the longest first.
            order = sorted(order, key=lambda i: -len(requests[i].text))
        tokens, dropped = np.zeros((2, len(requests)), np.int64)
        hidden = not _is_shown(show_progress_bar, len(requests))
        with tqdm(total=len(requests), unit="text", disable=hidden) as progress:
            for result in pipeline.run([requests[i] for i in order]):
                index = order[result.owner]
                tokens[index], dropped[index] = result.prepared.tokens, result.prepared.dropped
                store(index, result)
                progress.update()
        _LOGGER.debug("%d texts; padding: %.1f %%", len(requests), 100 * pipeline.padding)
        return EncodeInfo(tokens, dropped, pipeline.padding)


def _is_shown(show_progress_bar: bool | None, texts: int) -> bool:
    if show_progress_bar is None:  # a server that logs encodes one query at a time
        return texts > 1 and _LOGGER.getEffectiveLevel() <= logging.INFO
    check_flags(show_progress_bar=show_progress_bar)
    return show_progress_bar
