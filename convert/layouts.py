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
from jina_jax.nn.parameters import parameter_shapes

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

TABLES = {"published": PUBLISHED, "transformers": TRANSFORMERS, "xlm-roberta": XLM_ROBERTA}

# Part of a key that only this layout has, to recognise a checkpoint by.
MARKS = {
    "published": ".mixer.Wqkv.",
    "transformers": ".self_attn.q_proj.",
    "xlm-roberta": ".attention.self.query.",
}

# Keys that belong to other parts of a model (heads, buffers) and that an encoder does not need.
IGNORED = (
    r"(^|\.)(lm_head|classifier|qa_outputs)\.|embeddings\.position_ids$|embeddings\.token_type_ids$"
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
    layout: str,
    config: Config,
    folders: tuple[str, ...] | None = None,
    dense: tuple[str, ...] | None = None,
) -> list[Binding]:
    """Bind every tensor of an encoder to those of a foreign layout.

    Args:
      layout: a key of ``TABLES``.
      config: of the encoder.
      folders: the PEFT folder of each task; their tensors' keys start with "folder/". None if
        adapters, if any, are stacked in the base model's file, as published.
      dense: the folder of each of ``config.dense``; None for those of ``dense_folder``.

    Raises:
      CheckpointError: if the layout cannot represent a part of this encoder.
    """
    shapes = parameter_shapes(config)
    stacked = config.num_tasks > 0 and folders is None
    weight = ".parametrizations.weight.original" if stacked else ".weight"
    bound: list[Binding] = []
    for path, kind, modules in _modules(TABLES[layout], config):
        bound += _base(path, kind, modules, shapes, weight)
    for path, kind, modules in _modules(PUBLISHED if stacked else TRANSFORMERS, config):
        if stacked and layout == "published":
            bound += _stacked_adapters(path, kind, modules[0], shapes)
        elif not stacked:
            bound += _adapter_folders(path, kind, modules, shapes, folders or ())
    for i in range(len(config.dense)):
        bound += _dense(f"dense.{i}", dense_folder(i) if dense is None else dense[i], shapes)
    left = shapes.keys() - {binding.path for binding in bound}
    if left:
        raise CheckpointError(f"layout {layout!r} has no place for {', '.join(sorted(left))}")
    return bound


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


def _adapter_folders(
    path: str, kind: str, modules: tuple[str, ...], shapes: Shapes, folders: tuple[str, ...]
) -> Iterator[Binding]:
    """Bind adapters in PEFT's folders: A (R, in), B (out, R), for embeddings (R, V) and (D, R).

    Where our module is several of theirs, each has its rows of B and a copy of A.
    """
    if f"{path}.lora_a" not in shapes:
        return
    names = (
        ("lora_A.weight", "lora_B.weight")
        if kind == "linear"
        else ("lora_embedding_A", "lora_embedding_B")
    )
    tasks, count = len(folders), len(modules)
    for leaf, name in zip(("lora_a", "lora_b"), names, strict=True):
        keys = tuple(
            f"{folder}/base_model.model.{module}.{name}" for folder in folders for module in modules
        )
        _, rows, columns = shapes[f"{path}.{leaf}"]
        if leaf == "lora_a":
            theirs, join, split = (columns, rows), _join_copies(path, count), _split_copies(count)
        else:
            theirs = (columns // count, rows)
            join, split = _join_tasks(count), _split_tasks(count)
        yield Binding(f"{path}.{leaf}", keys, (theirs,) * (tasks * count), join, split)


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


def _join_tasks(count: int) -> Callable[[Arrays], np.ndarray]:
    def join(arrays: Arrays) -> np.ndarray:
        tasks = [arrays[k : k + count] for k in range(0, len(arrays), count)]
        return np.stack([np.concatenate(task).T for task in tasks])

    return join


def _split_tasks(count: int) -> Callable[[np.ndarray], Arrays]:
    return lambda array: [part for task in array for part in np.split(task.T, count)]


def _join_copies(path: str, count: int) -> Callable[[Arrays], np.ndarray]:
    def join(arrays: Arrays) -> np.ndarray:
        for k, array in enumerate(arrays):
            if not np.array_equal(array, arrays[k - k % count]):
                raise CheckpointError(
                    f"{path}.lora_a: query, key and value projections have different lora_A; "
                    "one shared lora_A is expected, since this model projects all three at once"
                )
        return np.stack([array.T for array in arrays[::count]])

    return join


def _split_copies(count: int) -> Callable[[np.ndarray], Arrays]:
    return lambda array: [task.T for task in array for _ in range(count)]
