"""Programs as files: StableHLO that a process with only jax loads and runs (``jax.export``).

They are compiled where they are loaded. For a CPU use the compiler options of this library:
``jax.jit(exported.call, compiler_options=jina_jax.compiler_options("cpu"))``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from jina_jax.nn.forward import encode_batch
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.runtime.engine import Engine, Program


def export_program(
    engine: Engine, program: Program, *, platforms: Sequence[str] | None = None
) -> jax.export.Exported:
    """Export one program, without its weights.

    The result's ``call`` takes the weights, a dict from parameter path to array (``weights``), and
    then those int32 arrays of ``jina_jax.nn.forward.Inputs`` that the program has, in this order:
    input_ids (B, T), text_spans (B, S, 2), task_ids (B, S), pool_spans (B, P, 2). It returns
    float32 (B, P or S, D), or (B, T, D).

    Args:
      engine: the encoder, on one device.
      program: the shapes.
      platforms: "cpu", "cuda", "tpu"; None for the engine's own.

    Raises:
      ValueError: if the engine's weights lie on several devices.
    """
    if engine.mesh is not None and engine.mesh.size > 1:
        raise ValueError(f"engine: expected one device, got a mesh of {engine.mesh.size}")
    kernels = engine.choose_kernels(program).kernels
    shapes, structure = jax.tree.flatten(program.inputs())

    def run(weights, *arrays):
        state = from_dict(engine.state, weights)
        inputs = jax.tree.unflatten(structure, arrays)
        return encode_batch(engine.graph, state, inputs, pooling=program.pooling, kernels=kernels)

    exported = jax.export.export(jax.jit(run), platforms=platforms)
    return exported(
        {path: jax.ShapeDtypeStruct(a.shape, a.dtype) for path, a in weights(engine).items()},
        *shapes,
    )


def weights(engine: Engine) -> dict[str, jax.Array]:
    """Return the weights that an exported program takes, by parameter path."""
    return to_dict(engine.state)


def save_program(path: str | Path, exported: jax.export.Exported) -> None:
    """Write an exported program to a new file; ``jax.export.deserialize`` reads its bytes.

    Raises:
      FileExistsError: if the file exists.
    """
    with Path(path).open("xb") as file:
        file.write(exported.serialize())
