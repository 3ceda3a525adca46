"""Find and open the weight files of a foreign checkpoint directory."""

from __future__ import annotations

from pathlib import Path

from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor, open_safetensors
from jina_jax.config import ConfigError
from jina_jax.convert.torch_pickle import open_torch
from jina_jax.files import read_json

# In order of preference, as in transformers. An index lists the shards of one checkpoint.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

# Switches of PEFT's LoraConfig that change what an adapter computes.
_UNSUPPORTED = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layer_replication", "alora_invocation_tokens", "arrow_config"),
    *("kasa_config", "monteclora_config", "target_parameters", "trainable_token_indices"),
)

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
        if path.exists():
            shards = _shards(path) if name.endswith(".index.json") else [path]
            return path, [pair for shard in shards for pair in open_file(shard).items()]
    raise CheckpointError(f"{directory}: expected one of {', '.join(WEIGHT_FILES)}; found none")


def open_file(path: Path) -> dict[str, LazyTensor]:
    """Open one safetensors or PyTorch file, distinguished by its suffix."""
    return open_torch(path) if path.suffix == ".bin" else open_safetensors(path)


def open_adapter(folder: Path) -> tuple[int, float, dict[str, LazyTensor]]:
    """Open a PEFT LoRA folder.

    Returns:
      rank, alpha, and the tensors under PEFT's keys.

    Raises:
      ConfigError: if the adapter is not plain LoRA with one rank and alpha for all modules.
      CheckpointError: if its weights are missing or not valid.
    """
    raw = read_json(folder / "adapter_config.json")
    plain = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
    wrong = [f"{k}={raw.get(k)!r}: expected {v!r}" for k, v in plain.items() if raw.get(k, v) != v]
    wrong += [f"{k}={raw[k]!r}: not supported" for k in _UNSUPPORTED if raw.get(k)]
    wrong += [f"{k} is missing" for k in ("r", "lora_alpha") if k not in raw]
    if wrong:
        raise ConfigError(f"{folder / 'adapter_config.json'}: " + "; ".join(wrong))
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            return raw["r"], raw["lora_alpha"], open_file(folder / name)
    raise CheckpointError(f"{folder}: expected adapter_model.safetensors or adapter_model.bin")


def open_dense(folder: Path) -> dict[str, LazyTensor]:
    """Open the weights of a module Dense of sentence-transformers.

    Raises:
      CheckpointError: if they are missing or not valid.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
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
