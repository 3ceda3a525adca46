"""A model as Chroma's ``EmbeddingFunction``, stored with a collection."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jina_jax.integrations.models import Encoder, Options, missing
from jina_jax.tasks import AUTO

try:
    from chromadb.api.types import Documents, EmbeddingFunction, Space
    from chromadb.utils.embedding_functions import register_embedding_function
except ModuleNotFoundError as error:
    raise missing("chroma", error) from error

_CHANGEABLE = ("model", "batch_size", "model_options")


@register_embedding_function
class JinaJaxEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents and queries of collections.

    Chroma stores its name and arguments with a collection. When it is opened again, Chroma finds
    the class if this module was imported, and builds it before every query, which uses the model
    that was loaded last, if it is the same. With collections of several models, pass each function
    to ``get_collection``, which keeps its model.

    >>> client.create_collection("pages", embedding_function=JinaJaxEmbeddingFunction("tiny"))
    >>> client.get_collection("pages").query(query_texts=["opening hours"])
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        task: str | None = AUTO,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        model_options: Options = None,
        encode_options: Options = None,
    ):
        """Keep the arguments, which are all stored.

        Args:
          model: a directory, a Hugging Face Hub id or "tiny".
          task: adapter of all texts, such as "text-matching", or None for the base model; "auto"
            for "retrieval.query" and "retrieval.passage", or the prompts of a model without them.
          truncate_dim: Matryoshka dimension; None for the model's own.
          batch_size: most texts per step of one device; None for as many tokens as run best.
          model_options: of ``JinaEmbeddings.from_pretrained``, such as ``dtype``.
          encode_options: further ones of ``JinaEmbeddings.encode``, such as ``long_text``.

        Raises:
          ValueError: for arguments that cannot be stored: objects, and a token of the Hub.
        """
        self._encoder = Encoder(
            model, task, truncate_dim, batch_size, model_options, encode_options
        )
        self._encoder.settings()  # Chroma only warns, and reopens with a model of its own

    def __call__(self, input: Documents) -> Any:
        """Return one vector per document, see ``JinaEmbeddings.encode_document``."""
        return list(self._encoder.documents(input))

    def embed_query(self, input: Documents) -> Any:
        """Return one vector per query, see ``JinaEmbeddings.encode_query``."""
        return list(self._encoder.queries(input))

    @staticmethod
    def name() -> str:
        """Return the name under which Chroma stores the class."""
        return "jina_jax"

    def default_space(self) -> Space:
        """Return the distance of a collection that names none."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return the distances that a collection can have."""
        return ["cosine", "l2", "ip"]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as Chroma stores them."""
        return self._encoder.settings()

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> JinaJaxEmbeddingFunction:
        """Return the function with stored arguments; Chroma asks for it before every query."""
        JinaJaxEmbeddingFunction.validate_config(config)
        return JinaJaxEmbeddingFunction(**config)

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Check stored arguments.

        Raises:
          ValueError: without a model, for an unknown argument or a value that is no plain one.
        """
        if not isinstance(config, Mapping) or "model" not in config:
            raise ValueError(f"config={config!r}: expected a dictionary with 'model'")
        known = Encoder("tiny").settings().keys()
        if unknown := config.keys() - known:
            raise ValueError(f"config: unexpected {min(unknown)!r}, expected {', '.join(known)}")
        Encoder(**config).settings()

    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Check new arguments of a collection that has vectors.

        Only the model's directory or name, its options and the batch size can change: that the
        model is the same is up to the caller.

        Raises:
          ValueError: for another value of an argument on which vectors depend.
        """
        for name in sorted(old_config.keys() | new_config.keys()):
            old, new = old_config.get(name), new_config.get(name)
            if name not in _CHANGEABLE and old != new:
                raise ValueError(
                    f"{name}: expected {old!r}, as stored with the collection, got {new!r}"
                )
