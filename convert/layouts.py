"""Foreign checkpoint layouts as tables: one row per kind of module.

A table has the names of a layout for each module of our encoder. The parts of a module (weight,
bias, adapters) and their order in PyTorch are the same everywhere, and are defined once, in
``bindings``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.config import Config
from jina_jax.nn.parameters import is_adapter, parameter_shapes

Arrays = list[np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One module: our path, its kind, and the foreign modules that make it up.

    ``{i}`` is the layer's number. Several foreign modules, side by side along the output axis, are
    one of ours.
    """

    path: str
    kind: str  # "linear", "embedding" or "norm"
    modules: tuple[str, ...]


PUBLISHED = (
    Row("word_embeddings", "embedding", ("embeddings.word_embeddings",)),
    Row("token_type_embeddings", "embedding", ("embeddings.token_type_embeddings",)),
    Row("position_embeddings", "embedding", ("embeddings.position_embeddings",)),
    Row("embedding_norm", "norm", ("emb_ln",)),
    Row("layers.{i}.attention.qkv_proj", "linear", ("encoder.layers.{i}.mixer.Wqkv",)),
    Row("layers.{i}.attention.out_proj", "linear", ("encoder.layers.{i}.mixer.out_proj",)),
    Row("layers.{i}.norm1", "norm", ("encoder.layers.{i}.norm1",)),
    Row("layers.{i}.mlp.fc1", "linear", ("encoder.layers.{i}.mlp.fc1",)),
    Row("layers.{i}.mlp.fc2", "linear", ("encoder.layers.{i}.mlp.fc2",)),
    Row("layers.{i}.norm2", "norm", ("encoder.layers.{i}.norm2",)),
    Row("pooler", "linear", ("pooler.dense",)),
)

TRANSFORMERS = (
    Row("word_embeddings", "embedding", ("embeddings.word_embeddings",)),
    Row("token_type_embeddings", "embedding", ("embeddings.token_type_embeddings",)),
    Row("embedding_norm", "norm", ("embeddings.LayerNorm",)),
    Row(
        "layers.{i}.attention.qkv_proj",
        "linear",
        tuple(f"layers.{{i}}.self_attn.{name}_proj" for name in "qkv"),
    ),
    Row("layers.{i}.attention.out_proj", "linear", ("layers.{i}.self_attn.o_proj",)),
    Row("layers.{i}.norm1", "norm", ("layers.{i}.post_attention_layernorm",)),
    Row("layers.{i}.mlp.fc1", "linear", ("layers.{i}.mlp.fc1",)),
    Row("layers.{i}.mlp.fc2", "linear", ("layers.{i}.mlp.fc2",)),
    Row("layers.{i}.norm2", "norm", ("layers.{i}.post_mlp_layernorm",)),
    Row("pooler", "linear", ("pooler.dense",)),
)

XLM_ROBERTA = (
    Row("word_embeddings", "embedding", ("embeddings.word_embeddings",)),
    Row("token_type_embeddings", "embedding", ("embeddings.token_type_embeddings",)),
    Row("position_embeddings", "embedding", ("embeddings.position_embeddings",)),
    Row("embedding_norm", "norm", ("embeddings.LayerNorm",)),
    Row(
        "layers.{i}.attention.qkv_proj",
        "linear",
        tuple(f"encoder.layer.{{i}}.attention.self.{name}" for name in ("query", "key", "value")),
    ),
    Row(
        "layers.{i}.attention.out_proj",
        "linear",
        ("encoder.layer.{i}.attention.output.dense",),
    ),
    Row("layers.{i}.norm1", "norm", ("encoder.layer.{i}.attention.output.LayerNorm",)),
    Row("layers.{i}.mlp.fc1", "linear", ("encoder.layer.{i}.intermediate.dense",)),
    Row("layers.{i}.mlp.fc2", "linear", ("encoder.layer.{i}.output.dense",)),
    Row("layers.{i}.norm2", "norm", ("encoder.layer.{i}.output.LayerNorm",)),
    Row("pooler", "linear", ("pooler.dense",)),
)

TABLES = {
    "published": PUBLISHED,
    "transformers": TRANSFORMERS,
    "xlm-roberta": XLM_ROBERTA,
    "bert": XLM_ROBERTA,
}
# The kinds of positions that a layout's own code computes.
POSITIONS = {
    "published": ("rotary", "absolute"),
    "transformers": ("rotary",),
    "xlm-roberta": ("absolute",),
    "bert": ("absolute_from_zero",),
}

# Part of a key that only this layout has, to recognise a checkpoint by; BERT has XLM-R's keys.
MARKS = {
    "published": ".mixer.Wqkv.",
    "transformers": ".self_attn.q_proj.",
    "xlm-roberta": ".attention.self.query.",
}

# Keys that belong to other parts of a model (heads, buffers) and that an encoder does not need.
IGNORED = (
    r"(^|\.)(lm_head|classifier|qa_outputs|cls\.predictions|cls\.seq_relationship)\."
    r"|embeddings\.position_ids$|embeddings\.token_type_ids$"
)
# Those of them that tell a model trained for something else.
HEADS = r"(^|\.)(classifier|qa_outputs)\."


@dataclasses.dataclass(frozen=True)
class Binding:
    """One of our tensors and the foreign ones with the same numbers.

    Attributes:
      path: ours.
      keys: theirs.
      shapes: of each of theirs.
      join: their arrays, in the order of ``keys``, to ours.
      split: ours to theirs; undoes ``join``.
    """

    path: str
    keys: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    join: Callable[[Arrays], np.ndarray]
    split: Callable[[np.ndarray], Arrays]


