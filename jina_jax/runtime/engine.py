"""Batches in, vectors out: the compiled programs of one encoder, and its steps in flight."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.config import Config
from jina_jax.nn.attention import Kernel
from jina_jax.nn.dropout import Dropout
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.kernels import KernelChoice, choose
from jina_jax.nn.pooling import pool
from jina_jax.runtime.batching import Batch
from jina_jax.runtime.compiling import jit, platform_of
from jina_jax.runtime.sharding import BATCH

# Steps that may be under way at once: the host packs and fetches while the device computes.
_STEPS_IN_FLIGHT = 2


class Program(NamedTuple):
    """What a compiled step depends on, beside the encoder.

    Attributes:
      rows, tokens, places: B, T, S of the batch.
      spans: ranges of tokens a row that are pooled, P; None for the texts themselves.
      adapted: whether texts have tasks.
      pooling: "mean" or "cls"; None gives every token's vector.
    """

    rows: int
    tokens: int
    places: int
    spans: int | None
    adapted: bool
    pooling: str | None


class Step(NamedTuple):
    """One batch with what is asked about it.

    Attributes:
      batch: the texts.
      task_ids: int32 (B, S), -1 for no adapter; None where no text has one.
      spans: int32 (B, P, 2), ranges of tokens to pool; None for the texts themselves.
    """

    batch: Batch
    task_ids: np.ndarray | None
    spans: np.ndarray | None = None


class Engine:
    """An encoder on its devices, with the programs that were compiled for it.

    Attributes:
      config: of the encoder.
      state: its weights; ``jax.ShapeDtypeStruct`` with shardings will do to ``lower`` programs.
      mesh: where it lies; None for one device.
      platform: "cpu", "gpu" or "tpu".
      dtype: of the weights.
      row_multiple: devices that share the rows of a batch.
      graph: the encoder's ``nnx.GraphDef``.
    """

    def __init__(
        self,
        config: Config,
        state: nnx.State,
        *,
        mesh: Mesh | None = None,
        scan_layers: bool = False,
        attn_implementation: str | None = None,
    ):
        self.config = config
        self.state = state
        self.mesh = mesh
        leaf = jax.tree.leaves(state)[0]
        self.dtype = leaf.dtype.name
        self.platform = platform_of(leaf)
        self.row_multiple = 1 if mesh is None else mesh.shape["data"]
        self.graph, _ = abstract_encoder(config, scan_layers=scan_layers)
        self._implementation = attn_implementation
        self._programs: dict[Program, jax.stages.Compiled] = {}
        self._lock = threading.Lock()
        self.choose_kernel(Program(1, 128, 1, None, False, None))  # refuses what can never run

    def with_state(self, state: nnx.State) -> Engine:
        """Return an engine with other weights of the same kind, which shares the programs."""
        other = copy.copy(self)
        other.state = state
        return other

    @property
    def compiled(self) -> int:
        """Programs compiled so far, those read from the compilation cache included."""
        return len(self._programs)

    def choose_kernel(self, program: Program) -> KernelChoice:
        """Return the attention kernel of a program, and why others were passed over."""
        return choose(
            self.platform,
            self.dtype,
            program.tokens,
            program.places,
            self.config.head_dim,
            self.mesh,
            self._implementation,
        )

    def run(self, steps: Iterable[Step], pooling: str | None) -> Iterator[tuple[Step, np.ndarray]]:
        """Run steps, a few at once.

        Args:
          steps: batches of any shapes.
          pooling: "mean" or "cls" gives float32 (B, P or S, D); None gives float32 (B, T, D).

        Yields:
          Each step with its result, in order.
        """
        waiting: list[tuple[Step, jax.Array]] = []
        for step in steps:
            waiting.append((step, self._start(step, pooling)))
            if len(waiting) > _STEPS_IN_FLIGHT:
                done, output = waiting.pop(0)
                yield done, np.asarray(output)
        for done, output in waiting:
            yield done, np.asarray(output)

    def compile(self, programs: Sequence[Program], threads: int = 2) -> None:
        """Compile programs, several at once."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._program, programs))

    def lower(self, program: Program) -> jax.stages.Lowered:
        """Lower a program for the encoder's devices."""
        static = ("graph", "pooling", "kernel", "gathered")
        step = jit(encode_batch, self.platform, static_argnames=static)
        inputs = [
            None if shape is None else self._abstract(shape) for shape in input_shapes(program)
        ]
        gathered = None
        if self.mesh is not None and jax.process_count() > 1:
            gathered = NamedSharding(self.mesh, P())  # every process reads all vectors
        return step.lower(
            self.graph,
            program.pooling,
            self.choose_kernel(program).kernel,
            gathered,
            self.state,
            *inputs,
        )

    def _start(self, step: Step, pooling: str | None) -> jax.Array:
        batch = step.batch
        spans = None if step.spans is None else step.spans.shape[1]
        program = Program(*batch.shape, spans, step.task_ids is not None, pooling)
        inputs = (batch.input_ids, batch.segments, step.task_ids, step.spans)
        placed = [None if array is None else self._place(array) for array in inputs]
        output = self._program(program)(self.state, *placed)
        output.copy_to_host_async()
        return output

    def _program(self, program: Program) -> jax.stages.Compiled:
        found = self._programs.get(program)
        if found is None:
            found = self.lower(program).compile()
            with self._lock:
                self._programs[program] = found
        return found

    def _place(self, array: np.ndarray):
        """Put an input on its devices; of a mesh of several processes, each puts its part."""
        if self.mesh is None:
            return array
        sharding = NamedSharding(self.mesh, BATCH)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def _abstract(self, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        sharding = None if self.mesh is None else NamedSharding(self.mesh, BATCH)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)


