"""Random checkpoints in the published layout, written from its description alone.

Names and shapes are spelled out here a second time, on purpose: the converter's tables are tested
against them. Nothing of ``jina_jax`` is used.
"""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

TASKS = ("retrieval.query", "retrieval.passage", "separation", "classification", "text-matching")
PROMPTS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}
FULL = {"vocab": 250002, "width": 1024, "layers": 24, "heads": 16, "inner": 4096, "positions": 8194}
SMALL = {"vocab": 300, "width": 64, "layers": 3, "heads": 4, "inner": 128, "positions": 514}
DIMS = (32, 64, 128, 256, 512, 768, 1024)


def published_config(size: dict[str, int], **changes) -> dict:
    """Return config.json as the published repository has it."""
    config = {
        "architectures": ["XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "auto_map": {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling_lora.X"},
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": size["width"],
        "initializer_range": 0.02,
        "intermediate_size": size["inner"],
        "layer_norm_eps": 1e-05,
        "load_trained_adapters": True,
        "lora_adaptations": list(TASKS),
        "lora_alpha": 1,
        "lora_dropout_p": 0.0,
        "lora_main_params_trainable": False,
        "lora_rank": 4,
        "matryoshka_dimensions": [dim for dim in DIMS if dim <= size["width"]],
        "max_position_embeddings": size["positions"],
        "num_attention_heads": size["heads"],
        "num_hidden_layers": size["layers"],
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "task_instructions": PROMPTS,
        "torch_dtype": "bfloat16",
        "truncate_dim": None,
        "type_vocab_size": 1,
        "use_flash_attn": True,
        "vocab_size": size["vocab"],
    }
    return {**config, **changes}


def published_shapes(size: dict[str, int], tasks: int = 5, rank: int = 4) -> dict[str, tuple]:
    """Map every key of the published file to its shape."""
    width, inner = size["width"], size["inner"]
    shapes: dict[str, tuple[int, ...]] = {}

    def weight(module: str, rows: int, columns: int, *, embedding: bool = False) -> None:
        # An embedding's A has a row for every row of the table; a linear layer's is (rank, in).
        a, b = ((rows, rank), (rank, columns)) if embedding else ((rank, columns), (rows, rank))
        shapes[f"{module}.parametrizations.weight.original"] = (rows, columns)
        shapes[f"{module}.parametrizations.weight.0.lora_A"] = (tasks, *a)
        shapes[f"{module}.parametrizations.weight.0.lora_B"] = (tasks, *b)
        if not embedding:
            shapes[f"{module}.bias"] = (rows,)

    def norm(module: str) -> None:
        shapes[f"{module}.weight"] = shapes[f"{module}.bias"] = (width,)

    weight("roberta.embeddings.word_embeddings", size["vocab"], width, embedding=True)
    weight("roberta.embeddings.token_type_embeddings", 1, width, embedding=True)
    norm("roberta.emb_ln")
    for i in range(size["layers"]):
        layer = f"roberta.encoder.layers.{i}"
        weight(f"{layer}.mixer.Wqkv", 3 * width, width)
        weight(f"{layer}.mixer.out_proj", width, width)
        norm(f"{layer}.norm1")
        weight(f"{layer}.mlp.fc1", inner, width)
        weight(f"{layer}.mlp.fc2", width, inner)
        norm(f"{layer}.norm2")
    weight("roberta.pooler.dense", width, width)
    return shapes


def random_tensor(key: str, shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Draw a tensor whose part of the network keeps hidden states of order 1."""
    rng = np.random.default_rng([seed, *key.encode()])
    values = rng.standard_normal(shape, np.float32)
    if "norm" in key or "emb_ln" in key:
        values = 0.1 * values + (1.0 if key.endswith("weight") else 0.0)
    elif key.endswith("bias"):
        values *= 0.1
    elif "embeddings" not in key:
        # 1 / sqrt(in) for weights; adapters of which every product has half of a weight's size.
        values *= shape[-1] ** -0.5 if "lora_B" not in key else 1.0
    return values.astype(dtype)


def write_published(
    directory: Path, size: dict[str, int] = SMALL, dtype="float32", seed: int = 0, **changes
) -> Path:
    """Write config.json and model.safetensors; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    config = published_config(size, **changes)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    shapes = published_shapes(size)
    write_tensors(directory / "model.safetensors", shapes, dtype, seed)
    return directory


def write_tensors(path: Path, shapes: dict[str, tuple], dtype: np.dtype, seed: int) -> None:
    """Write random tensors as a safetensors file, one at a time."""
    name = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype.name]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for key, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, shape in shapes.items():
            file.write(random_tensor(key, shape, dtype, seed).tobytes())
