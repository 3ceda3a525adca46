"""A model for the package ``mteb``, with the paper's adapter for each of its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jina_jax.evaluation.encoding import optional
from jina_jax.tasks import MTEB_TEXT_MATCHING, MTEB_TYPES, RETRIEVAL

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

Adapters = str | None | tuple[str | None, str | None]


class MtebModel:
    """``JinaEmbeddings`` with the interface of mteb 2 (its ``EncoderProtocol``).

    >>> mteb.evaluate(MtebModel(model, "me/my-finetune"), mteb.get_tasks(["STS12"]), cache=None)

    mteb caches results by name and revision, and does not repeat cached ones.

    Args:
      model: the model to evaluate.
      name: "organisation/model", under which mteb caches results; unique to this model.
      revision: version of the weights; a new one for every change of them.
      tasks: adapters by name or type of mteb's tasks, in place of the paper's: one, None for the
        base model, or a pair (queries, all else).
      truncate_dim: Matryoshka dimension; None for the model's own.
      max_length: maximum tokens per text; None for the model's limit.

    Attributes:
      mteb_model_meta: mteb's ``ModelMeta``; its ``CompressionWrapper`` sets another one.

    Raises:
      ValueError: for an argument out of range.
      ImportError: if mteb is not installed.
    """

    def __init__(
        self,
        model: JinaEmbeddings,
        name: str,
        revision: str | None = None,
        *,
        tasks: Mapping[str, Adapters] | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
    ):
        self.model = model
        self.tasks = dict(tasks or {})
        self.truncate_dim = truncate_dim
        self.max_length = max_length
        for adapters in self.tasks.values():
            for adapter in adapters if isinstance(adapters, tuple) else (adapters,):
                model.config.task_id(adapter)
        meta = optional("mteb.models.model_meta", '"jina-jax[mteb]"')
        self._similarity = optional("mteb.similarity_functions", '"jina-jax[mteb]"')
        self.mteb_model_meta = meta.ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "framework": ["JAX"],
                "embed_dim": model.config.embedding_dim(truncate_dim),
                "max_tokens": max_length or model.config.max_length,
                "similarity_fn_name": meta.ScoringFunction.COSINE,
                "use_instructions": True,
            }
        )

    def adapter(self, task_metadata: Any, prompt_type: Any = None) -> str | None:
        """Choose the adapter of a task.

        Args:
          task_metadata: mteb's ``TaskMetadata``.
          prompt_type: mteb's ``PromptType``, the side of a task with two.

        Returns:
          The one in ``tasks``, else the paper's if the model has it, else None.

        Raises:
          ValueError: for an unknown type of task.
        """
        for key in (task_metadata.name, task_metadata.type):
            if key in self.tasks:
                return _side(self.tasks[key], prompt_type)
        if task_metadata.type not in MTEB_TYPES:
            raise ValueError(
                f"task {task_metadata.name!r} is of type {task_metadata.type!r}: expected one of "
                f"{', '.join(MTEB_TYPES)}; or name its adapter in tasks"
            )
        adapters = MTEB_TYPES[task_metadata.type]
        if adapters == RETRIEVAL and any(part in task_metadata.name for part in MTEB_TEXT_MATCHING):
            adapters = "text-matching"
        adapter = _side(adapters, prompt_type)
        return adapter if adapter in self.model.config.lora_adaptations else None

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        precision: str = "float32",
    ) -> np.ndarray:
        """Embed the texts of mteb's batches.

        Args:
          inputs: batches, each with a list of strings under "text".
          task_metadata: mteb's ``TaskMetadata``, by which the adapter is chosen.
          hf_split, hf_subset: ignored.
          prompt_type: mteb's ``PromptType``, the side of a task with two.
          batch_size: ignored; batches are made by tokens (``JinaEmbeddings.batching``).
          show_progress_bar: as for ``JinaEmbeddings.encode``.
          precision: "float32"; or "int8", "uint8", "binary" or "ubinary", quantised as
            sentence-transformers does it.

        Returns:
          float32 (n, d), unit vectors; int8 or uint8 (n, d), or of bits (n, d / 8).

        Raises:
          ValueError: for a batch without texts, or an unknown precision.
        """
        vectors = self.model.encode(
            [text for batch in inputs for text in _texts(batch)],
            task=self.adapter(task_metadata, prompt_type),
            truncate_dim=self.truncate_dim,
            max_length=self.max_length,
            show_progress_bar=show_progress_bar,
        )
        if precision == "float32":
            return vectors
        theirs = optional("sentence_transformers", '"jina-jax[mteb]"')
        return theirs.quantize_embeddings(vectors, precision=precision)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosines of all pairs, a torch tensor (n, m)."""
        return self._similarity.cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the cosine of each pair, a torch tensor (n,)."""
        return self._similarity.pairwise_cos_sim(embeddings1, embeddings2)


def _texts(batch: Mapping[str, Any]) -> Sequence[str]:
    if "text" not in batch:
        raise ValueError(f"inputs: expected batches with 'text', got {', '.join(batch)}")
    return batch["text"]


def _side(adapters: Adapters, prompt_type: Any) -> str | None:
    if not isinstance(adapters, tuple):
        return adapters
    return adapters[0] if prompt_type is not None and prompt_type.value == "query" else adapters[1]
