"""Facts about checkpoints, as JSON values and laid out for reading."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jina_jax.convert import Checkpoint

_FILES = (
    *("*.safetensors", "*.bin", "tokenizer.json", "sentencepiece.bpe.model"),
    "*/adapter_model.*",
)
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Collect facts from a checkpoint's config and headers, as JSON values.

    Args:
      checkpoint: from ``open_checkpoint``; no tensor is read.
    """
    from jina_jax.nn.parameters import is_adapter

    config = checkpoint.config
    sizes = {path: math.prod(tensor.shape) for path, tensor in checkpoint.tensors.items()}
    adapters = sum(n for path, n in sizes.items() if is_adapter(path))
    total = sum(sizes.values())
    return {
        "directory": str(checkpoint.directory),
        "layout": checkpoint.layout,
        "dtypes": sorted({tensor.dtype.name for tensor in checkpoint.tensors.values()}),
        "parameters": {"base": total - adapters, "adapters": adapters, "total": total},
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_length": config.max_length,
        "max_seq_length": config.max_seq_length or config.max_length,
        "position_embedding_type": config.position_embedding_type,
        "rotary_emb_base": config.rotary_emb_base,
        "emb_pooler": config.emb_pooler,
        "include_prompt": config.include_prompt,
        "dense": [f"{own.out_features} {own.activation}" for own in config.dense],
        "output_size": config.output_size,
        "similarity_fn_name": config.similarity_fn_name,
        "matryoshka_dimensions": list(config.matryoshka_dimensions),
        "truncate_dim": config.truncate_dim,
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "tasks": {task: config.prompt(task) for task in config.lora_adaptations},
        "default_prompt": config.default_prompt,
        "prompts": dict(config.prompts),
        "files": _file_sizes(checkpoint.directory),
        "ignored": list(checkpoint.ignored),
        "notes": list(checkpoint.notes),
    }


def as_text(facts: dict[str, Any]) -> str:
    """Lay out the facts of ``describe`` for reading."""
    count, base = facts["parameters"], facts["rotary_emb_base"]
    dims = facts["matryoshka_dimensions"] or [f"1 to {facts['output_size']}"]
    positions = facts["position_embedding_type"] + (f", base {base:g}" if base else "")
    lines = [
        ("directory", facts["directory"]),
        ("layout", facts["layout"]),
        ("dtype", ", ".join(facts["dtypes"])),
        (
            "parameters",
            f"{count['total']:,} (base {count['base']:,}, adapters {count['adapters']:,})",
        ),
        (
            "network",
            f"{facts['num_hidden_layers']} layers of width {facts['hidden_size']}, "
            f"{facts['num_attention_heads']} heads, vocabulary {facts['vocab_size']:,}",
        ),
        ("positions", f"{positions}, at most {facts['max_length']:,} tokens per text"),
        ("pooling", _pooling(facts)),
        ("dimensions", f"{', '.join(map(str, dims))} (default {_default_dim(facts)})"),
        ("no task", f"prompt {facts['default_prompt']!r}"),
        *((f"task {task}", f"prompt {prompt!r}") for task, prompt in facts["tasks"].items()),
        *((f"prompt {name}", repr(prompt)) for name, prompt in facts["prompts"].items()),
        *((f"file {name}", readable(size)) for name, size in facts["files"].items()),
    ]
    if facts["ignored"]:
        lines.append(("ignored", ", ".join(facts["ignored"])))
    return columns(lines + [("note", note) for note in facts["notes"]])


def _pooling(facts: dict[str, Any]) -> str:
    """Name how token vectors become a text's vector, with what differs from the usual way."""
    parts = [facts["emb_pooler"]]
    if not facts["include_prompt"]:
        parts.append("without the prompt's tokens")
    parts += [f"Dense {one}" for one in facts["dense"]]
    if facts["max_seq_length"] != facts["max_length"]:
        parts.append(f"of {facts['max_seq_length']:,} tokens unless told otherwise")
    if facts["similarity_fn_name"] != "cosine":
        parts.append(f"similarity {facts['similarity_fn_name']}")
    return ", ".join(parts)


def columns(lines: list[tuple[str, str]]) -> str:
    """Lay out labels and values in two columns."""
    width = max(len(label) for label, _ in lines) + 2
    return "\n".join(f"{label:<{width}}{value}" for label, value in lines)


def report_copy(checkpoint: Checkpoint, target: Path, layout: str, task: str | None = None) -> str:
    """Report a copy of a checkpoint.

    Args:
      checkpoint: the one that was read.
      target: directory that was written.
      layout: its layout.
      task: adapter that was merged, if any.
    """
    from jina_jax.convert.files import tokenizer_file

    source = f"{checkpoint.directory}: layout {checkpoint.layout}, {checkpoint.dtype.name}"
    files = ", ".join(f"{name} {readable(size)}" for name, size in _file_sizes(target).items())
    lines = [f"read     {source}, {len(checkpoint.tensors)} tensors"]
    if task is not None:
        others = [name for name in checkpoint.config.lora_adaptations if name != task]
        lines.append(f"merged   {task}; left out: {', '.join(others) or 'nothing'}")
    lines.append(f"wrote    {target}: layout {layout}, {files}")
    if checkpoint.ignored:
        lines.append(f"ignored  not part of the encoder: {', '.join(checkpoint.ignored)}")
    lines += [f"note     {note}" for note in checkpoint.notes]
    if not tokenizer_file(target).exists():
        lines.append("note     no tokenizer.json: texts cannot be encoded without one")
    return "\n".join(lines)


def readable(size: int) -> str:
    """Format a number of bytes in decimal units: 1140000000 → "1.14 GB"."""
    power = min(max(len(str(size)) - 1, 0) // 3, len(_UNITS) - 1)
    return f"{size / 1000**power:.3g} {_UNITS[power]}"


def _default_dim(facts: dict[str, Any]) -> int:
    return facts["truncate_dim"] or facts["output_size"]


def _file_sizes(directory: Path) -> dict[str, int]:
    """Map weight and tokenizer files, adapter folders included, to their sizes in bytes."""
    paths = [path for pattern in _FILES for path in sorted(directory.glob(pattern))]
    return {str(path.relative_to(directory)): path.stat().st_size for path in paths}
