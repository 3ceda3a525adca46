"""Batches in, vectors out: the compiled programs of one encoder, and its steps in flight."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.cache import compilation_cache
from jina_jax.config import Config
from jina_jax.nn.forward import Inputs, encode_batch
from jina_jax.nn.kernels import KernelChoice, choose
from jina_jax.nn.parameters import merge_task
from jina_jax.nn.tracing import traced_for
from jina_jax.runtime import quantizing
from jina_jax.runtime.compiling import jit
from jina_jax.runtime.forks import refuse_fork
from jina_jax.runtime.joining import check_fused
from jina_jax.runtime.packing import Batch
from jina_jax.runtime.sharding import BATCH
from jina_jax.runtime.weights import Weights

# Steps that wait for a result at most: the host packs and fetches while the device computes.
_STEPS_IN_FLIGHT = 2


class Program(NamedTuple):
    """What a compiled step depends on, beside the encoder.

    Attributes:
      rows, tokens, slots: B, T, S of the batch.
      pool_spans: P, ranges of tokens per row that are pooled; None for the texts themselves.
      with_adapters: whether texts have tasks.
      pooling: as for ``jina_jax.nn.pooling.pool``; None gives every token's vector.
    """

    rows: int
    tokens: int
    slots: int
    pool_spans: int | None
    with_adapters: bool
    pooling: str | None

    def inputs(self, sharding: NamedSharding | None = None) -> Inputs[jax.ShapeDtypeStruct]:
        """Return its inputs as ``jax.ShapeDtypeStruct``."""

        def int32(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

        return Inputs(
            int32(self.rows, self.tokens),
            int32(self.rows, self.slots, 2),
            int32(self.rows, self.slots) if self.with_adapters else None,
            None if self.pool_spans is None else int32(self.rows, self.pool_spans, 2),
        )


class Step(NamedTuple):
    """One batch with what is asked about it.

    Attributes:
      batch: the texts.
      pooling: as for ``jina_jax.nn.pooling.pool``; None for the vectors of all tokens.
      task_ids: int32 (B, S), -1 for no adapter; None where no text has one.
      pool_spans: int32 (B, P, 2), ranges of tokens to pool; None for the texts themselves.
      owners: of the batch's texts, for the caller.
    """

    batch: Batch
    pooling: str | None
    task_ids: np.ndarray | None = None
    pool_spans: np.ndarray | None = None
    owners: Sequence[Any] = ()

    @property
    def program(self) -> Program:
        """The program that computes it."""
        spans = None if self.pool_spans is None else self.pool_spans.shape[1]
        return Program(*self.batch.shape, spans, self.task_ids is not None, self.pooling)


class _Callers:
    """The threads that run steps of an engine: how many, and whose turn it is."""

    def __init__(self) -> None:
        self.count = 0
        self.turn = threading.Lock()
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.count -= 1


class Engine(Weights):
    """An encoder on its devices, with the programs that were compiled for it.

    Attributes: those of ``Weights``.
    """

    def __init__(
        self,
        config: Config,
        state: nnx.State,
        *,
        mesh: Mesh | None = None,
        scan_layers: bool = False,
        attn_implementation: str | None = None,
        cache: bool | str | os.PathLike[str] = False,
    ):
        """Keep weights in the form in which the platform's programs take them.

        Args:
          config, state, mesh, scan_layers: as for ``Weights``.
          attn_implementation, cache: see ``JinaEmbeddings.from_pretrained``.
        """
        refuse_fork()
        super().__init__(config, state, mesh=mesh, scan_layers=scan_layers)
        self._implementation, self._cache = attn_implementation, cache
        self._programs: dict[Program, jax.stages.Compiled] = {}
        self._compiling: dict[Program, threading.Lock] = {}
        self._callers = _Callers()
        check_fused(config, attn_implementation, self.quantization)
        self.choose_kernels(Program(1, 128, 1, None, False, None))  # refuses what can never run

    def __getstate__(self) -> dict[str, Any]:
        """Weights and settings travel; programs are compiled anew where they arrive."""
        own = {"attn_implementation": self._implementation, "cache": self._cache}
        return super().__getstate__() | own

    def merged(self, task: str) -> Engine:
        """Return an engine of plain weights, with a task's adapter merged in; see ``merge_task``.

        Raises:
          ValueError: for an unknown task.
        """
        refuse_fork()
        return Engine(
            self.config.merged(task),
            merge_task(self.state, task, self.config),
            mesh=self.mesh,
            scan_layers=self.scan_layers,
            attn_implementation=self._implementation,
            cache=self._cache,
        )

    @property
    def compiled(self) -> int:
        """Programs compiled so far, those read from the compilation cache included."""
        return len(self._programs)

    def is_compiled(self, program: Program) -> bool:
        """Return whether a program has been compiled."""
        return program in self._programs

    def choose_kernels(self, program: Program) -> KernelChoice:
        """Return the kernels of a program, and why others were passed over."""
        return choose(
            self.platform,
            self.dtype,
            program.tokens,
            program.slots,
            self.config.head_dim,
            self.mesh,
            self._implementation,
            heads=self.config.num_attention_heads,
        )

    def run(
        self, steps: Iterable[Step | None], in_flight: int = _STEPS_IN_FLIGHT
    ) -> Iterator[tuple[Step, np.ndarray]]:
        """Run steps, a few at once.

        Args:
          steps: batches of any shapes. At a None the results of those before it are not kept
            waiting for further ones.
          in_flight: steps whose results are not waited for before the next one is asked for.

        Yields:
          Each step with its result, in order: float32 (B, P or S, D) before the maps of
          ``config.dense``, or (B, T, D) where its ``pooling`` is None.

        Raises:
          RuntimeError: in a process that was forked from one with a model, see ``refuse_fork``.
        """
        refuse_fork()
        waiting: list[tuple[Step, jax.Array]] = []
        with self._callers:
            for step in steps:
                if step is not None:
                    waiting.append((step, self._start_in_turn(step)))
                while len(waiting) > (0 if step is None else in_flight):
                    done, output = waiting.pop(0)
                    yield done, np.asarray(output)
            for done, output in waiting:
                yield done, np.asarray(output)

    def compile(self, programs: Sequence[Program], threads: int = 2) -> None:
        """Compile programs, several at once; raises as ``run``."""
        refuse_fork()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._program, programs))

    def lower(self, program: Program) -> jax.stages.Lowered:
        """Lower a program for the encoder's devices."""
        options = self._options(program)
        static = ("graph", *options)
        flags = quantizing.compiler_options(self.quantization, self.platform)
        jitted = jit(encode_batch, self.platform, flags, static_argnames=static)
        with traced_for(self.platform):
            return jitted.lower(
                self.placed_graph, self.placed_state, program.inputs(self._rows), **options
            )

    def _options(self, program: Program) -> dict[str, Any]:
        """Return the options of ``encode_batch``."""
        output_sharding = None
        if self.mesh is not None and jax.process_count() > 1:
            output_sharding = NamedSharding(self.mesh, P())  # every process reads all vectors
        return {
            "pooling": program.pooling,
            "kernels": self.choose_kernels(program).kernels,
            "project": False,
            "output_sharding": output_sharding,
        }

    def _start_in_turn(self, step: Step) -> jax.Array:
        """Start a step; on CPU, where steps of several threads slow each other, one at a time."""
        if self.platform != "cpu" or self._callers.count == 1:
            return self._start(step)
        with self._callers.turn:
            return jax.block_until_ready(self._start(step))

    def _start(self, step: Step) -> jax.Array:
        batch, program = step.batch, step.program
        inputs = Inputs(batch.input_ids, batch.text_spans, step.task_ids, step.pool_spans)
        inputs = jax.tree.map(self._place, inputs)
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            inputs = jax.tree.map(jnp.asarray, inputs)
            return encode_batch(
                self.placed_graph, self.placed_state, inputs, **self._options(program)
            )
        output = self._program(program)(self.placed_state, inputs)
        output.copy_to_host_async()
        return output

    def _program(self, program: Program) -> jax.stages.Compiled:
        """Return a compiled program; of several threads that need a new one, one compiles it."""
        found = self._programs.get(program)
        if found is None:
            with self._compiling.setdefault(program, threading.Lock()):
                found = self._programs.get(program)
                if found is None:
                    with compilation_cache(self._cache):
                        found = self.lower(program).compile()
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
