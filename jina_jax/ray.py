"""Embeddings in pipelines of Ray Data: a class for ``map_batches``.

For tables from files to files ``jina-jax bulk --ray`` is simpler, and computes each row once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np
import pyarrow as pa

from jina_jax.bulk.settings import KINDS
from jina_jax.bulk.tables import vector_array
from jina_jax.embedder import JinaEmbeddings

Batch = TypeVar("Batch", pa.Table, dict[str, np.ndarray])

_REFUSED = {"return_info", "output_value", "convert_to_numpy"}


class Embedder:
    """Adds a column of vectors to batches of Ray Data.

    Ray makes one object per actor, and so loads one model; what it sends there are the arguments,
    and no weights. An actor needs a device of its own, which Ray gives it by ``num_gpus=1`` or
    ``resources={"TPU": 1}``; without these Ray hides all GPUs from it. On CPU, ``num_cpus`` is how
    much of a machine an actor counts for. ``concurrency`` is the number of actors. ``import ray``
    alone does not import this module, nor does this module import ``ray``.

    ::

        ray.data.read_parquet("s3://bucket/corpus").map_batches(
            Embedder,
            fn_constructor_kwargs={"model": "jinaai/jina-embeddings-v3", "text": "body",
                                   "task": "retrieval.passage"},
            batch_format="pyarrow", batch_size=4096, concurrency=8, num_gpus=1,
        ).write_parquet("s3://bucket/vectors")
    """

    def __init__(
        self,
        model: str,
        text: str = "body",
        task: str | None = None,
        output: str = "embedding",
        kind: str = "float32",
        model_options: Mapping[str, Any] | None = None,
        **options: Any,
    ):
        """Load a model.

        Args:
          model: a directory that all machines have, or a Hugging Face Hub id.
          text: name of the column with texts.
          task: adapter for all of them; None for the base model.
          output: name of the column of vectors; a column of this name is refused.
          kind: of vectors of batches of pyarrow: "float32", "float16", "bytes" or "ubinary", as in
            tables of ``jina-jax bulk``.
          model_options: of ``JinaEmbeddings.from_pretrained``.
          options: of ``JinaEmbeddings.encode``, such as ``truncate_dim``.

        Raises:
          ValueError: for a task that the model does not have, and other wrong values.
          TypeError: for options that are none of ``encode``.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
        if refused := _REFUSED & options.keys():
            raise TypeError(f"Embedder: unexpected keyword argument {min(refused)!r}")
        self._text, self._output, self._kind = text, output, kind
        self._options = {"task": task, "show_progress_bar": False, **options}
        self._model = JinaEmbeddings.from_pretrained(model, **(model_options or {}))
        self._dim = self._model.encode([], **self._options).shape[1]  # checks the options, too

    def __call__(self, batch: Batch) -> Batch:
        """Return a batch with vectors.

        Args:
          batch: a ``pyarrow.Table`` (``batch_format="pyarrow"``), or arrays by name ("numpy").

        Returns:
          The same with one more column: for pyarrow of ``bulk.tables.vector_type``, around the
          memory of ``encode``, null where the text is; for NumPy float32 (n, dim).

        Raises:
          ValueError: without the column of texts, with one of the output's name, or for a text that
            is no string: NumPy's arrays have no vector for it.
          TypeError: for batches of another format.
        """
        if isinstance(batch, pa.Table):
            return self._add_to_table(batch)
        if isinstance(batch, dict):
            return self._add_to_arrays(batch)
        got = type(batch).__name__
        raise TypeError(f'batch_format: expected "pyarrow" or "numpy", got a batch of {got}')

    def _add_to_table(self, table: pa.Table) -> pa.Table:
        self._check_columns(table.column_names)
        texts = table.column(self._text).to_pylist()
        valid = np.array([text is not None for text in texts], np.bool_)
        found = self._encode([text for text in texts if text is not None])
        vectors = found
        if not valid.all():
            vectors = np.zeros((len(texts), self._dim), np.float32)
            vectors[valid] = found
        column = vector_array(np.ascontiguousarray(vectors), self._kind, valid)
        return table.append_column(self._output, column)

    def _add_to_arrays(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._kind != "float32":
            raise ValueError(f'kind={self._kind!r}: expected batch_format="pyarrow" for this kind')
        self._check_columns(list(batch))
        return {**batch, self._output: self._encode(batch[self._text].tolist())}

    def _encode(self, texts: list[Any]) -> np.ndarray:
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                got = type(text).__name__
                raise ValueError(f"{self._text}: expected texts, got {got} in row {row} of a batch")
        return cast(np.ndarray, self._model.encode(texts, **self._options))

    def _check_columns(self, names: list[str]) -> None:
        if self._text not in names:
            there = ", ".join(map(repr, names))
            raise ValueError(f"text={self._text!r}: expected a column of this name, found {there}")
        if self._output in names:
            raise ValueError(f"output={self._output!r}: expected a new name, is a column already")
