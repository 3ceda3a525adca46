"""The network in training, with its trained and its frozen parameters.

The trained parameters are a flat dict, path → float32 array, and nothing else of the network has a
gradient or an optimizer state. The frozen ones may have fewer bits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jina_jax.checkpoints.native import to_state
from jina_jax.checkpoints.tensors import FLOAT_DTYPES, LazyTensor
from jina_jax.config import Config
from jina_jax.convert import Checkpoint
from jina_jax.nn.encoder import abstract_encoder, parameter_path
from jina_jax.runtime.sharding import check_mesh, placer
from jina_jax.training.vocabulary import TRAINABLE

Arrays = dict[str, jax.Array]

_LAYER = re.compile(r"layers\.(\d+)\.")
_ADAPTER = re.compile(r".*\.lora_[ab]")
_TABLE = re.compile(r"(word|token_type|position)_embeddings\.embedding")
# Tables are gathered from before they are rounded: their gradients add up in float32.
_GATHERED = re.compile(r".*_embeddings\.(embedding|lora_a)")


class Network(NamedTuple):
    """An encoder made for training, without its parameters.

    Attributes:
      config: with the trained tasks alone, and the rotary base of training.
      graph: of the encoder.
      dtype: in which it computes.
      scan_layers: whether layers' parameters are stacked, as for ``Encoder``.
    """

    config: Config
    graph: nnx.GraphDef
    dtype: str
    scan_layers: bool

    def state(self, trained: Arrays, frozen: Arrays) -> nnx.State:
        """Join trained and frozen parameters to the encoder's state, in its dtype."""
        _, abstract = abstract_encoder(self.config, scan_layers=self.scan_layers)

        def leaf(path: str) -> jax.Array:
            array = trained[path] if path in trained else frozen[path]
            return array if _GATHERED.fullmatch(path) else array.astype(self.dtype)

        flat = nnx.to_flat_state(abstract)
        return nnx.from_flat_state([(k, v.replace(leaf(parameter_path(k)))) for k, v in flat])


def is_trained(path: str, train: str) -> bool:
    """Return whether the parameter at a path is trained under a choice of ``TRAINABLE``."""
    if is_adapter(path):
        return True  # the network has no adapters of other tasks
    return train == "all" or (train == "all-but-embeddings" and not _TABLE.fullmatch(path))


def load_network(
    checkpoint: Checkpoint,
    tasks: Sequence[str],
    train: str,
    *,
    dtype: str | None = None,
    rotary_emb_base: float | None = None,
    mesh: Mesh | None = None,
    scan_layers: bool = False,
) -> tuple[Network, Arrays, Arrays]:
    """Read a checkpoint for training.

    Args:
      checkpoint: to start from.
      tasks: adapters to train; () for none.
      train: one of ``TRAINABLE``: the named adapters only, them and everything else, or all but
        the embedding tables.
      dtype: to compute in; None for the checkpoint's.
      rotary_emb_base: in training (the paper: 10,000); None for the checkpoint's, which saved
        models keep.
      mesh: devices that share the rows of a batch; None for one device.
      scan_layers: as for ``Encoder``.

    Returns:
      The network; its trained parameters, float32, by path; its frozen ones, in its dtype.

    Raises:
      ValueError: for an unknown task, choice or dtype, if nothing would be trained, for a rotary
        base of a network with absolute positions, or for a mesh that splits weights.
    """
    if train not in TRAINABLE:
        raise ValueError(f"train={train!r}: expected one of {', '.join(map(repr, TRAINABLE))}")
    if dtype not in (None, *FLOAT_DTYPES):
        known = ", ".join(map(repr, FLOAT_DTYPES))
        raise ValueError(f"dtype={dtype!r}: expected {known} or None")
    if train == "adapters" and not tasks:
        raise ValueError("train='adapters': expected tasks whose adapters to train, got none")
    config = checkpoint.config.only(tasks)
    if rotary_emb_base is not None:
        if config.rotary_emb_base is None:
            raise ValueError(
                f"rotary_emb_base={rotary_emb_base!r}: expected None, the checkpoint has "
                f"{config.position_embedding_type} positions"
            )
        config = dataclasses.replace(config, rotary_emb_base=float(rotary_emb_base))
    if mesh is not None:
        check_mesh(mesh, config)
        if mesh.shape["model"] > 1:
            raise ValueError(f"mesh: expected a model axis of 1, got {mesh.shape['model']}")
    name = dtype or checkpoint.dtype.name
    place = None if mesh is None else placer(mesh, config, stacked=scan_layers)
    state = to_state(
        config,
        _select(checkpoint, tasks),
        lambda path: "float32" if is_trained(path, train) else name,
        place=place,
        scan_layers=scan_layers,
    )
    flat = {parameter_path(keys): v.get_value() for keys, v in nnx.to_flat_state(state)}
    graph, _ = abstract_encoder(config, scan_layers=scan_layers)
    trained = {path: array for path, array in flat.items() if is_trained(path, train)}
    frozen = {path: array for path, array in flat.items() if path not in trained}
    return Network(config, graph, name, scan_layers), trained, frozen


def read_adapters(
    checkpoint: Checkpoint, dtype: str, scan_layers: bool = False
) -> dict[str, np.ndarray]:
    """Read the adapters of all tasks of a checkpoint, and nothing else.

    Args:
      checkpoint: with or without adapters.
      dtype: to cast them to.
      scan_layers: whether those of layers are stacked.

    Returns:
      Copies by path, (K, …), or (L, K, …) where stacked.
    """
    arrays = {
        path: np.array(tensor.read(), FLOAT_DTYPES[dtype])
        for path, tensor in checkpoint.tensors.items()
        if is_adapter(path)
    }
    return stack_layers(arrays) if scan_layers else arrays


def is_adapter(path: str) -> bool:
    """Return whether the parameter at a path belongs to an adapter."""
    return _ADAPTER.fullmatch(path) is not None


def is_stacked(path: str) -> bool:
    """Return whether the parameter at a path has an axis of all layers in front."""
    return re.match(r"layers\.\D", path) is not None


def stack_layers(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stack the parameters of single layers, as an encoder with ``scan_layers`` has them."""
    groups: dict[str, dict[int, np.ndarray]] = {}
    for path, array in arrays.items():
        found = _LAYER.match(path)
        number = int(found[1]) if found else 0
        groups.setdefault(_LAYER.sub("layers.", path), {})[number] = array
    return {
        path: np.stack([group[i] for i in sorted(group)]) if is_stacked(path) else group[0]
        for path, group in groups.items()
    }


def unstack_layers(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Split stacked parameters by layer; single ones stay."""
    found: dict[str, Any] = {}
    for path, array in arrays.items():
        if is_stacked(path):
            inner = path.removeprefix("layers.")
            found |= {f"layers.{i}.{inner}": array[i] for i in range(len(array))}
        else:
            found[path] = array
    return found


def _select(checkpoint: Checkpoint, tasks: Sequence[str]) -> dict[str, LazyTensor]:
    """View a checkpoint's tensors with the adapters of some tasks alone."""
    indices = [checkpoint.config.task_id(task) for task in tasks]

    def pick(tensor: LazyTensor) -> LazyTensor:
        shape = (len(indices), *tensor.shape[1:])
        return LazyTensor(shape, tensor.dtype, lambda: tensor.read()[indices])

    return {
        path: pick(tensor) if is_adapter(path) else tensor
        for path, tensor in checkpoint.tensors.items()
        if tasks or not is_adapter(path)
    }
