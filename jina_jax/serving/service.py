"""A model behind HTTP: names, tasks and texts of requests, and the jobs that are made of them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jina_jax.nn.pooling import unit
from jina_jax.runtime.arguments import WHOLE, check_mean_pooler, make_requests, pick_overlap
from jina_jax.runtime.requests import Preparation
from jina_jax.serving.beside import Beside
from jina_jax.serving.bodies import Document
from jina_jax.serving.errors import ApiError, invalid
from jina_jax.serving.jobs import Job
from jina_jax.serving.metrics import Metrics
from jina_jax.serving.reading import Reader
from jina_jax.serving.scheduler import Scheduler
from jina_jax.serving.settings import Settings
from jina_jax.serving.watching import Watcher

if TYPE_CHECKING:
    from jina_jax.embedder import JinaEmbeddings

_Value = TypeVar("_Value")
_MOST_VALUES_IN_LOOP = 1 << 18  # 1 ms to join and normalise vectors of so many
_OWNERS = ("jinaai/", "jina-ai/")
_TOKEN_IDS = (
    "token ids come from a vocabulary that is not this model's; send texts (of langchain-openai: "
    "OpenAIEmbeddings(check_embedding_ctx_length=False))"
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How texts are to be encoded.

    Attributes:
      task: for all texts, or one per text.
      prompt_name: of a prompt in place of the task's.
      truncate: cut texts that are too long, instead of refusing them.
      windows: encode longer texts in windows.
      by_token: the vectors of all tokens.
      late_chunking: the texts are chunks of one text, in which they are joined by spaces.
      bulk: let others pass.
      field: what the body calls the texts.
      fields: what it calls each of them; None for their positions in ``field``.
    """

    task: str | Sequence[str | None] | None = None
    prompt_name: str | None = None
    truncate: bool = False
    windows: bool = False
    by_token: bool = False
    late_chunking: bool = False
    bulk: bool = False
    field: str = "input"
    fields: Sequence[str] | None = None


