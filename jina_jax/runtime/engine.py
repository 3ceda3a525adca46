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
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.kernels import KernelChoice, choose
from jina_jax.runtime.batching import Batch
from jina_jax.runtime.compiling import jit, platform_of
from jina_jax.runtime.sharding import BATCH

# Steps that may be under way at once: the host packs and fetches while the device computes.
_STEPS_IN_FLIGHT = 2


class Program(NamedTuple):
    """What a compiled step depends on, beside the encoder.

    Attributes:
      rows, tokens, places: B, T, S of the batch.
      pool_spans: P, ranges of tokens per row that are pooled; None for the texts themselves.
      with_adapters: whether texts have tasks.
      pooling: "mean" or "cls"; None gives every token's vector.
    """

    rows: int
    tokens: int
    places: int
    pool_spans: int | None
    with_adapters: bool
    pooling: str | None

    def inputs(self, sharding: NamedSharding | None = None) -> Inputs[jax.ShapeDtypeStruct]:
        """Return its inputs as ``jax.ShapeDtypeStruct``."""

        def int32(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

        return Inputs(
            int32(self.rows, self.tokens),
            int32(self.rows, self.places, 2),
            int32(self.rows, self.places) if self.with_adapters else None,
            None if self.pool_spans is None else int32(self.rows, self.pool_spans, 2),
        )


class Step(NamedTuple):
    """One batch with what is asked about it.

    Attributes:
      batch: the texts.
      task_ids: int32 (B, S), -1 for no adapter; None where no text has one.
      pool_spans: int32 (B, P, 2), ranges of tokens to pool; None for the texts themselves.
    """

    batch: Batch
    task_ids: np.ndarray | None
    pool_spans: np.ndarray | None = None


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
        static = ("graph", "pooling", "kernel", "output_sharding")
        output_sharding = None
        if self.mesh is not None and jax.process_count() > 1:
            output_sharding = NamedSharding(self.mesh, P())  # every process reads all vectors
        return jit(encode_batch, self.platform, static_argnames=static).lower(
            self.graph,
            self.state,
            program.inputs(self._rows),
            pooling=program.pooling,
            kernel=self.choose_kernel(program).kernel,
            output_sharding=output_sharding,
        )

    def _start(self, step: Step, pooling: str | None) -> jax.Array:
        batch = step.batch
        spans = None if step.pool_spans is None else step.pool_spans.shape[1]
        program = Program(*batch.shape, spans, step.task_ids is not None, pooling)
        inputs = Inputs(batch.input_ids, batch.segments, step.task_ids, step.pool_spans)
        output = self._program(program)(self.state, jax.tree.map(self._place, inputs))
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
        sharding = self._rows
        if sharding is None:
            return array
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    @property
    def _rows(self) -> NamedSharding | None:
        """How inputs lie on the mesh: their rows on its data axis."""
        return None if self.mesh is None else NamedSharding(self.mesh, BATCH)
