"""Sizes in a foreign ``config.json`` that its weights contradict, by the names of their fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from jina_jax.checkpoints.native import check_keys
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor
from jina_jax.config import Config
from jina_jax.convert.files import Pairs
from jina_jax.convert.layouts import Binding

# Our path → the field of each dimension of the foreign tensor.
_FIELDS = {
    "word_embeddings.embedding": ("vocab_size", "hidden_size"),
    "position_embeddings.embedding": ("max_position_embeddings", "hidden_size"),
    "token_type_embeddings.embedding": ("type_vocab_size", "hidden_size"),
    "layers.0.mlp.fc1.kernel": ("intermediate_size", "hidden_size"),
}
_LAYER = re.compile(r".*\blayers?\.(\d+)\..*")


def check_tensors(source: str, config: Config, bound: Sequence[Binding], pairs: Pairs) -> None:
    """Check that a file has exactly the tensors that a config asks for.

    Args:
      source: the file, for messages.
      config: of the encoder.
      bound: its tensors and the foreign ones.
      pairs: key and tensor of everything in the file.

    Raises:
      CheckpointError: listing every key at fault, behind the fields of config.json that the weights
        contradict.
    """
    expected = {k: s for b in bound for k, s in zip(b.keys, b.shapes, strict=True)}
    try:
        check_keys(expected, pairs, source)
    except CheckpointError as error:
        fields = "; ".join(_contradicted(config, bound, dict(pairs)))
        raise CheckpointError(f"config: {fields}; {error}" if fields else str(error)) from error


def _contradicted(
    config: Config, bound: Sequence[Binding], found: Mapping[str, LazyTensor]
) -> Iterator[str]:
    """Describe each field that has another size than the weights."""
    tensors = {b.path: found[b.keys[0]] for b in bound if b.keys[0] in found}
    sizes: dict[str, int] = {}
    for path, fields in _FIELDS.items():
        shape = tensors[path].shape if path in tensors else ()
        if len(shape) == len(fields):
            sizes = {**dict(zip(fields, shape, strict=True)), **sizes}
    layers = [int(match[1]) + 1 for key in found if (match := _LAYER.fullmatch(key))]
    sizes["num_hidden_layers"] = max(layers, default=0)
    for name, size in sizes.items():
        if getattr(config, name) != size:
            yield f"{name}={getattr(config, name)!r}: expected {size}, as in the weights"
    if any("position_embeddings." in key for key in found) != config.has_position_table:
        kind = config.position_embedding_type
        yield f"position_embedding_type={kind!r}: expected another, by the weights"
    for i, spec in enumerate(config.dense):
        yield from _contradicted_dense(i, spec.out_features, spec.bias, bound, found)


def _contradicted_dense(
    number: int,
    size: int,
    bias: bool,
    bound: Sequence[Binding],
    found: Mapping[str, LazyTensor],
) -> Iterator[str]:
    key = next(b.keys[0] for b in bound if b.path == f"dense.{number}.kernel")
    folder = key.rpartition("/")[0]
    if key in found and (shape := found[key].shape) and shape[0] != size:
        yield f"{folder}: out_features={size}: expected {shape[0]}, as in the weights"
    if key in found and bias != (f"{folder}/linear.bias" in found):
        yield f"{folder}: bias={bias}: expected {not bias}, as in the weights"
