"""Engines of random weights, one per attention route, and the steps that ``tpu.py`` runs."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

import common
import numpy as np
from peers import Missing
from tpu_chips import route_of

DEFAULT = "default"  # the library's choice
_LONGEST_REFERENCE = 2048  # tokens of a row whose scores fit in memory as a whole, in float32
_SMALL = {"vocab": 112_000, "width": 128, "heads": 2, "inner": 256, "positions": 8194}
_WORDS = ("the", "ferry", "leaves", "at", "nine", "船は九時に出る", "el", "barco", "sale", "a las")


def interpret_kernels() -> None:
    """Have this process run kernels for TPUs step by step, on a CPU."""
    from jax.experimental.pallas import tpu

    tpu.set_tpu_interpret_mode()


class Routes:
    """Engines of one random encoder, by attention route and dtype.

    Args:
      small: a narrow encoder, which chooses its kernels as on a TPU, wherever it runs.
      layers: of the encoder.
    """

    def __init__(self, small: bool, layers: int):
        from published import published_config

        from jina_jax.config import Config
        from jina_jax.runtime.batching import DEFAULTS, CompleteBatching

        size = {**(_SMALL if small else common.FULL), "layers": layers}
        rest = {"add_pooling_layer": False, "emb_pooler": "mean", "default_prompt": ""}
        self.config = Config.from_dict({**published_config(size), **rest})
        self._batching = CompleteBatching(512, (128, 256)) if small else DEFAULTS["tpu"]
        self._small = small
        self._engines: dict[tuple[str, str], Any] = {}

    @functools.cached_property
    def _state(self) -> Any:
        import jax.numpy as jnp
        from flax import nnx

        from jina_jax.nn.encoder import Encoder

        options = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0), "scan_layers": True}
        state = nnx.split(Encoder(self.config, **options))[1]
        return _with_adapters(state)

    def engine(self, name: str, dtype: str = "bfloat16") -> Any:
        """Return the engine of a route.

        Raises:
          Missing: if the route cannot run on this device.
        """
        import jax

        from jina_jax.runtime.engine import Engine

        if (name, dtype) not in self._engines:
            state = jax.tree.map(lambda leaf: leaf.astype(dtype), self._state)
            route = None if name == DEFAULT else name
            make = as_on_a_tpu() if self._small else Engine
            try:
                engine = make(self.config, state, scan_layers=True, attn_implementation=route)
            except ValueError as reason:
                raise Missing(str(reason).split(": ", 1)[-1]) from None
            self._engines[name, dtype] = engine
        return self._engines[name, dtype]

    def taken(self, name: str, step: Any) -> str:
        """Return the route that a step takes.

        Raises:
          Missing: if it is not the one of this name.
        """
        route = route_of(self.engine(name), step.program)
        if name not in (DEFAULT, route.name):
            raise Missing(f"{route.name} runs: {name} {route.refusals[name]}")
        return route.name

    def exact(self, tokens: int) -> str:
        """Return the route without a kernel that rows of this length fit in."""
        return "reference" if tokens <= _LONGEST_REFERENCE else "blocked"

    def token_vectors(self, name: str, dtype: str, step: Any) -> np.ndarray:
        """Return float32 (B, T, D)."""
        ((_, vectors),) = self.engine(name, dtype).run([step._replace(pooling=None)])
        return vectors

    def rate(self, name: str, step: Any, seconds: float) -> float:
        """Return tokens per second, from ids on the host to vectors on the host."""
        engine = self.engine(name)

        def run(count: int) -> None:
            for _ in engine.run(itertools.repeat(step, count)):
                pass

        return step.batch.input_ids.size / common.per_call(run, seconds)

    def encode(self, name: str, texts: Sequence[str], tasks: bool) -> dict[str, Any]:
        """Encode texts twice, and time the second time."""
        from jina_jax import JinaEmbeddings
        from jina_jax.checkpoints.hub import fetch
        from jina_jax.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_file(fetch("tiny") / "tokenizer.json")
        options = {"batching": self._batching, "scan_layers": True}
        model = JinaEmbeddings(self.config, self._state, tokenizer, **options)
        model.engine = engine = self.engine(name)
        names = self.config.lora_adaptations
        task = [names[i % len(names)] for i in range(len(texts))] if tasks else None
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            _, info = model.encode(texts, task=task, return_info=True)
            seconds.append(time.perf_counter() - start)
        lengths = info.tokens.tolist()
        found = {"tok/s": sum(lengths) / seconds[1], "padding": info.padding}
        found |= {"programs": engine.compiled, "warm-up": seconds[0] - seconds[1]}
        return {**found, "lengths": lengths}

    def full_step(self, length: int, tasks: bool) -> Any:
        """Return a step without padding, of texts of one length, as the library batches them."""
        from jina_jax.runtime.packing import make_batches

        row = next((own for own in self._batching.row_lengths if length <= own), length)
        count = self._batching.rows(row) * (row // length)
        rng = np.random.default_rng(0)
        ids = rng.integers(4, self.config.vocab_size, (count, length)).tolist()
        lengths = (row,) if self._batching.row_lengths[-1] >= row else self._batching.row_lengths
        batch, *_ = make_batches(ids, self._batching._replace(row_lengths=lengths), 1)
        return self._step(batch, tasks)

    def uneven_step(self, tokens: int, packed: bool, tasks: bool) -> Any:
        """Return a step of two rows (of long rows, one) of texts of odd lengths, with padding."""
        from jina_jax.runtime.batching import CompleteBatching
        from jina_jax.runtime.packing import make_batches

        rows = 1 if tokens > _LONGEST_REFERENCE else 2
        one = [[tokens], [tokens * 2 // 3]]
        several = [[tokens // 2 - 3, tokens // 3, 1, 7], [tokens - 9]]
        lengths = list(itertools.chain(*(several if packed else one)[:rows]))
        rng = np.random.default_rng(0)
        ids = [rng.integers(4, self.config.vocab_size, size).tolist() for size in lengths]
        batching = CompleteBatching(rows * tokens, (tokens,) if packed else ())
        batch, *_ = make_batches(ids, batching, 1)
        return self._step(batch, tasks)

    def _step(self, batch: Any, tasks: bool) -> Any:
        """Return a step without tasks, or with all of them and none."""
        from jina_jax.runtime.engine import Step

        if not tasks:
            return Step(batch, "mean")
        task_ids = np.full(batch.text_spans.shape[:2], -1, np.int32)
        numbers = np.arange(len(batch.indices)) % (self.config.num_tasks + 1)
        task_ids[batch.rows, batch.slots] = np.where(numbers < self.config.num_tasks, numbers, -1)
        return Step(batch, "mean", task_ids)


def as_on_a_tpu() -> Any:
    """Return the class of an engine that has a TPU's kernels, interpreted, wherever it runs."""
    from jax.experimental.pallas import tpu as pltpu

    from jina_jax.runtime.engine import Engine

    class AsOnATPU(Engine):
        platform = property(lambda self: "tpu", lambda self, value: None)

        def lower(self, program: Any) -> Any:
            with pltpu.force_tpu_interpret_mode():
                return super().lower(program)

    return AsOnATPU


def largest_difference(vectors: np.ndarray, others: np.ndarray, step: Any) -> float:
    """Return the largest difference of the tokens of texts; padding does not count."""
    batch = step.batch
    spans = batch.text_spans[batch.rows, batch.slots]
    return max(
        float(np.abs(vectors[row, start:stop] - others[row, start:stop]).max())
        for row, (start, stop) in zip(batch.rows, spans, strict=True)
    )


def mixed_texts(count: int, longest: int) -> list[str]:
    """Return texts of log-normal length with a median of about 128 tokens."""
    draw = random.Random(0)
    sizes = [min(draw.lognormvariate(4.5, 1.2), longest) for _ in range(count)]
    return [" ".join(draw.choices(_WORDS, k=max(1, int(size)))) for size in sizes]


def _with_adapters(state: Any) -> Any:
    """Return a state with random adapters: new ones are zero, and would change nothing."""
    import jax.numpy as jnp

    from jina_jax.nn.parameters import from_dict, to_dict

    rng = np.random.default_rng(0)
    values = to_dict(state)
    for path, leaf in values.items():
        if path.endswith("lora_b"):
            values[path] = jnp.asarray(rng.standard_normal(leaf.shape, np.float32), leaf.dtype)
    return from_dict(state, values)
