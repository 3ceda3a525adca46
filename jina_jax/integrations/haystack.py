"""A model as components of Haystack, one for queries and one for documents."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from jina_jax.integrations.models import Encoder, Model, Options, missing
from jina_jax.tasks import AUTO

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise missing("haystack", error) from error


@component
class JinaJaxTextEmbedder:
    """Embeds the query of a pipeline.

    >>> pipeline.add_component("query", JinaJaxTextEmbedder("jinaai/jina-embeddings-v3"))
    >>> pipeline.connect("query.embedding", "retriever.query_embedding")
    """

    def __init__(
        self,
        model: Model,
        *,
        task: str | None = AUTO,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        model_options: Options = None,
        encode_options: Options = None,
    ):
        """Keep the arguments; ``warm_up`` loads the model.

        Args:
          model: a directory, a Hugging Face Hub id, "tiny", or a ``JinaEmbeddings``; one that is
            an object cannot be stored with a pipeline.
          task: adapter of all texts, such as "text-matching", or None for the base model; "auto"
            for "retrieval.query", or the prompt of a model without it.
          truncate_dim: Matryoshka dimension; None for the model's own.
          batch_size: most texts per step of one device; None for as many tokens as run best.
          model_options: of ``JinaEmbeddings.from_pretrained``, such as ``dtype``.
          encode_options: further ones of ``JinaEmbeddings.encode``, such as ``long_text``.

        Raises:
          ValueError: for options that are arguments here.
        """
        self._encoder = Encoder(
            model, task, truncate_dim, batch_size, model_options, encode_options
        )

    def warm_up(self) -> None:
        """Load the model, and check all options; Haystack calls it before the first run."""
        self._encoder.load()

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query, see ``JinaEmbeddings.encode_query``.

        Returns:
          ``embedding``, a list of d floats.

        Raises:
          TypeError: for anything but a string.
        """
        if not isinstance(text, str):
            got = type(text).__name__
            raise TypeError(
                f"text: expected a string, got {got}; for documents there is "
                "JinaJaxDocumentEmbedder"
            )
        return {"embedding": self._encoder.queries(text).tolist()}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Do the same as ``run``, in a thread."""
        return await asyncio.to_thread(self.run, text)

    def to_dict(self) -> dict[str, Any]:
        """Return the component as Haystack stores it."""
        return default_to_dict(self, **self._encoder.settings())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JinaJaxTextEmbedder:
        """Return a component that was stored."""
        return default_from_dict(cls, data)


@component
class JinaJaxDocumentEmbedder:
    """Embeds documents, with the fields of their metadata that are asked for.

    >>> pipeline.add_component("embedder", JinaJaxDocumentEmbedder("jinaai/jina-embeddings-v3"))
    >>> pipeline.connect("embedder.documents", "writer.documents")
    """

    def __init__(
        self,
        model: Model,
        *,
        task: str | None = AUTO,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        meta_fields_to_embed: Sequence[str] | None = None,
        embedding_separator: str = "\n",
        progress_bar: bool = True,
        model_options: Options = None,
        encode_options: Options = None,
    ):
        """Keep the arguments; ``warm_up`` loads the model.

        Args:
          model, truncate_dim, batch_size, model_options, encode_options: as for
            ``JinaJaxTextEmbedder``.
          task: adapter of all documents, or None for the base model; "auto" for
            "retrieval.passage", or the prompt of a model without it.
          meta_fields_to_embed: fields whose values are put before the content.
          embedding_separator: between these and the content.
          progress_bar: whether to show one.

        Raises:
          ValueError: for options that are arguments here.
        """
        self._encoder = Encoder(
            model, task, truncate_dim, batch_size, model_options, encode_options
        )
        if isinstance(meta_fields_to_embed, str):
            raise ValueError(
                f"meta_fields_to_embed={meta_fields_to_embed!r}: expected a list of names"
            )
        self._fields, self._separator = list(meta_fields_to_embed or []), embedding_separator
        self._progress_bar = progress_bar

    def warm_up(self) -> None:
        """Load the model, and check all options; Haystack calls it before the first run."""
        self._encoder.load()

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents, see ``JinaEmbeddings.encode_document``.

        Returns:
          ``documents``, copies with their embeddings.

        Raises:
          TypeError: for anything but a list of documents.
        """
        if not isinstance(documents, list) or not all(
            isinstance(document, Document) for document in documents
        ):
            raise TypeError(
                "documents: expected a list of documents; for a query there is JinaJaxTextEmbedder"
            )
        texts = [self._text(document) for document in documents]
        vectors = self._encoder.documents(texts, show_progress_bar=self._progress_bar).tolist()
        pairs = zip(documents, vectors, strict=True)
        return {
            "documents": [
                dataclasses.replace(document, embedding=vector) for document, vector in pairs
            ]
        }

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Do the same as ``run``, in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def to_dict(self) -> dict[str, Any]:
        """Return the component as Haystack stores it."""
        return default_to_dict(
            self,
            **self._encoder.settings(),
            meta_fields_to_embed=self._fields,
            embedding_separator=self._separator,
            progress_bar=self._progress_bar,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> JinaJaxDocumentEmbedder:
        """Return a component that was stored."""
        return default_from_dict(cls, data)

    def _text(self, document: Document) -> str:
        values = [document.meta.get(field) for field in self._fields]
        parts = [str(value) for value in values if value is not None]
        return self._separator.join([*parts, document.content or ""])
