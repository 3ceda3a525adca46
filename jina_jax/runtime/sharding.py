"""Meshes, and one table of how each parameter is split over them.

Axes: ``data`` splits the rows of a batch and copies the weights; ``model`` splits heads and the
feed-forward network (tensor parallelism, arXiv 1909.08053): the first matmul of each pair by
columns, the second by rows, so that each pair costs one sum over devices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.checks import check_integer
from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import from_dict, is_stacked, to_dict

# Parameter path → how its axes are split; the first match counts. Embeddings are copied: if split,
# they would cost a sum over devices per step and save little memory.
RULES: tuple[tuple[str, P], ...] = (
    (r"layers\..*qkv_proj\.kernel", P(None, None, "model")),
    (r"layers\..*qkv_proj\.bias", P(None, "model")),
    (r"layers\..*qkv_proj\.lora_b", P(None, None, None, "model")),
    (r"layers\..*fc1\.kernel", P(None, "model")),
    (r"layers\..*fc1\.bias", P("model")),
    (r"layers\..*fc1\.lora_b", P(None, None, "model")),
    (r"layers\..*(out_proj|fc2)\.kernel", P("model", None)),
    (r"layers\..*(out_proj|fc2)\.lora_a", P(None, "model", None)),
    (r"layers\..*qkv_proj\.kernel_codes", P(None, "model", None)),
    (r"layers\..*qkv_proj\.kernel_scale", P(None, "model")),
    (r"layers\..*fc1\.kernel_codes", P("model", None)),
    (r"layers\..*fc1\.kernel_scale", P("model")),
    (r"layers\..*(out_proj|fc2)\.kernel_codes", P(None, "model")),
    (r".*", P()),
)
BATCH = P("data")


def make_mesh(model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Make a mesh with the axes ``data`` and ``model``.

    Args:
      model: devices that share one copy of the weights; the other axis is the data axis.
      devices: None for all, including those of other processes; ``jax.local_devices()`` for a mesh
        of this process alone.

    Raises:
      ValueError: if ``model`` does not divide the number of devices, or there are none.
    """
    given = jax.devices() if devices is None else devices
    found = list(given) if isinstance(given, Iterable) else []
    if not found or not all(isinstance(device, jax.Device) for device in found):
        raise ValueError(f"devices={devices!r}: expected None, or one jax.Device or more")
    model = check_integer("model", model, 1)
    if len(found) % model:
        raise ValueError(f"model={model}: expected a divisor of the {len(found)} devices")
    shape = (len(found) // model, model)
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=found)


def usual_mesh() -> Mesh | None:
    """Return the mesh to use where none is given: all devices, or None if there is only one."""
    return make_mesh() if len(jax.devices()) > 1 else None


def check_mesh(mesh: Mesh, config: Config) -> None:
    """Check that a network can be split over a mesh.

    Raises:
      ValueError: for another type, other axes than those of ``make_mesh``, an axis that is not
        automatic, or a ``model`` axis that does not divide heads and feed-forward width.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh={mesh!r}: expected one of jina_jax.make_mesh, or None")
    if mesh.axis_names != ("data", "model") or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(
            f"mesh: expected axes ('data', 'model') of type Auto (jina_jax.make_mesh), "
            f"got {mesh.axis_names} of types {mesh.axis_types}"
        )
    parts = mesh.shape["model"]
    for name in ("num_attention_heads", "intermediate_size"):
        if getattr(config, name) % parts:
            raise ValueError(
                f"mesh: expected a model axis that divides {name}={getattr(config, name)}, "
                f"got {parts}"
            )


def partition_spec(path: str) -> P:
    """Return how the parameter at a path ("layers.0.mlp.fc1.kernel") is split.

    For stacked layers ("layers.mlp.fc1.kernel") the axis of layers is in front, not split.
    """
    spec = next(spec for pattern, spec in RULES if re.fullmatch(pattern, path))
    return P(None, *spec) if is_stacked(path) else spec


def placer(mesh: Mesh) -> Callable[[str, np.ndarray], jax.Array]:
    """Return a function (path, NumPy array) → array on the mesh, split as ``RULES`` define."""

    def place(path: str, array: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, partition_spec(path))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return place


def abstract_state(
    config: Config,
    dtype: str,
    mesh: Mesh,
    *,
    scan_layers: bool,
    quantization: str | None = None,
) -> nnx.State:
    """Return an encoder's state of ``jax.ShapeDtypeStruct``, split over a mesh.

    The mesh's devices may be those of a topology that this machine does not have
    (``jax.experimental.topologies``): compiling ahead of time needs no more.
    """
    options: Any = {"scan_layers": scan_layers, "quantization": quantization}
    _, state = abstract_encoder(config, jnp.dtype(dtype), **options)

    def lay_out(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, partition_spec(path))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return from_dict(state, {path: lay_out(path, leaf) for path, leaf in to_dict(state).items()})
