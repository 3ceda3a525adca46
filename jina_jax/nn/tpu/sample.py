"""A layer of random weights and one row for it: what the start-up check and the tests compute."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jina_jax.config import Config
from jina_jax.nn import lanes
from jina_jax.nn.encoder import Context
from jina_jax.nn.joined import JoinedLayer
from jina_jax.nn.protocol import Kernels, Rows
from jina_jax.nn.rope import rotary_angles

_TASKS = ("first", "second", "third")
CONFIG = Config.from_dict(
    {
        "vocab_size": 8,
        "hidden_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "truncate_dim": None,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "position_embedding_type": "rotary",
        "rotary_emb_base": 20000.0,
        "lora_adaptations": list(_TASKS),
        "lora_rank": 4,
        "lora_alpha": 1,
        "task_instructions": dict.fromkeys(_TASKS, ""),
        "matryoshka_dimensions": [256],
        "default_prompt": "",
        "add_pooling_layer": False,
        "emb_pooler": "mean",
    }
)


def layer_of(dtype: Any, config: Config = CONFIG) -> JoinedLayer:
    """Draw a layer, of which no weight is zero but those of unused lanes."""
    random = np.random.default_rng(0)
    graph, state = nnx.split(JoinedLayer(config, dtype=dtype, rngs=None, groups=1))
    used = config.num_tasks * (config.lora_rank or 0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        values = random.standard_normal(leaf.shape)
        values *= leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 1
        name = jax.tree_util.keystr(path)
        if "lora_a" in name:
            values[:, used:] = 0
        if "qkv_proj" in name and "kernel" in name:
            # Tokens attend to few others, so that a wrong score is seen in what they get.
            values[:, : 2 * config.hidden_size] *= 2
        return jnp.asarray(values, dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, state))


def x_of(rows: int, tokens: int, task_ids: np.ndarray | None, dtype: Any, config: Config = CONFIG):
    """Draw x, with the products of each token's task behind it where there are tasks."""
    random = np.random.default_rng(1)
    x = random.standard_normal((rows, tokens, config.hidden_size))
    if task_ids is not None:
        own = lanes.lane_tasks(config.num_tasks, config.lora_rank or 0)[0] == task_ids[..., None]
        low = np.where(own, random.standard_normal(own.shape), 0)
        x = np.concatenate((x, low), axis=-1)
    return jnp.asarray(x, dtype)


def rows_of(rows: int, tokens: int) -> Rows:
    """Return rows of texts of odd lengths, the first with some padding."""
    segments = np.ones((rows, tokens), np.int32)
    segments[:, 37:] = 2
    segments[0, tokens - 11 :] = 0
    angles = rotary_angles(jnp.arange(tokens, dtype=jnp.int32)[None], 64, 20000.0)
    return Rows(jnp.asarray(segments > 0), jnp.asarray(segments), angles)


def layer_output(kernels: Kernels, device: jax.Device, tokens: int = 256) -> np.ndarray:
    """Compute one row with mixed tasks on a device, in bfloat16: float32 (T, D)."""
    task_ids = np.arange(tokens, dtype=np.int32)[None] % (len(_TASKS) + 1) - 1

    def run(layer: JoinedLayer, x: jax.Array, task_ids: jax.Array) -> jax.Array:
        prepared = kernels.prepare(rows_of(1, tokens))
        out = layer(x, Context(prepared, True, None, kernels, task_ids))
        return out[0, :, : CONFIG.hidden_size].astype(jnp.float32)

    operands = (layer_of(jnp.bfloat16), x_of(1, tokens, task_ids, jnp.bfloat16), task_ids)
    operands = jax.device_put(operands, device)
    # Compiled first, so that a caller that is being traced makes no difference.
    return np.asarray(jax.jit(run).lower(*operands).compile()(*operands))
