"""A model as a transformer of scikit-learn: texts in, features out."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np

from jina_jax.integrations.models import Encoder, Model, Options, load, missing, refuse_token
from jina_jax.tasks import AUTO, pick_tasks

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as error:
    raise missing("eval", error) from error


class JinaJaxTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Embeds texts as features of scikit-learn's estimators.

    It learns nothing from texts. Clones, and pickles with the name of a model, share its weights
    within a process.

    >>> make_pipeline(JinaJaxTransformer("tiny"), LogisticRegression()).fit(texts, labels)

    Args:
      model: a directory, a Hugging Face Hub id, "tiny", or a ``JinaEmbeddings``.
      task: adapter of all texts, or None for the base model; "auto" for "classification", if the
        model has it.
      truncate_dim: Matryoshka dimension; None for the model's own.
      batch_size: most texts per step of one device; None for as many tokens as run best.
      model_options: of ``JinaEmbeddings.from_pretrained``, such as ``dtype``.
      encode_options: further ones of ``JinaEmbeddings.encode``, such as ``long_text``.
    """

    def __init__(
        self,
        model: Model = "tiny",
        *,
        task: str | None = AUTO,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        model_options: Options = None,
        encode_options: Options = None,
    ):
        self.model = model
        self.task = task
        self.truncate_dim = truncate_dim
        self.batch_size = batch_size
        self.model_options = model_options
        self.encode_options = encode_options

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Load the model and check all options.

        Args:
          X, y: ignored.

        Raises:
          ValueError: for an option that the model does not take, and for a token of the Hub.
          FileNotFoundError: if there is no such model.
        """
        refuse_token(self.model_options)  # scikit-learn shows and pickles all arguments
        task = pick_tasks(load(self.model, self.model_options), "classification", self.task)[0]
        self._encoder = Encoder(
            self.model,
            task,
            self.truncate_dim,
            self.batch_size,
            self.model_options,
            self.encode_options,
        )
        self._n_features_out = self._encoder.encode([]).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Embed texts, see ``JinaEmbeddings.encode``.

        Args:
          X: n strings in a list, an array or a column.

        Returns:
          float32 (n, d).

        Raises:
          ValueError: for anything else.
        """
        check_is_fitted(self, "_encoder")
        if isinstance(X, str):
            raise ValueError(f"X={X!r}: expected a list or column of texts, got a string")
        return self._encoder.encode(X)

    def __sklearn_clone__(self) -> Self:
        """Return the same without what ``fit`` adds; a model that is an object is not copied."""
        clone = type(self)(**self.get_params(deep=False))
        for name in ("_metadata_request", "_sklearn_output_config"):
            if name in vars(self):
                setattr(clone, name, copy.deepcopy(getattr(self, name)))
        return clone

    def __sklearn_tags__(self) -> Any:
        """Return that the input is strings, one per row."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.no_validation = True
        return tags
