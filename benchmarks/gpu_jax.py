"""The process of jina_jax in ``gpu.py``: ``Jax`` answers the questions of ``common.serve``.

Weights are random. Steps are timed from host to host through the engine.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import gpu_profile
import numpy as np
from common import per_call
from gpu_profile import Flights
from peers import Missing

PACKED_ROW = 2048
TASK = "text-matching"
TASKS = ("without", "one task", "mixed tasks")  # of the texts of a step
MIXED_COLUMNS = (
    *("tok/s", "of dense", "device waited", "padding"),
    *("without tokenising, tok/s", "of dense, without", "device waited, without"),
    *("tokenising alone, tok/s", "kernel"),
)


class Jax:
    """jina_jax with random weights, and the measurements in jax."""

    def __init__(self, settings: SimpleNamespace):
        import jax

        self._scan = getattr(settings, "scan", False)
        self._layers = settings.layers
        self._quantization = getattr(settings, "quantization", None)
        self._threads = settings.threads
        self._platform = jax.default_backend()
        self._compiled: set[Any] = set()  # kinds of batches

    def device(self) -> dict[str, str]:
        import jax

        return {"platform": self._platform, "kind": jax.devices()[0].device_kind}

    @functools.cached_property
    def config(self):
        from published import published_config

        from jina_jax.config import Config

        rest = {"add_pooling_layer": True, "emb_pooler": "mean", "default_prompt": ""}
        size = {**common.FULL, "layers": self._layers}
        return Config.from_dict({**published_config(size), **rest})

    @functools.cached_property
    def engine(self):
        import jax.numpy as jnp
        from flax import nnx

        from jina_jax.nn.encoder import Encoder
        from jina_jax.runtime.engine import Engine

        options = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0), "scan_layers": self._scan}
        options["quantization"] = self._quantization
        state = nnx.split(Encoder(self.config, **options))[1]
        return Engine(self.config, state, scan_layers=self._scan)

    def matmul(self, size: int, seconds: float) -> float:
        """Return TFLOP/s."""
        import jax
        import jax.numpy as jnp

        left, right = jax.random.normal(jax.random.key(0), (2, size, size), jnp.bfloat16)
        multiply = jax.jit(jnp.matmul)

        def run(count: int) -> None:
            jax.block_until_ready([multiply(left, right) for _ in range(count)][-1])

        return 2 * size**3 / per_call(run, seconds) / 1e12

    def compile(self, cases: list[tuple[int, str, bool]], tokens: int) -> int:
        """Compile the programs of ``rate``, several at once; cases are (length, tasks, packed)."""
        steps = [self._step(length, tokens, tasks, packed) for length, tasks, packed in cases]
        programs = dict.fromkeys(step.program for step in steps)
        self.engine.compile(list(programs), self._threads)
        return self.engine.compiled

    def warmup(self, length: int, tokens: int, tasks: Sequence[str] = TASKS[:1]) -> float:
        """Compile the programs of ``rate`` and run them once; return the seconds that took."""
        start = time.perf_counter()
        for own in tasks:
            self._run(self._step(length, tokens, own), 1)
        return time.perf_counter() - start

    def rate(
        self, length: int, tokens: int, seconds: float, tasks: str = "without", packed: bool = False
    ) -> float:
        """Return tokens per second of full rows, from ids on the host to vectors on the host."""
        step = self._step(length, tokens, tasks, packed)
        return step.batch.input_ids.size / per_call(functools.partial(self._run, step), seconds)

    def profile(
        self, length: int, tokens: int, tasks: str, packed: bool, steps: int
    ) -> dict[str, Any]:
        """Return the kernels of a step by time (``gpu_profile.summary``)."""
        step = self._step(length, tokens, tasks, packed)
        self._run(step, 2)
        with tempfile.TemporaryDirectory() as scratch:
            found = gpu_profile.trace(lambda: self._run(step, steps), Path(scratch))
        kernel = self.engine.choose_kernels(step.program).name
        return {**gpu_profile.summary(found, steps), "attention": kernel}

    def _run(self, step, count: int) -> None:
        for _ in self.engine.run(itertools.repeat(step, count)):
            pass

    def _step(self, length: int, tokens: int, tasks: str, packed: bool = False):
        """Return a step without padding: texts of one length, each in its row or packed."""
        from jina_jax.runtime.batching import packed_slots
        from jina_jax.runtime.engine import Step
        from jina_jax.runtime.packing import Batch

        row = max(length, min(PACKED_ROW, tokens)) if packed else length
        rows, texts = max(1, tokens // row), row // length
        row = texts * length
        slots = packed_slots(row) if packed else 1
        stops = np.minimum(np.arange(slots + 1), texts) * length
        spans = np.stack([stops[:-1], stops[1:]], -1).astype(np.int32)
        ids = np.random.default_rng(0).integers(4, self.config.vocab_size, (rows, row), np.int32)
        indices = np.arange(rows * texts)
        at_row, at_slot = np.divmod(indices, texts)
        batch = Batch(indices, at_row, at_slot, ids, np.tile(spans, (rows, 1, 1)))
        if tasks == "without":
            return Step(batch, "mean")
        numbers = indices % self.config.num_tasks if tasks == "mixed tasks" else 0
        task_ids = np.full((rows, slots), -1, np.int32)
        task_ids[at_row, at_slot] = numbers
        return Step(batch, "mean", task_ids)

    def mixed(
        self,
        count: int,
        longest: int,
        batching: dict[str, Any],
        dense_rates: list[tuple[int, float]],
    ) -> dict[str, Any]:
        """Encode texts of mixed lengths, and time each part of that alone."""
        from jina_jax.runtime.batching import Batching

        made = Batching(**batching).on(self.engine.platform)
        texts, ids = self._texts(count, longest)
        first = made not in self._compiled
        computing = self._compute(made, texts, ids)
        if first:  # should ``encode`` make batches of further shapes
            self._model(made).encode(texts, task=TASK)
        model = self._model(made)
        with Flights(self.engine) as flights:
            _, info = model.encode(texts, task=TASK, return_info=True)
        del model
        alone = fresh_tokenizer()
        start = time.perf_counter()
        alone.encode(texts)
        tokenising = time.perf_counter() - start
        lengths, rates = zip(*dense_rates, strict=True)
        expected = info.tokens / np.interp(np.log(info.tokens), np.log(lengths), rates)
        tokens = int(info.tokens.sum())
        values: list[float | str] = []
        for own in (flights, computing):
            values += [tokens / own.seconds, expected.sum() / own.seconds, own.idle]
        values.insert(3, info.padding)
        values += [tokens / tokenising, self._kernel(made)]
        return dict(zip(MIXED_COLUMNS, values, strict=True))

    @functools.cache  # noqa: B019 (one worker per process)
    def _texts(self, count: int, longest: int) -> tuple[list[str], list[list[int]]]:
        """Return texts and their ids."""
        texts = common.log_normal_texts(count, median=128, longest=longest)
        return texts, fresh_tokenizer().encode(texts)

    def _model(self, batching):
        """Return a model with these batches, whose tokenizer has no cached words."""
        from jina_jax import JinaEmbeddings

        options = {"batching": batching, "scan_layers": self._scan}
        model = JinaEmbeddings(self.config, self.engine.state, fresh_tokenizer(), **options)
        model.engine = self.engine  # with the programs already compiled
        return model

    def _compute(self, batching, texts: list[str], ids: list[list[int]]) -> Flights:
        """Compile the programs of the batches, several at once; time ids to vectors."""
        from jina_jax.runtime.engine import Program
        from jina_jax.runtime.packing import make_batches
        from jina_jax.runtime.pipeline import Pipeline
        from jina_jax.runtime.requests import Item, Prepared, Request

        order = list(range(len(texts)))
        if not batching.row_lengths:  # as ``encode`` does: padded alike, encoded together
            order.sort(key=lambda i: -len(texts[i]))
        task = self.config.task_id(TASK)
        rows = [ids[i][: self.config.max_length] for i in order]
        prepared = [Prepared(task, [Item(row)], 1, len(row), 0, []) for row in rows]

        def run(visit) -> None:
            coming = iter(prepared)

            def prepare(requests):
                pool = [next(coming) for _ in requests]
                visit([own.items[0].ids for own in pool])
                return pool

            requests = (Request(texts[i], "", task) for i in order)
            for _ in Pipeline(self.engine, batching, prepare, "mean").run(requests):
                pass

        def compile_all(pool) -> None:
            batches = make_batches(pool, batching, 1)
            programs = {Program(*batch.shape, None, True, "mean") for batch in batches}
            self.engine.compile(sorted(programs), self._threads)

        if batching not in self._compiled:
            run(compile_all)
            self._compiled.add(batching)
        with Flights(self.engine) as flights:
            run(lambda pool: None)
        return flights

    def _kernel(self, batching) -> str:
        """Return the name of the attention kernel of the most frequent rows."""
        from jina_jax.runtime.engine import Program

        length = max(batching.row_lengths, default=128)
        program = Program(1, length, batching.slots(length), None, True, "mean")
        return self.engine.choose_kernels(program).name

    def attention(self, name: str, length: int, tokens: int, seconds: float) -> dict[str, float]:
        """Time a kernel on full rows, and compare it with ``blocked``."""
        import jax
        import jax.numpy as jnp

        from jina_jax.nn.attention import blocked_attention

        packed = max(1, min(PACKED_ROW, tokens) // length) if name == "cudnn_packed" else 1
        rows = max(1, tokens // length // packed)
        heads = self.config.num_attention_heads, self.config.head_dim
        shape = (3, rows * packed, length, *heads)
        inputs = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
        mask = jnp.ones((rows * packed, length), bool)
        expected = jax.jit(blocked_attention)(*inputs, mask)
        ids = None
        if name == "cudnn_packed":
            numbers = jnp.repeat(jnp.arange(1, packed + 1, dtype=jnp.int32), length)
            ids, mask = jnp.tile(numbers, (rows, 1)), mask.reshape(rows, -1)
            inputs = inputs.reshape(3, rows, packed * length, *heads)
        kernel = jax.jit(self._attention_kernel(name, packed * length, packed))

        def run(count: int) -> None:
            jax.block_until_ready([kernel(*inputs, mask, ids) for _ in range(count)][-1])

        got = kernel(*inputs, mask, ids).reshape(expected.shape)
        difference = jnp.abs(got.astype(jnp.float32) - expected.astype(jnp.float32)).max()
        operations = 4 * length * math.prod(shape[1:])
        rate = operations / per_call(run, seconds) / 1e12
        return {"TFLOP/s": rate, "difference": float(difference)}

    def _attention_kernel(self, name: str, tokens: int, packed: int):
        """Return a kernel as the library would call it for such rows."""
        from jina_jax.nn.kernels import choose, head_kernels
        from jina_jax.runtime.batching import CompleteBatching

        batching = CompleteBatching(max(8, tokens), row_lengths=(max(8, tokens),))
        segments = batching.slots(tokens) if packed > 1 else 1
        platform = "gpu" if self._platform == "gpu" else "cpu"
        head_dim = self.config.head_dim
        try:
            choice = choose(platform, "bfloat16", tokens, segments, head_dim, None, name)
        except ValueError as refusal:
            raise Missing(str(refusal).split(": ", 1)[-1]) from None
        if choice.name != name:
            raise Missing(choice.refusals[name])
        return head_kernels(segments)[name]


def fresh_tokenizer():
    """Load the tokenizer, whose cache of words is empty unless another one is in use."""
    from jina_jax.text.tokenizer import Tokenizer

    gc.collect()
    return Tokenizer.from_file(common.SHARED / "xlm-roberta" / "tokenizer.json")