def bindings(
    layout: str, config: Config, *, stacked: bool, dense: tuple[str, ...] | None = None
) -> list[Binding]:
    """Bind the tensors of an encoder to those of a foreign layout's files.

    Args:
      layout: a key of ``TABLES``.
      config: of the encoder.
      stacked: whether the file has the adapters, too, as published. Without, they are in PEFT's
        folders (``stacking``).
      dense: the folder of each of ``config.dense``, of which their tensors' keys start with
        "folder/"; None for those of ``dense_folder``.

    Raises:
      CheckpointError: if the layout cannot represent a part of this encoder.
    """
    shapes = parameter_shapes(config)
    if not stacked:
        shapes = {path: shape for path, shape in shapes.items() if not is_adapter(path)}
    weight = ".parametrizations.weight.original" if stacked else ".weight"
    bound: list[Binding] = []
    for path, kind, modules in _modules(TABLES[layout], config):
        bound += _base(path, kind, modules, shapes, weight)
        if stacked and layout == "published":
            bound += _stacked_adapters(path, kind, modules[0], shapes)
    for i in range(len(config.dense)):
        bound += _dense(f"dense.{i}", dense_folder(i) if dense is None else dense[i], shapes)
    left = shapes.keys() - {binding.path for binding in bound}
    if left:
        raise CheckpointError(f"layout {layout!r} has no place for {', '.join(sorted(left))}")
    return bound


def adapted_modules(layout: str, config: Config) -> dict[str, tuple[str, ...]]:
    """List the modules that can have an adapter.

    Args:
      layout: a key of ``TABLES``.
      config: of the encoder.

    Returns:
      Our module's path → the foreign modules that it is, side by side.
    """
    shapes = parameter_shapes(config)
    return {
        path: modules
        for path, kind, modules in _modules(TABLES[layout], config)
        if kind != "norm" and (f"{path}.kernel" in shapes or f"{path}.embedding" in shapes)
    }


def dense_folder(number: int) -> str:
    """Name the folder of a module Dense, behind those of Transformer and Pooling."""
    return f"{number + 2}_Dense"


def _dense(path: str, folder: str, shapes: Shapes) -> Iterator[Binding]:
    """Bind a module Dense, in a file of its own: weight (out, in)."""
    shape = shapes[f"{path}.kernel"]
    key = f"{folder}/linear.weight"
    yield Binding(f"{path}.kernel", (key,), (shape[::-1],), _join_rows, _split_rows(1))
    if f"{path}.bias" in shapes:
        yield Binding(f"{path}.bias", (f"{folder}/linear.bias",), (shape[1:],), _only, _as_list)


def _modules(table: tuple[Row, ...], config: Config) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """List (our path, kind, foreign modules) of every module."""
    for row in table:
        for i in range(config.num_hidden_layers if "{i}" in row.path else 1):
            modules = tuple(module.format(i=i) for module in row.modules)
            yield row.path.format(i=i), row.kind, modules


def _base(
    path: str, kind: str, modules: tuple[str, ...], shapes: Shapes, weight: str
) -> Iterator[Binding]:
    """Bind weight and bias. PyTorch keeps a linear weight as (out, in), several stacked on out."""
    leaf = {"linear": "kernel", "embedding": "embedding", "norm": "scale"}[kind]
    if f"{path}.{leaf}" not in shapes:
        return
    count = len(modules)
    keys = tuple(module + (".weight" if kind == "norm" else weight) for module in modules)
    shape = shapes[f"{path}.{leaf}"]
    if kind == "linear":
        theirs = ((shape[1] // count, shape[0]),) * count
        yield Binding(f"{path}.{leaf}", keys, theirs, _join_rows, _split_rows(count))
    else:
        yield Binding(f"{path}.{leaf}", keys, (shape,), _only, _as_list)
    if kind != "embedding":
        keys = tuple(f"{module}.bias" for module in modules)
        size = shapes[f"{path}.bias"][0] // count
        join = _only if count == 1 else np.concatenate
        yield Binding(f"{path}.bias", keys, ((size,),) * count, join, lambda a: np.split(a, count))


def _stacked_adapters(path: str, kind: str, module: str, shapes: Shapes) -> Iterator[Binding]:
    """Bind adapters that the published code keeps stacked: linear A (K, R, in), B (K, out, R)."""
    for leaf, name in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        shape = shapes.get(f"{path}.{leaf}")
        if shape is None:
            continue
        key = f"{module}.parametrizations.weight.0.{name}"
        if kind == "linear":
            theirs = (shape[0], shape[2], shape[1])
            yield Binding(f"{path}.{leaf}", (key,), (theirs,), _swap_only, _swap_as_list)
        else:
            yield Binding(f"{path}.{leaf}", (key,), (shape,), _only, _as_list)


def _only(arrays: Arrays) -> np.ndarray:
    return arrays[0]


def _as_list(array: np.ndarray) -> Arrays:
    return [array]


def _swap_only(arrays: Arrays) -> np.ndarray:
    return arrays[0].swapaxes(1, 2)


def _swap_as_list(array: np.ndarray) -> Arrays:
    return [array.swapaxes(1, 2)]


def _join_rows(arrays: Arrays) -> np.ndarray:
    return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)).T


def _split_rows(count: int) -> Callable[[np.ndarray], Arrays]:
    return lambda array: np.split(array.T, count)
