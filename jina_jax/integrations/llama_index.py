"""A model as LlamaIndex's ``BaseEmbedding``."""

from __future__ import annotations

import asyncio
from typing import Any

from jina_jax.integrations.models import Encoder, Model, Options, missing
from jina_jax.tasks import AUTO

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_serializer
except ModuleNotFoundError as error:
    raise missing("llama-index", error) from error

_OBJECT = "<a model that was loaded>"


class JinaJaxEmbedding(BaseEmbedding):
    """Embeds nodes and queries for indexes of LlamaIndex.

    Asynchronous calls run in a thread. ``to_dict`` has the name of the model, and raises a
    ``ValueError`` for one that was given as an object.

    >>> Settings.embed_model = JinaJaxEmbedding("jinaai/jina-embeddings-v3")
    """

    # Frozen, as the encoder was made with them: others would be stored, but not used.
    model_name: str = Field(description="Directory or name of the model.", frozen=True)
    task: str | None = Field(
        description="Adapter of all texts; 'auto': those of retrieval.", frozen=True
    )
    truncate_dim: int | None = Field(description="Matryoshka dimension.", frozen=True)
    batch_size: int | None = Field(description="Most texts per step of one device.", frozen=True)
    model_options: dict[str, Any] = Field(description="Options of from_pretrained.", frozen=True)
    encode_options: dict[str, Any] = Field(description="Further options of encode.", frozen=True)
    _encoder: Encoder = PrivateAttr()

    def __init__(
        self,
        model_name: Model,
        *,
        task: str | None = AUTO,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        model_options: Options = None,
        encode_options: Options = None,
        embed_batch_size: int = 512,
        **fields: Any,
    ):
        """Load a model.

        Args:
          model_name: a directory, a Hugging Face Hub id, "tiny", or a ``JinaEmbeddings``.
          task: adapter of all texts, such as "text-matching", or None for the base model; "auto"
            for "retrieval.query" and "retrieval.passage", or the prompts of a model without them.
          truncate_dim: Matryoshka dimension; None for the model's own.
          batch_size: most texts per step of one device; None for as many tokens as run best.
          model_options: of ``JinaEmbeddings.from_pretrained``, such as ``dtype``.
          encode_options: further ones of ``JinaEmbeddings.encode``, such as ``long_text``.
          embed_batch_size: texts that LlamaIndex passes at once, at most 2,048.
          fields: others of ``BaseEmbedding``, such as ``num_workers``.

        Raises:
          ValueError: for an option that the model does not take, or an ``embeddings_cache``
            with two tasks: it has one vector per text, be it a query or a document.
          FileNotFoundError: if there is no such model.
        """
        if fields.get("embeddings_cache") is not None and task == AUTO:
            raise ValueError(
                "embeddings_cache: expected None with task='auto', as the cache has one vector per "
                "text for queries and documents; or name one task for both"
            )
        encoder = Encoder(model_name, task, truncate_dim, batch_size, model_options, encode_options)
        encoder.load()
        own: dict[str, Any] = {
            "model_name": encoder.name or _OBJECT,
            "task": task,
            "truncate_dim": truncate_dim,
            "batch_size": batch_size,
            "model_options": dict(model_options or {}),
            "encode_options": dict(encode_options or {}),
            "embed_batch_size": embed_batch_size,
        }
        super().__init__(**own, **fields)
        self._encoder = encoder

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores the class."""
        return "JinaJaxEmbedding"

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: Any, info: Any) -> dict[str, Any]:
        """Return the fields, after a check that they can be stored."""
        self._encoder.settings()
        return handler(self) | {"class_name": self.class_name()}

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._encoder.queries(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._encoder.documents(text).tolist()

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._encoder.documents(texts).tolist()

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
