"""A ``SentenceTransformer`` that computes its vectors in JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from jina_jax.checks import check_flags
from jina_jax.embedder import JinaEmbeddings
from jina_jax.integrations.models import Model, Options, load, missing
from jina_jax.runtime.arguments import with_side
from jina_jax.tasks import AUTO, Task

try:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import quantize_embeddings
except ModuleNotFoundError as error:
    raise missing("sentence-transformers", error) from error

from jina_jax.integrations.torch_module import InJax

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
# Names of the prompts that sentence-transformers takes for each side, the first one found.
_SIDES = {"query": ("query",), "document": ("document", "passage", "corpus")}
_FURTHER = ("max_length", "long_text", "overlap")  # of ``JinaEmbeddings.encode``
_TRAIN = "its weights are in JAX: use `jina-jax train`, or PyTorch on files of `jina-jax convert`"
_SAVE = "its files are those that it was loaded from; `jina-jax convert` writes other layouts"
_DEVICES = "JAX uses all devices in one process: pass mesh=… in model_options for some of them"

_CONFIG = "`include_prompt` is in the model's configuration"


def _refused(name: str, reason: str) -> Callable[..., NoReturn]:
    """Return a method that is an error."""

    def method(self: Any, *args: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(f"JinaJaxSentenceTransformer.{name} is not supported: {reason}")

    return method


class JinaJaxSentenceTransformer(SentenceTransformer):
    """A ``SentenceTransformer`` whose vectors are those of ``JinaEmbeddings.encode``, bit for bit.

    A real subclass, since libraries ask ``isinstance(model, SentenceTransformer)``: BERTopic and
    KeyBERT, which load a MiniLM instead of a model that they do not know, SetFit and mteb. What it
    inherits and does not override (similarities, ``model_card_data``, ``truncate_embeddings``,
    ``evaluate``) is so that of the installed version. Its one module has no PyTorch parameters:
    it cannot be trained, and is saved nowhere. PyTorch is needed for the class and for tensors.

    >>> model = JinaJaxSentenceTransformer("tiny", task="separation")
    >>> BERTopic(embedding_model=model)
    """

    def __init__(
        self,
        model: Model,
        *,
        task: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        truncate_dim: int | None = None,
        similarity_fn_name: str | None = None,
        device: str | torch.device = "cpu",
        model_options: Options = None,
        encode_options: Options = None,
    ):
        """Load a model.

        Args:
          model: a directory, a Hugging Face Hub id, "tiny", or a ``JinaEmbeddings``.
          task: adapter of ``encode``, for libraries that pass none; None for the base model.
            ``encode_query`` and ``encode_document`` have their own.
          prompts: further ones by name, for ``prompt_name``; "query" and "document" replace those
            of ``encode_query`` and ``encode_document``.
          default_prompt_name: of ``encode``; None for the prompt of the task.
          truncate_dim: Matryoshka dimension, as for ``JinaEmbeddings.encode``.
          similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan"; None for the model's.
          device: of PyTorch, for tensors that are returned; JAX computes on its own devices.
          model_options: of ``JinaEmbeddings.from_pretrained``.
          encode_options: ``max_length``, ``long_text`` and ``overlap`` of all calls.

        Raises:
          ValueError: for an unknown task, dimension, prompt, or option.
        """
        embedder = load(model, model_options)
        config = embedder.config
        config.task_id(task)
        config.embedding_dim(truncate_dim)
        super().__init__(
            modules=[InJax(embedder)],
            device=str(device),
            prompts=_all_prompts(embedder) | dict(prompts or {}),
            default_prompt_name=default_prompt_name,
            similarity_fn_name=similarity_fn_name or config.similarity_fn_name,
            truncate_dim=truncate_dim,
            local_files_only=True,  # the card is not looked up
        )
        self.task, self.backend = task, "jax"
        self.encode_options = _checked(dict(encode_options or {}))
        self.eval()

    @property
    def embedder(self) -> JinaEmbeddings:
        """The model in JAX."""
        return self[0].embedder

    @property
    def device(self) -> torch.device:
        """The PyTorch device of tensors that are returned; ``to`` changes it."""
        return self[0].anchor.device

    def encode(
        self,
        inputs: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: str | torch.device | None = None,
        normalize_embeddings: bool = True,
        truncate_dim: int | None = None,
        pool: None = None,
        chunk_size: None = None,
        *,
        sentences: str | Sequence[str] | None = None,
        task: Task = AUTO,
        **options: Any,
    ) -> Any:
        """Embed texts: ``JinaEmbeddings.encode`` with the names of ``SentenceTransformer.encode``.

        Args:
          inputs, sentences: a string, or n of them; two names of one argument.
          prompt_name: one of ``prompts``, or of what ``JinaEmbeddings.encode`` takes.
          prompt: before each text; "" for none. None: that of ``prompt_name``, of
            ``default_prompt_name`` or of the task, the first that is given.
          batch_size, show_progress_bar: as for ``JinaEmbeddings.encode``.
          output_value: "sentence_embedding", or "token_embeddings" for the last hidden states.
          precision: one of ``PRECISIONS``; int8 and uint8 take their range from these vectors.
          convert_to_numpy: False for a list of tensors.
          convert_to_tensor: for one tensor.
          device: of PyTorch, for the tensors of this call.
          normalize_embeddings: scale to unit length, after ``truncate_dim``. Unlike the published
            model, which has a module for it, False returns vectors of the network's own length.
          truncate_dim: Matryoshka dimension; None for the attribute of this name.
          pool, chunk_size: None; there are no processes to share work with.
          task: adapter, None for the base model, or one of these per text; "auto" for the
            attribute of this name.
          options: ``max_length``, ``long_text`` and ``overlap``, as for ``JinaEmbeddings.encode``.

        Returns:
          float32 (n, d), or (d,) for a string; (d / 8) bytes per text for binary precisions. Of
          tokens a list of tensors (tokens, d), or one for a string.

        Raises:
          ValueError: for what ``JinaEmbeddings.encode`` refuses, two of ``inputs`` and
            ``sentences`` or none, and another ``device``, ``precision``, ``pool`` or
            ``chunk_size``.
          TypeError: for another option.
        """
        texts, to = _one_of(inputs, sentences), self._device(device)
        check_flags(convert_to_numpy=convert_to_numpy, convert_to_tensor=convert_to_tensor)
        _check_absent("its devices are those of JAX", pool=pool, chunk_size=chunk_size)
        by_token = output_value == "token_embeddings"
        _check_precision(precision, by_token)
        given: dict[str, Any] = {"max_length": self.max_seq_length, **self.encode_options}
        given |= _checked(options) | self._prompt(prompt, prompt_name)
        found: Any = self.embedder.encode(
            [texts] if isinstance(texts, str) else texts,
            task=self.task if isinstance(task, str) and task == AUTO else task,
            truncate_dim=self.truncate_dim if truncate_dim is None else truncate_dim,
            batch_size=batch_size,
            normalize_embeddings=normalize_embeddings,
            output_value=output_value,
            show_progress_bar=show_progress_bar,
            **given,
        )
        if by_token:
            tensors = [torch.from_numpy(vectors).to(to) for vectors in found]
            return tensors[0] if isinstance(texts, str) else tensors
        if precision not in (None, "float32"):
            found = np.asarray(quantize_embeddings(found, precision=precision))
        found = found[0] if isinstance(texts, str) else found
        if convert_to_numpy and not convert_to_tensor:
            return found
        tensor = torch.from_numpy(found).to(to)
        return tensor if convert_to_tensor or isinstance(texts, str) else list(tensor)

    def encode_query(
        self,
        inputs: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed queries: ``encode`` with "retrieval.query" and the prompt named "query"."""
        return self._encode_side("query", inputs, prompt_name, prompt, options)

    def encode_document(
        self,
        inputs: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> Any:
        """Embed documents: ``encode`` with "retrieval.passage" and the prompt of documents."""
        return self._encode_side("document", inputs, prompt_name, prompt, options)

    def train(self, mode: bool = True) -> JinaJaxSentenceTransformer:
        """Refuse to be trained; ``train(False)`` is ``eval()``.

        Raises:
          NotImplementedError: for ``train()``.
        """
        if mode:
            _refused("train", _TRAIN)(self)
        return super().train(mode)

    fit = _refused("fit", _TRAIN)
    old_fit = _refused("old_fit", _TRAIN)
    forward = _refused("forward", f"encode() returns the vectors; {_TRAIN}")
    compile = _refused("compile", "JAX compiles it")
    save = _refused("save", _SAVE)
    save_pretrained = _refused("save_pretrained", _SAVE)
    save_to_hub = _refused("save_to_hub", _SAVE)
    push_to_hub = _refused("push_to_hub", _SAVE)
    start_multi_process_pool = _refused("start_multi_process_pool", _DEVICES)
    set_pooling_include_prompt = _refused("set_pooling_include_prompt", _CONFIG)

    def _encode_side(
        self, side: str, inputs: Any, prompt_name: str | None, prompt: str | None, options: Any
    ) -> Any:
        if "task" not in options:
            options = {**options, "task": with_side(self.embedder.config, side, {})["task"]}
            if prompt is None and prompt_name is None:
                named = [name for name in _SIDES[side] if name in self.prompts]
                prompt = self.prompts[named[0]] if named else None
        return self.encode(inputs, prompt_name, prompt, **options)

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> dict[str, str | None]:
        """Return the options of ``JinaEmbeddings.encode`` for a prompt."""
        if prompt is not None:
            _check_absent("prompt is given", prompt_name=prompt_name)
            return {"prompt": prompt}
        name = self.default_prompt_name if prompt_name is None else prompt_name
        return {"prompt": self.prompts[name]} if name in self.prompts else {"prompt_name": name}

    def _device(self, device: Any) -> torch.device:
        if device is None:
            return self.device
        try:
            return torch.device(device)
        except (TypeError, RuntimeError):
            expected = "None, or a device of PyTorch for returned tensors"
            raise ValueError(f"device={device!r}: expected {expected}; {_DEVICES}") from None


def _all_prompts(embedder: JinaEmbeddings) -> dict[str, str]:
    config = embedder.config
    prompts = {task: config.prompt(task) for task in config.lora_adaptations}
    prompts |= dict(config.prompts)
    for side in _SIDES:
        found = with_side(config, side, {})
        name = found.get("prompt_name")
        prompts[side] = config.named_prompt(name) if name else config.prompt(found["task"])
    return prompts


def _one_of(inputs: Any, sentences: Any) -> Any:
    if (inputs is None) == (sentences is None):
        raise ValueError("inputs, sentences: expected one of the two, which are the same argument")
    return sentences if inputs is None else inputs


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    if unknown := options.keys() - set(_FURTHER):
        raise TypeError(
            f"unexpected option {min(unknown)!r}: expected an argument or {', '.join(_FURTHER)}"
        )
    return options


def _check_absent(reason: str, **values: Any) -> None:
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{name}={value!r}: expected None, as {reason}")


def _check_precision(precision: Any, by_token: bool) -> None:
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    if by_token and precision not in (None, "float32"):
        raise ValueError(f"precision={precision!r}: expected 'float32' for token embeddings")