def input_shapes(program: Program) -> list[tuple[int, ...] | None]:
    """Return the shapes of ``encode_batch``'s int32 inputs, None for those that it goes without."""
    rows, tokens, places, spans, adapted, _ = program
    return [
        (rows, tokens),
        (rows, places, 2),
        (rows, places) if adapted else None,
        None if spans is None else (rows, spans, 2),
    ]


def encode_batch(
    graph: nnx.GraphDef,
    pooling: str | None,
    kernel: Kernel,
    gathered: NamedSharding | None,
    state: nnx.State,
    input_ids: jax.Array,
    segments: jax.Array,
    task_ids: jax.Array | None,
    spans: jax.Array | None,
    dropout: Dropout | None = None,
) -> jax.Array:
    """Encode one batch: float32 (B, P or S, D), or every token's float32 (B, T, D)."""
    encoder = nnx.merge(graph, state)
    mask, positions, number = unpack(segments, input_ids.shape[1])
    if task_ids is not None:
        with_none = jnp.pad(task_ids, ((0, 0), (1, 0)), constant_values=-1)
        packed = segments.shape[1] > 1
        task_ids = jnp.take_along_axis(with_none, number, axis=1) if packed else task_ids[:, 0]
    hidden = encoder(
        input_ids, mask, task_ids, positions, kernel=kernel, dropout=dropout
    ).last_hidden_state
    if pooling is None:
        output = hidden.astype(jnp.float32)
    else:
        output = pool(hidden, segments if spans is None else spans, pooling)
    return output if gathered is None else jax.lax.with_sharding_constraint(output, gathered)


def unpack(segments: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array | None, jax.Array]:
    """Derive from the places of texts what each token needs.

    Args:
      segments: int32 (B, S, 2), as in ``Batch``.
      tokens: T.

    Returns:
      The attention mask: bool (B, T) for rows of one text, else int32 (B, T), the text's number.
      Positions, int32 (B, T), or None for 0 … T-1. The numbers: int32 (B, T), 0 for padding.
    """
    start, stop = segments[..., :1], segments[..., 1:]
    position = jnp.arange(tokens)
    inside = (start <= position) & (position < stop)
    if segments.shape[1] == 1:
        return inside[:, 0], None, inside[:, 0].astype(jnp.int32)
    numbers = jnp.arange(1, segments.shape[1] + 1, dtype=jnp.int32)[:, None]
    number = jnp.where(inside, numbers, 0).sum(axis=1, dtype=jnp.int32)
    starts = jnp.where(inside, start, 0).sum(axis=1, dtype=jnp.int32)
    return number, jnp.where(number > 0, position - starts, 0), number
