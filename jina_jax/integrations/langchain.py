"""A model as LangChain's ``Embeddings``."""

from __future__ import annotations

from jina_jax.integrations.models import Encoder, Model, Options, missing
from jina_jax.tasks import AUTO

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise missing("langchain", error) from error


class JinaJaxEmbeddings(Embeddings):
    """Embeds documents and queries for vector stores and retrievers of LangChain.

    Asynchronous calls run in a thread.

    >>> InMemoryVectorStore.from_texts(texts, JinaJaxEmbeddings("jinaai/jina-embeddings-v3"))
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
        """Load a model.

        Args:
          model: a directory, a Hugging Face Hub id, "tiny", or a ``JinaEmbeddings``.
          task: adapter of all texts, such as "text-matching", or None for the base model; "auto"
            for "retrieval.query" and "retrieval.passage", or the prompts of a model without them.
          truncate_dim: Matryoshka dimension; None for the model's own.
          batch_size: most texts per step of one device; None for as many tokens as run best.
          model_options: of ``JinaEmbeddings.from_pretrained``, such as ``dtype``.
          encode_options: further ones of ``JinaEmbeddings.encode``, such as ``long_text``.

        Raises:
          ValueError: for an option that the model does not take.
          FileNotFoundError: if there is no such model.
        """
        self._encoder = Encoder(
            model, task, truncate_dim, batch_size, model_options, encode_options
        )
        self._encoder.load()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per document, see ``JinaEmbeddings.encode_document``."""
        return self._encoder.documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query, see ``JinaEmbeddings.encode_query``."""
        return self._encoder.queries(text).tolist()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._encoder!r})"
