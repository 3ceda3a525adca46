"""The network in training, with its trained and its frozen parameters.

The trained parameters are a flat dict, path → float32 array, and nothing else of the network has a
gradient or an optimizer state. The frozen ones may have fewer bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jina_jax.checkpoints.load import to_mixed_state
from jina_jax.checkpoints.tensors import FLOAT_DTYPES, LazyTensor
from jina_jax.config import Config
from jina_jax.convert import Checkpoint
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import from_dict, is_adapter, is_table, stack_layers, to_dict
from jina_jax.runtime.sharding import check_mesh, placer
from jina_jax.training.vocabulary import TRAINABLE

Arrays = dict[str, jax.Array]


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

        def cast(path: str, array: jax.Array) -> jax.Array:
            # Tables are gathered from before they are rounded: their gradients add up in float32.
            gathered = is_table(path) and not path.endswith(".lora_b")
            return array if gathered else array.astype(self.dtype)

        arrays = {**frozen, **trained}
        return from_dict(abstract, {path: cast(path, array) for path, array in arrays.items()})


def is_trained(path: str, train: str) -> bool:
    """Return whether the parameter at a path is trained under a choice of ``TRAINABLE``."""
    if is_adapter(path):
        return True  # the network has no adapters of other tasks
    return train == "all" or (train == "all-but-embeddings" and not is_table(path))


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
    place = None if mesh is None else placer(mesh)
    state = to_mixed_state(
        config,
        _select(checkpoint, tasks),
        lambda path: "float32" if is_trained(path, train) else name,
        place=place,
        scan_layers=scan_layers,
    )
    flat = to_dict(state)
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
    _, abstract = abstract_encoder(checkpoint.config)
    arrays = {
        path: np.array(checkpoint.tensors[path].read(), FLOAT_DTYPES[dtype]).reshape(leaf.shape)
        for path, leaf in to_dict(abstract).items()
        if is_adapter(path)
    }
    return stack_layers(arrays) if scan_layers else arrays


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