class Service:
    """What requests are served with.

    Args:
      model: the model.
      settings: names and bounds.
      metrics: counts.
      scheduler: encodes jobs.

    Attributes:
      reader: reads bodies.
      beside: does what needs no device.
    """

    def __init__(
        self, model: JinaEmbeddings, settings: Settings, metrics: Metrics, scheduler: Scheduler
    ):
        self.model, self.settings, self.metrics = model, settings, metrics
        self.scheduler, self.reader = scheduler, Reader(settings)
        self.beside = Beside(scheduler, settings.timeout, metrics)
        self._preparations: dict[tuple[bool, bool], Preparation] = {}
        self._watcher = Watcher(settings.timeout, metrics)

    @property
    def names(self) -> list[str]:
        """Names of models for requests: the model's, and with each of its tasks."""
        tasks = self.model.config.lora_adaptations
        return [own for name in self.settings.served_names for own in self._with_tasks(name, tasks)]

    def pick_model(self, name: str | None) -> tuple[str, str | None]:
        """Return the name of the model for the reply, and the task in it.

        Raises:
          ApiError: 400 for a model that is not served.
        """
        if name is None:
            return self.settings.served_names[0], None
        owner = next((own for own in _OWNERS if name.startswith(own)), "")
        for served in self.settings.served_names:
            for known in (name, name[len(owner) :]):
                if known == served:
                    return name, None
                task = known.removeprefix(f"{served}/")
                if task != known and task in self.model.config.lora_adaptations:
                    return name, task
        raise ApiError(
            400,
            f"model: expected one of {', '.join(self.names)}; got {name!r}",
            "model",
            "INPUT_MODEL_NOT_FOUND",
        )

    def pick_prompt(self, task: Any, prompt_name: str | None) -> tuple[Any, str | None]:
        """Return the task and the name of a prompt in place of its own.

        A prompt of a task's name means the task: many clients have no other field for it. Without
        both, the task is the server's.
        """
        if task is None and prompt_name in self.model.config.lora_adaptations:
            return prompt_name, None
        if task is None and prompt_name is None:
            return self.settings.default_task, None
        return task, prompt_name

    def texts(self, given: Any, field: str, *, most: int | None = None) -> list[str]:
        """Return the texts of an input, as a list.

        Raises:
          ApiError: for none, too many, or token ids.
        """
        most = most or self.settings.max_inputs
        if not isinstance(given, list):
            given = [given]
        if not given:
            raise invalid(field, "expected at least one text, got an empty list")
        if len(given) > most:
            message = f"expected at most {most} texts, got {len(given)}"
            raise ApiError(400, f"{field}: {message}", field, "INPUT_TOO_MANY")
        texts = [own.text if isinstance(own, Document) else own for own in given]
        if not all(isinstance(own, str) for own in texts):
            raise invalid(field, _TOKEN_IDS)
        return texts

    def check_tokens(self, tokens: int, field: str, size: int = 0) -> None:
        """Refuse a request of too many tokens.

        Args:
          tokens: of all its texts, estimated.
          field: what the body calls the texts.
          size: bytes of the result per token; 0 where there is no value per token.

        Raises:
          ApiError: 413.
        """
        most = self.settings.max_request_tokens
        if size:
            most = min(most, self.settings.max_reply // size)
        if tokens > most:
            message = f"{field}: expected at most {most} tokens together, got about {tokens}"
            raise ApiError(413, message, field)

    async def encode(self, texts: list[str], wanted: Wanted, receive: Any) -> Job:
        """Encode texts; return the job with its results.

        Args:
          texts: of the request.
          wanted: how.
          receive: of ASGI, after the body was read; when the client leaves, the texts that wait
            are dropped.

        Raises:
          ApiError: for anything that keeps them from being encoded.
        """
        job = self._job(texts, wanted)
        size = 4 * self.model.config.hidden_size if wanted.by_token else 0
        self.check_tokens(job.estimate, wanted.field, size)
        self.scheduler.submit(job)
        self._watcher.watch(job, receive)
        try:
            await job.future
        finally:
            self._watcher.forget(job)
        self.metrics.texts.inc(len(texts))
        return job

    async def in_thread(self, compute: Callable[[], _Value]) -> _Value:
        """Compute something that is too long for the event loop."""
        return await asyncio.get_running_loop().run_in_executor(None, compute)

    async def vectors(self, job: Job, dim: int, *, normalize: bool) -> np.ndarray:
        """Return the vectors of a job that is done, float32 (n, d), one after the other."""
        found = [own.vectors for own in job.results if own is not None]
        model = self.model

        def compute() -> np.ndarray:
            joined = found[0] if len(found) == 1 else np.concatenate(found)
            projected = model.project(joined)[:, :dim]
            return unit(projected) if normalize else np.ascontiguousarray(projected)

        if model.config.dense or sum(own.size for own in found) > _MOST_VALUES_IN_LOOP:
            return await self.in_thread(compute)
        return compute()

    def dimension(self, given: int | None, field: str = "dimensions") -> int:
        """Return the dimension of vectors: any, as of Jina's API, up to the model's.

        Raises:
          ApiError: 422 for one that the model does not have.
        """
        most = self.model.config.embedding_dim(None)
        if given is None:
            return most
        if not 1 <= given <= most:
            raise invalid(field, f"expected an integer from 1 to {most}, got {given}")
        return given

    def _job(self, texts: list[str], wanted: Wanted) -> Job:
        config, field = self.model.config, wanted.field
        fields = wanted.fields or [f"{field}[{i}]" for i in range(len(texts))]
        windows = wanted.windows or wanted.late_chunking
        try:
            if windows:
                name = "late_chunking" if wanted.late_chunking else "long_text"
                check_mean_pooler(config, name)
            if wanted.late_chunking:
                joined, spans = _join(texts)
                requests = make_requests(
                    config, joined, wanted.task, "auto", wanted.prompt_name, spans
                )
                fields = [field]
            else:
                requests = make_requests(
                    config, texts, wanted.task, "auto", wanted.prompt_name, WHOLE
                )
        except ValueError as error:
            raise _of_arguments(error, field) from None
        pooling = None if wanted.by_token else config.emb_pooler
        return Job(
            requests,
            self._preparation(windows, wanted.by_token),
            pooling,
            fields,
            truncate=wanted.truncate,
            bulk=wanted.bulk,
            whole=wanted.late_chunking and not wanted.windows,
        )

    def _preparation(self, windows: bool, by_token: bool) -> Preparation:
        key = (windows, by_token)
        if key not in self._preparations:
            overlap = pick_overlap(None, self.model.max_seq_length) if windows else None
            own = self.model.preparation(overlap=overlap, by_token=by_token)
            self._preparations[key] = own
        return self._preparations[key]

    def _with_tasks(self, name: str, tasks: Sequence[str]) -> list[str]:
        return [name, *(f"{name}/{task}" for task in tasks)]


def _join(texts: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Join chunks by spaces, as Jina's API does; return the whole and their spans."""
    spans, start = [], 0
    for text in texts:
        spans.append((start, start + len(text)))
        start += len(text) + 1
    return " ".join(texts), spans


def _of_arguments(error: ValueError, field: str) -> ApiError:
    """Name the field of a body in an error about an argument of ``encode``."""
    message = str(error)
    argument, _, rule = message.partition(": ")
    name = argument.partition("=")[0]
    if name.startswith("texts"):
        return invalid(field + name[len("texts") :], rule)
    got = argument.partition("=")[2]
    return invalid(name, f"{rule}; got {got}" if got else rule)
