"""Find and open the weight files of a foreign checkpoint directory."""

from __future__ import annotations

from pathlib import Path

from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor, open_safetensors
from jina_jax.convert.torch_pickle import open_torch
from jina_jax.files import damage, read_json

# In order of preference, as in transformers. An index lists the shards of one checkpoint.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# In order of preference, too; ``jina_jax.text`` builds a tokenizer from either.
TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")

_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download")

Pairs = list[tuple[str, LazyTensor]]


def open_weights(directory: Path) -> tuple[Path, Pairs]:
    """Open a checkpoint's weights.

    Returns:
      The file that was opened, and (key, tensor) of every tensor in it or in its shards; a key in
      two shards is listed twice.

    Raises:
      CheckpointError: if there is no weight file, a shard is missing, or a file is not valid.
    """
    for name in WEIGHT_FILES:
        path = directory / name
        if is_file(path):
            shards = _shards(path) if name.endswith(".index.json") else [path]
            return path, [pair for shard in shards for pair in open_file(shard).items()]
    # The second is where huggingface_hub downloads to a directory.
    paths = [*directory.glob("*"), *directory.glob(".cache/huggingface/download/*")]
    begun = sorted(path.name for path in paths if path.suffix in _UNFINISHED)
    raise CheckpointError(
        f"{directory}: expected one of {', '.join(WEIGHT_FILES)}; found "
        + (f"downloads that did not finish: {', '.join(begun)}" if begun else "none")
    )


def open_file(path: Path) -> dict[str, LazyTensor]:
    """Open one safetensors or PyTorch file, distinguished by its suffix."""
    if found := damage(path):
        raise CheckpointError(f"{path}: {found}")
    return open_torch(path) if path.suffix == ".bin" else open_safetensors(path)


def is_file(path: Path) -> bool:
    """Return whether there is a file; True for a link to nothing, which its reader then names."""
    return path.exists() or path.is_symlink()


def tokenizer_file(directory: Path) -> Path:
    """Return the file of a directory's tokenizer; tokenizer.json if it has none."""
    paths = [directory / name for name in TOKENIZERS]
    return next((path for path in paths if is_file(path)), paths[0])


def open_dense(folder: Path) -> dict[str, LazyTensor]:
    """Open the weights of a module Dense of sentence-transformers.

    Raises:
      CheckpointError: if they are missing or not valid.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if is_file(folder / name):
            return open_file(folder / name)
    raise CheckpointError(f"{folder}: expected model.safetensors or pytorch_model.bin of Dense")


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    files = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not files or not all(isinstance(name, str) for name in files):
        raise CheckpointError(f"{index}: expected an object 'weight_map', from key to file name")
    names = sorted(set(files))
    wrong = [n for n in names if Path(n).name != n or not (index.parent / n).is_file()]
    if wrong:
        raise CheckpointError(f"{index}: these shards are not beside it: {', '.join(wrong)}")
    return [index.parent / name for name in names]
