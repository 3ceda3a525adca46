"""Adapters in PEFT's folders, and the modules that they adapt."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jina_jax.checkpoints.native import FLOATS
from jina_jax.checkpoints.tensors import FLOAT_DTYPES, CheckpointError, LazyTensor
from jina_jax.config import ConfigError
from jina_jax.convert.files import open_file
from jina_jax.convert.layouts import IGNORED
from jina_jax.convert.peft_config import check_peft_config, short
from jina_jax.files import damage, read_json

_LOGGER = logging.getLogger("jina_jax")

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # in order of preference

_CHOICES = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_POOLER = "pooler.dense"
_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<factor>[AB])"
    r"(?P<weight>\.weight)?"
)


@dataclasses.dataclass(frozen=True)
class Factors:
    """The update of one module, ``scale · B A``.

    Attributes:
      a: (r, in), for an embedding (r, V).
      b: (out, r), for an embedding (D, r).
      alpha: of ``scale = alpha / r``: ``lora_alpha``, or ``lora_alpha · sqrt(r)`` for rsLoRA.
    """

    a: LazyTensor
    b: LazyTensor
    alpha: float

    @property
    def rank(self) -> int:
        """Number r of rows of A."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """Factor of the update."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """A LoRA adapter as PEFT writes it.

    Attributes:
      folder: where it is.
      config: the fields of its ``adapter_config.json``, checked.
      weights: its file of tensors.
      tensors: by PEFT's keys.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Path
    tensors: Mapping[str, LazyTensor]

    def count_of(self, modules: Mapping[str, tuple[str, ...]]) -> int:
        """Count the tensors that belong to one of these modules, given by ours."""
        known = tuple(f".{name}" for names in modules.values() for name in names)
        found = (match["module"] for key in self.tensors if (match := _KEY.fullmatch(key)))
        return sum(f".{name}".endswith(known) for name in found)

    def factors(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Factors]:
        """Resolve the modules that the adapter adapts, as PEFT does.

        Args:
          shapes: every linear and embedding module of the base model → the features that its update
            maps from and to: (in, out), or (V, D).

        Returns:
          The factors of each adapted module.

        Raises:
          ConfigError: if ``target_modules`` and the file name different modules.
          CheckpointError: listing every tensor that is missing, unknown, misshapen or not float.
        """
        prefix, found = self._by_module(shapes)
        wanted = {name for name in shapes if self._is_target(prefix + name)}
        if prefix and _POOLER not in found:  # a larger model has none
            wanted.discard(_POOLER)
        self._check_targets(wanted, set(found))
        return {name: self._factors(prefix + name, *found[name], shapes[name]) for name in found}

    def _by_module(
        self, shapes: Mapping[str, tuple[int, int]]
    ) -> tuple[str, dict[str, tuple[LazyTensor, LazyTensor]]]:
        """Return what precedes all module names ("", "roberta.", …), and the pairs (A, B)."""
        modules, problems = self._parsed()
        prefix = _prefix(modules, shapes)
        found, ignored = {}, []
        for name, pair in modules.items():
            own = name.removeprefix(prefix)
            if re.search(IGNORED, f"{name}.") or (own == _POOLER and own not in shapes):
                ignored.append(name)
            elif not name.startswith(prefix) or own not in shapes:
                problems.append(f"+ {name}: the base model has no such module")
            elif len(pair) < 2:
                problems.append(f"- {name}: expected lora_A and lora_B, got lora_{min(pair)} only")
            else:
                found[own] = (pair["A"], pair["B"])
        if problems:
            lines = "\n  ".join(problems)
            raise CheckpointError(f"{self.weights}: {len(problems)} keys do not fit:\n  {lines}")
        if ignored:
            _LOGGER.info("%s: ignored, no part of the encoder: %s", self.weights, _some(ignored))
        return prefix, found

    def _parsed(self) -> tuple[dict[str, dict[str, LazyTensor]], list[str]]:
        """Group the tensors by module and factor; describe those of another kind."""
        modules: dict[str, dict[str, LazyTensor]] = {}
        problems = []
        for key, tensor in self.tensors.items():
            match = _KEY.fullmatch(key)
            if match is None or bool(match["table"]) == bool(match["weight"]):
                problems.append(f"+ {key} {list(tensor.shape)}: unknown")
            elif tensor.dtype.name not in FLOAT_DTYPES:
                problems.append(f"! {key}: expected {FLOATS}, got {tensor.dtype}")
            else:
                modules.setdefault(match["module"], {})[match["factor"]] = tensor
        return modules, problems

    def _check_targets(self, wanted: set[str], found: set[str]) -> None:
        problems = []
        if missing := sorted(wanted - found):
            problems.append(f"names modules without tensors: {_some(missing)}")
        if unnamed := sorted(found - wanted):
            problems.append(f"does not name these, of which there are tensors: {_some(unnamed)}")
        if not wanted and not found:
            problems.append("names no module of the base model")
        if problems:
            given = [
                f"{name}={short(value)}"
                for name in _CHOICES
                if (value := self.config.get(name)) is not None
            ]
            raise ConfigError(
                f"{self.folder / CONFIG_FILE}: {', '.join(given)} "
                f"{'; '.join(problems)} (in {self.weights.name})"
            )

    def _is_target(self, name: str) -> bool:
        """Apply target_modules, exclude_modules, layers_to_transform and layers_pattern."""
        excluded, targets = self.config.get("exclude_modules"), self.config["target_modules"]
        if excluded and _names(excluded, name):
            return False
        if isinstance(targets, str):
            if targets.lower() == "all-linear":
                return not name.endswith("_embeddings")
            return _names(targets, name)
        return name in targets or (_names(targets, name) and self._is_layer(name))

    def _is_layer(self, name: str) -> bool:
        layers, patterns = (self.config.get(k) for k in ("layers_to_transform", "layers_pattern"))
        if layers is None or layers == []:
            return True
        patterns = [patterns] if isinstance(patterns, str) else patterns
        # Without a pattern a layer's number follows any name that is not the first.
        expressions = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in patterns or ()] or [
            r".*?\.[^.]*\.(?P<idx>\d+)\."
        ]
        matches = (re.match(expression, name) for expression in expressions)
        match = next(filter(None, matches), None)
        return match is not None and int(match["idx"]) in (
            [layers] if isinstance(layers, int) else layers
        )

    def _factors(self, name: str, a: LazyTensor, b: LazyTensor, shape: tuple[int, int]) -> Factors:
        rank = _by_pattern(self.config.get("rank_pattern"), name, self.config["r"])
        alpha = _by_pattern(self.config.get("alpha_pattern"), name, self.config["lora_alpha"])
        expected = ((rank, shape[0]), (shape[1], rank))
        if (a.shape, b.shape) != expected:
            raise CheckpointError(
                f"{self.weights}: {name}: expected lora_A {list(expected[0])} and lora_B "
                f"{list(expected[1])} by r or rank_pattern, got {list(a.shape)} and {list(b.shape)}"
            )
        return Factors(a, b, alpha * math.sqrt(rank) if self.config.get("use_rslora") else alpha)


def open_peft(folder: Path) -> PeftAdapter:
    """Open a folder with an adapter.

    Raises:
      ConfigError: listing every field that cannot be applied.
      CheckpointError: if its weights are missing or not valid.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    check_peft_config(path, config)
    for name in WEIGHT_FILES:
        if (folder / name).exists() or damage(folder / name):
            return PeftAdapter(folder, config, folder / name, open_file(folder / name))
    raise CheckpointError(f"{folder}: expected {' or '.join(WEIGHT_FILES)}; found none")


def _names(targets: str | Sequence[str], name: str) -> bool:
    """Return whether PEFT's pattern or list of suffixes names a module."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _prefix(names: Iterable[str], known: Iterable[str]) -> str:
    """Return what precedes the known modules in an adapter of a larger model ("roberta.", …)."""
    for name in names:
        for own in known:
            if name == own or name.endswith(f".{own}"):
                return name[: -len(own)]
    return ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
