"""Our stacked adapters as PEFT's folders, with no more modules and ranks than they need."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.config import Config
from jina_jax.convert.stacking import Modules, rounded
from jina_jax.nn.parameters import is_table

_Kept = list[int]


@dataclasses.dataclass(frozen=True)
class _Module:
    """One of PEFT's modules: a part of the outputs of one of ours, with some of its ranks."""

    path: str
    part: int
    parts: int
    kept: _Kept


def unstack(
    tensors: Mapping[str, LazyTensor], modules: Modules, task: int
) -> dict[str, tuple[LazyTensor, LazyTensor]]:
    """Split one task's adapter by PEFT's modules; ``stacking.stack`` joins it again.

    Args:
      tensors: our factors by path.
      modules: our module's path → theirs.
      task: number on the task axis.

    Returns:
      A (r, in) and B (out, r) of every module that the task adapts.
    """
    found: dict[str, _Module] = {}
    for path, names in modules.items():
        a, b = (tensors[f"{path}.{leaf}"].read()[task].copy() for leaf in ("lora_a", "lora_b"))
        for part, kept in enumerate(_kept(a, b, len(names))):
            if kept:
                found[names[part]] = _Module(path, part, len(names), kept)
    if not found:  # PEFT needs at least one module
        path, names = next(iter(modules.items()))
        found[names[0]] = _Module(path, 0, len(names), [0])
    return {name: _factors(tensors, module, task) for name, module in found.items()}


def _kept(a: np.ndarray, b: np.ndarray, parts: int) -> list[_Kept]:
    """Choose the ranks that each part of a module keeps.

    Args:
      a: (in, R).
      b: (R, out), with the outputs of the parts side by side.
      parts: number of modules that it is.

    Returns:
      For each part its ranks: its own block, if the parts are blocks; else all that are not zero.
    """
    used = a.any(axis=0) | b.any(axis=1)
    every = np.flatnonzero(used).tolist()
    own = [np.flatnonzero(part.any(axis=1)).tolist() for part in np.split(b, parts, axis=1)]
    joined = [ranks for at, ranks in enumerate(own) if ranks and ranks not in own[:at]]
    if [number for ranks in joined for number in ranks] != every:
        return [every] * parts
    return own


def _factors(
    tensors: Mapping[str, LazyTensor], module: _Module, task: int
) -> tuple[LazyTensor, LazyTensor]:
    a, b = (tensors[f"{module.path}.{leaf}"] for leaf in ("lora_a", "lora_b"))
    width, kept = b.shape[2] // module.parts, module.kept
    columns = slice(module.part * width, (module.part + 1) * width)
    return (
        LazyTensor((len(kept), a.shape[1]), a.dtype, lambda: a.read()[task][:, kept].T),
        LazyTensor((width, len(kept)), b.dtype, lambda: b.read()[task][kept, columns].T),
    )


def peft_config(
    factors: Mapping[str, tuple[LazyTensor, LazyTensor]], modules: Modules, config: Config
) -> dict[str, object]:
    """Describe an adapter to PEFT.

    Args:
      factors: from ``unstack``.
      modules: as for ``unstack``.
      config: has the scale that all of our adapters share.

    Returns:
      The fields of ``adapter_config.json``.
    """
    ranks = {name: a.shape[0] for name, (a, _) in factors.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: own for name, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": _alpha(config, rank),
        "rank_pattern": others,
        "alpha_pattern": {name: _alpha(config, own) for name, own in others.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": _targets(list(ranks), [n for names in modules.values() for n in names]),
    }


def peft_keys(path: str, name: str) -> tuple[str, str]:
    """Return PEFT's keys of A and B of a module, which is ``path`` here."""
    stem = f"base_model.model.{name}"
    if is_table(f"{path}.lora_a"):
        return f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _targets(names: Sequence[str], every: Sequence[str]) -> list[str]:
    """Name modules by their last word, unless that would name others, too."""
    words = {name.rpartition(".")[2] for name in names}
    # transformers makes a pooler where a checkpoint has none.
    meant = {name for name in (*every, "pooler.dense") if name.rpartition(".")[2] in words}
    return sorted(words if meant == set(names) else names)


def _alpha(config: Config, rank: int) -> float:
    """Return the alpha with which a rank has our scale, as an integer where it is one."""
    alpha = config.lora_scale * rank if rank != config.lora_rank else float(config.lora_alpha or 0)
    return rounded(alpha)
