"""Models of the integrations: by name, loaded once per process, or as an object."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.embedder import JinaEmbeddings
from jina_jax.tasks import AUTO

Model = str | os.PathLike[str] | JinaEmbeddings
Options = Mapping[str, Any] | None

_FORMS = {"return_info", "output_value", "convert_to_numpy"}  # results that are no float32 (n, d)
_lock = threading.Lock()
_loaded: weakref.WeakValueDictionary[tuple[Any, ...], JinaEmbeddings] = (
    weakref.WeakValueDictionary()
)
_latest: list[JinaEmbeddings] = []  # kept for copies that are made one after another


def missing(extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return the error for a library that is not installed.

    Args:
      extra: of this package, which installs the library.
      error: what its import raised.
    """
    message = f'{error.name} is not installed: pip install "jina-jax[{extra}]"'
    return ModuleNotFoundError(message, name=error.name)


def load(model: Model, options: Options = None) -> JinaEmbeddings:
    """Return a model, loaded only if the process has none of this name and these options.

    Models are kept while something uses them, and the latest one beyond that. A directory whose
    files have changed is loaded anew.

    Args:
      model: a directory, a Hugging Face Hub id or "tiny"; or an object, which is returned.
      options: of ``JinaEmbeddings.from_pretrained``.

    Raises:
      ValueError: for options beside an object or that cannot be compared, and as
        ``from_pretrained``.
    """
    options = dict(options or {})
    if isinstance(model, JinaEmbeddings):
        if options:
            raise ValueError(
                f"model_options: expected none beside a model that is loaded, got {list(options)}"
            )
        return model
    name = model_name(model)
    try:
        key = (name, _files(name), frozenset(options.items()))
    except TypeError:
        raise ValueError(f"model_options: expected hashable values of {list(options)}") from None
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = JinaEmbeddings.from_pretrained(name, **options)
        _latest[:] = [found]
    return found


def refuse_token(options: Options) -> None:
    """Raise a ValueError for a token of the Hub, which copies and stored components would have."""
    if "token" in (options or {}):
        raise ValueError("model_options: unexpected 'token', as it may be stored: set $HF_TOKEN")


def model_name(model: Any) -> str:
    """Return the name or directory of a model as a string.

    Raises:
      ValueError: for an object, or anything else that is no name.
    """
    if isinstance(model, str | os.PathLike) and (name := os.fspath(model)):
        return name
    got = type(model).__name__
    raise ValueError(f"model: expected a directory, a Hub id or 'tiny', got {got}")


def _files(name: str) -> tuple[Any, ...] | None:
    """Return path, size and time of each file in a directory; None for a name that is none."""
    if not os.path.isdir(name):
        return None
    files = [path for path in sorted(Path(name).resolve().rglob("*")) if path.is_file()]
    found = [(path, path.stat()) for path in files]
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


class Encoder:
    """A model with the options of all calls of one integration; it loads when first used.

    Pickles have the name of the model, not its weights, unless it was an object. Copies share it.
    """

    def __init__(
        self,
        model: Model,
        task: str | None = AUTO,
        truncate_dim: int | None = None,
        batch_size: int | None = None,
        model_options: Options = None,
        encode_options: Options = None,
    ):
        """Keep the arguments.

        Args:
          model: a directory, a Hugging Face Hub id, "tiny", or a ``JinaEmbeddings``.
          task: adapter of all texts, None for the base model; "auto" for those of
            ``encode_query`` and ``encode_document``.
          truncate_dim, batch_size: as for ``JinaEmbeddings.encode``.
          model_options: of ``JinaEmbeddings.from_pretrained``.
          encode_options: further ones of ``JinaEmbeddings.encode``, such as ``long_text``.

        Raises:
          ValueError: for options of another form of result, or that are arguments here, and for a
            token of the Hub.
        """
        refuse_token(model_options)
        named = {"task": task, "truncate_dim": truncate_dim, "batch_size": batch_size}
        further = dict(encode_options or {})
        if refused := (_FORMS | named.keys()) & further.keys():
            raise ValueError(f"encode_options: unexpected option {min(refused)!r}")
        if isinstance(model, JinaEmbeddings):
            load(model, model_options)
        else:
            model = model_name(model)
        self._given, self._model_options = model, dict(model_options or {})
        self._named, self._further = named, further
        self._model: JinaEmbeddings | None = None

    def load(self) -> JinaEmbeddings:
        """Return the model, loaded at the first call, which also checks the options of all calls.

        Raises:
          ValueError: for an option that the model does not take, and as ``from_pretrained``.
        """
        if self._model is None:
            found = load(self._given, self._model_options)
            found.encode_query([], **self._options)
            self._model = found
        return self._model

    @property
    def name(self) -> str | None:
        """The name or directory of the model; None for an object."""
        return None if isinstance(self._given, JinaEmbeddings) else self._given

    def encode(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Embed texts without a side, by a task that is named: float32 (n, d)."""
        return self.load().encode(texts, **self._options | options)

    def queries(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Embed queries: float32 (n, d), or (d,) for a string."""
        return self.load().encode_query(texts, **self._options | options)

    def documents(self, texts: str | Sequence[str], **options: Any) -> np.ndarray:
        """Embed documents: float32 (n, d), or (d,) for a string."""
        return self.load().encode_document(texts, **self._options | options)

    def settings(self) -> dict[str, Any]:
        """Return the arguments, to be stored as JSON or YAML.

        Raises:
          ValueError: for a model that is an object, and values that are no plain ones.
        """
        for argument, options in (
            ("model_options", self._model_options),
            ("encode_options", self._further),
        ):
            for name, value in options.items():
                if not isinstance(value, str | int | float | None):
                    got = type(value).__name__
                    raise ValueError(
                        f"{argument}[{name!r}]: expected a plain value to store, got {got}"
                    )
        return {
            "model": model_name(self._given),
            **self._named,
            "model_options": dict(self._model_options),
            "encode_options": dict(self._further),
        }

    def __repr__(self) -> str:
        options = self._options
        names = [name for name in self._named if options.get(name) is not None or name == "task"]
        parts = [f"{name}={options[name]!r}" for name in names if name in options]
        return ", ".join([repr(self._given), *parts])

    @property
    def _options(self) -> dict[str, Any]:
        named = {"show_progress_bar": False, **self._named, **self._further}
        return {name: value for name, value in named.items() if (name, value) != ("task", AUTO)}

    def __copy__(self) -> Encoder:
        new = object.__new__(type(self))
        vars(new).update(vars(self))  # with the same model, which is not changed
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Encoder:
        return copy.copy(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": None}
