"""An encoder's weights on their devices, in the form in which the platform's programs take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jina_jax.config import Config
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import from_dict, to_dict
from jina_jax.nn.quantized import quantization_of, refuse_quantized
from jina_jax.runtime import quantizing
from jina_jax.runtime.compiling import platform_of
from jina_jax.runtime.forks import refuse_fork
from jina_jax.runtime.functional import pure_function
from jina_jax.runtime.joining import join_state, joined_graph, split_state
from jina_jax.runtime.sharding import make_mesh, placer


class Weights:
    """An encoder on its devices.

    Attributes:
      config: of the encoder.
      mesh: where it lies; None for one device.
      platform: "cpu", "gpu" or "tpu".
      dtype: of the weights.
      quantization: of the linear layers, "int8" or "fp8"; None if they are in ``dtype``.
      scan_layers: whether its layers are stacked.
      graph: the encoder's ``nnx.GraphDef``.
      placed_graph, placed_state: the same in the form that programs take.
    """

    def __init__(
        self,
        config: Config,
        state: nnx.State,
        *,
        mesh: Mesh | None = None,
        scan_layers: bool = False,
    ):
        """Put weights into the form that programs take.

        Args:
          config: of the encoder.
          state: its weights; ``jax.ShapeDtypeStruct`` with shardings will do to lower programs.
          mesh: where it lies; None for one device.
          scan_layers: whether the state has its layers stacked.
        """
        self.config, self.mesh, self.scan_layers = config, mesh, scan_layers
        leaf = jax.tree.leaves(state)[0]
        self.dtype = leaf.dtype.name
        self.platform = platform_of(leaf)
        self.quantization = quantization_of(to_dict(state))
        quantizing.check_device(self.quantization, next(iter(leaf.sharding.device_set)))
        self.graph, _ = abstract_encoder(config, **self._kind)
        joined = None
        if self.quantization is None:
            joined = joined_graph(config, self.platform, self.dtype, mesh, scan_layers)
        self.is_joined = joined is not None
        self.placed_graph = self.graph if joined is None else joined
        self.placed_state, self._shapes = self._placed(state), _shapes(state)

    @property
    def _kind(self) -> dict[str, Any]:
        """The options of ``abstract_encoder``."""
        return {"scan_layers": self.scan_layers, "quantization": self.quantization}

    def _placed(self, state: nnx.State) -> nnx.State:
        if not self.is_joined:
            return state
        return join_state(self.config, state, self.mesh, scan_layers=self.scan_layers)

    @property
    def state(self) -> nnx.State:
        """The encoder's weights; computed of what is on the devices where that has another form."""
        if not self.is_joined:
            return self.placed_state
        return split_state(self.config, self.placed_state, self.mesh, scan_layers=self.scan_layers)

    @property
    def device(self) -> jax.Device:
        """The device of the weights; of a mesh the first."""
        leaf = jax.tree.leaves(self.placed_state)[0]
        return min(leaf.devices(), key=lambda device: device.id)

    @property
    def row_multiple(self) -> int:
        """Devices that share the rows of a batch."""
        return 1 if self.mesh is None else self.mesh.shape["data"]

    @property
    def dense(self) -> dict[str, jax.Array]:
        """The weights of ``config.dense``, by path."""
        weights = to_dict(self.placed_state)
        return {path: leaf for path, leaf in weights.items() if path.startswith("dense.")}

    def with_state(self, state: nnx.State) -> Self:
        """Return the same with other weights of the same kind, put where these are.

        Raises:
          ValueError: for weights of other names, shapes or dtypes, or in 8 bits.
        """
        refuse_fork()
        for own in (self.placed_state, state):
            if isinstance(own, nnx.State):
                refuse_quantized(to_dict(own), "with_state")
        if wrong := sorted(str(path) for path, _ in self._shapes.items() ^ _shapes(state).items()):
            raise ValueError(f"state: expected the weights of this model, {wrong[0]} differs")
        other = object.__new__(type(self))
        placed = jax.tree.map(_put_like, self._placed(state), self.placed_state)
        vars(other).update(vars(self), placed_state=placed)
        return other

    def put(self, values: Any) -> Any:
        """Put NumPy arrays on the weights' devices, whole on each."""
        leaf = jax.tree.leaves(self.placed_state)[0].sharding
        sharding = leaf if self.mesh is None else NamedSharding(self.mesh, P())
        return jax.device_put(values, sharding)

    def functional(self) -> tuple[Callable[..., jax.Array], dict[str, jax.Array]]:
        """Return a pure function and its parameters, see ``Model.functional``."""
        refuse_fork()
        return pure_function(self.config, self.graph, **self._kind), to_dict(self.state)

    def __getstate__(self) -> dict[str, Any]:
        """Return the weights as NumPy arrays, and where they are."""
        mesh = self.mesh
        return {
            "config": self.config,
            "weights": {path: np.asarray(array) for path, array in to_dict(self.state).items()},
            "mesh": mesh and ([device.id for device in mesh.devices.flat], mesh.shape["model"]),
            "scan_layers": self.scan_layers,
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        """Put the weights on the devices of the same numbers, or on all if some are missing."""
        config, weights, mesh = (values.pop(name) for name in ("config", "weights", "mesh"))
        if mesh is not None:
            ids, parts = mesh
            known = {device.id: device for device in jax.devices()}
            devices = [known[i] for i in ids] if known.keys() >= set(ids) else None
            mesh = make_mesh(model=parts, devices=devices)
        place = _put_alone if mesh is None else placer(mesh)
        options = {"scan_layers": values["scan_layers"], "quantization": quantization_of(weights)}
        _, abstract = abstract_encoder(config, **options)
        arrays = {path: place(path, array) for path, array in weights.items()}
        self.__init__(config, from_dict(abstract, arrays), mesh=mesh, **values)  # type: ignore[misc]


def _shapes(state: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return shape and dtype of each weight by its path; none if it is no state."""
    if not isinstance(state, nnx.State):
        return {}
    return {path: (leaf.shape, leaf.dtype) for path, leaf in to_dict(state).items()}


def _put_like(new: Any, old: Any) -> Any:
    """Put an array where another is; shapes are returned as they are."""
    has_values = isinstance(new, jax.Array | np.ndarray) and isinstance(old, jax.Array)
    return jax.device_put(new, old.sharding) if has_values else new


def _put_alone(_: str, array: np.ndarray) -> jax.Array:
    return jax.device_put(array)
