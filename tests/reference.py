"""The published network in float64 NumPy, a row at a time, straight from its description.

It reads tensors under their published names and merges adapters into weights: an independent way
to the numbers that ``jina_jax.nn.encoder`` computes.
"""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf)


class Reference:
    """Published tensors and config, able to encode one row of token ids.

    Args:
      tensors: key of the published file → array.
      config: its config.json.
    """

    def __init__(self, tensors: dict[str, np.ndarray], config: dict):
        self.tensors = {key: np.asarray(value, np.float64) for key, value in tensors.items()}
        self.config = config

    def weight(self, module: str, task: int | None) -> np.ndarray:
        stem = f"roberta.{module}.parametrizations.weight"
        weight = self.tensors[f"{stem}.original"]
        if task is None:
            return weight
        a, b = (self.tensors[f"{stem}.0.lora_{x}"][task] for x in "AB")
        update = a @ b if "embeddings" in module else b @ a
        return weight + update * self.config["lora_alpha"] / self.config["lora_rank"]

    def linear(self, module: str, x: np.ndarray, task: int | None) -> np.ndarray:
        return x @ self.weight(module, task).T + self.tensors[f"roberta.{module}.bias"]

    def norm(self, module: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        return x * self.tensors[f"roberta.{module}.weight"] + self.tensors[f"roberta.{module}.bias"]

    def rotate(self, x: np.ndarray) -> np.ndarray:
        half = x.shape[-1] // 2
        inverse = self.config["rotary_emb_base"] ** -(np.arange(half) / half)
        angles = np.arange(len(x))[:, None] * inverse
        turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate((turned.real, turned.imag), -1)

    def layer(self, i: int, x: np.ndarray, task: int | None) -> np.ndarray:
        stem, heads = f"encoder.layers.{i}", self.config["num_attention_heads"]
        query, key, value = np.split(self.linear(f"{stem}.mixer.Wqkv", x, task), 3, axis=-1)
        mixed = []
        for head in range(heads):
            part = np.s_[:, head * (x.shape[1] // heads) : (head + 1) * (x.shape[1] // heads)]
            scores = self.rotate(query[part]) @ self.rotate(key[part]).T
            weights = np.exp(scores / math.sqrt(x.shape[1] // heads))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ value[part])
        attended = self.linear(f"{stem}.mixer.out_proj", np.concatenate(mixed, -1), task)
        x = self.norm(f"{stem}.norm1", x + attended)
        inner = self.linear(f"{stem}.mlp.fc1", x, task)
        inner = 0.5 * inner * (1 + _erf(inner / math.sqrt(2)))
        return self.norm(f"{stem}.norm2", x + self.linear(f"{stem}.mlp.fc2", inner, task))

    def __call__(self, ids: np.ndarray, task: int | None) -> list[np.ndarray]:
        """Return the hidden states of a row of ids (T,): L + 1 arrays (T, D)."""
        x = self.weight("embeddings.word_embeddings", task)[ids]
        x = self.norm("emb_ln", x + self.weight("embeddings.token_type_embeddings", task)[0])
        hidden = [x]
        for i in range(self.config["num_hidden_layers"]):
            hidden.append(self.layer(i, hidden[-1], task))
        return hidden

    def pooler(self, last: np.ndarray, task: int | None) -> np.ndarray:
        return np.tanh(self.linear("pooler.dense", last[0], task))
