"""Evaluations during training, and the encoder that they use: the model as trained so far."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jina_jax.convert import Checkpoint
from jina_jax.embedder import JinaEmbeddings
from jina_jax.evaluation import Evaluation
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import from_dict, is_adapter, is_stacked
from jina_jax.text.tokenizer import Tokenizer
from jina_jax.training.parameters import Arrays, Network, read_adapters
from jina_jax.training.programs import replicate
from jina_jax.training.settings import Settings, SettingsError


class Evaluations:
    """The evaluations of a run, with their data.

    Attributes:
      primary: name of the main metric of each.

    Raises:
      SettingsError: for two of one name.
      ValueError, OSError, ImportError: as ``jina_jax.evaluation.Evaluation``.
    """

    def __init__(self, settings: Settings):
        self._members = [Evaluation(**section.arguments()) for section in settings.evaluation]
        self.primary = [each.primary for each in self._members]
        names = [name.rpartition("/")[0] for name in self.primary]
        same = sorted({name for name in names if names.count(name) > 1})
        if same:
            raise SettingsError(
                f"evaluation.name: expected one for each, {', '.join(same)} come again"
            )

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._members)

    def run(self, model: JinaEmbeddings) -> dict[str, float]:
        """Return the metrics of all evaluations by name."""
        return {name: value for each in self._members for name, value in each.run(model).items()}

    def score(self, results: Mapping[str, float]) -> float | None:
        """Return the mean of the primary metrics; None without evaluations."""
        return float(np.mean([results[name] for name in self.primary])) if results else None


class TrainedModel:
    """The network in training as an encoder of texts: all tasks, at the checkpoint's rotary base.

    It uses the parameters on the devices. From the checkpoint it reads only the adapters, at the
    first call, for tasks that are not in training. It keeps compiled programs, but no weights.

    Args:
      base: the checkpoint that training started from.
      tasks: in training.
      network: in training.
      frozen: its parameters that are not trained, by path.
      tokenizer: of the checkpoint.
      mesh: devices of the parameters; None for one.
    """

    def __init__(
        self,
        base: Checkpoint,
        tasks: tuple[str, ...],
        network: Network,
        frozen: Arrays,
        tokenizer: Tokenizer,
        mesh: Mesh | None,
    ):
        self._base, self._network, self._frozen = base, network, frozen
        self._indices = np.array([base.config.task_id(task) for task in tasks], np.int32)
        self._tokenizer, self._mesh = tokenizer, mesh
        self._adapters: Arrays | None = None
        self._without_weights: JinaEmbeddings | None = None

    def __call__(self, trained: Arrays) -> JinaEmbeddings:
        """Return the model with these float32 parameters, in the dtype of the network.

        Parameters of that dtype are shared with it, not copied.
        """
        state = self._state(trained)
        if self._without_weights is None:
            self._without_weights = JinaEmbeddings(
                self._base.config,
                jax.tree.map(_shape_of, state),
                self._tokenizer,
                mesh=self._mesh,
                scan_layers=self._network.scan_layers,
            )
        return self._without_weights.with_state(state)

    def _state(self, trained: Arrays) -> nnx.State:
        if self._adapters is None:
            adapters = read_adapters(self._base, self._network.dtype, self._network.scan_layers)
            self._adapters = replicate(adapters, self._mesh)
        arrays = {**self._frozen, **self._adapters}
        for path, array in trained.items():
            own = array.astype(self._network.dtype)
            arrays[path] = self._with_adapter(path, own) if is_adapter(path) else own
        _, abstract = abstract_encoder(self._base.config, scan_layers=self._network.scan_layers)
        return from_dict(abstract, arrays)

    def _with_adapter(self, path: str, own: jax.Array) -> jax.Array:
        """Put the adapters in training among those of all tasks."""
        assert self._adapters is not None
        every, indices = self._adapters[path], jnp.asarray(self._indices)
        return every.at[:, indices].set(own) if is_stacked(path) else every.at[indices].set(own)


def _shape_of(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
