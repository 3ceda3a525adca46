"""Time of one layer's parts: each part alone, compared with the whole layer.

    python benchmarks/layer.py --dtype bfloat16 --rows 8 --tokens 128

Parts run as programs of their own on random data of the full-size network, so their sum is an
estimate; "before" marks the plain form that a part replaced.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from published import FULL, published_config  # noqa: E402

from jina_jax.config import Config  # noqa: E402
from jina_jax.nn.attention import attention  # noqa: E402
from jina_jax.nn.encoder import Context, Layer  # noqa: E402
from jina_jax.nn.kernels import choose, head_kernels  # noqa: E402
from jina_jax.nn.layers import LayerNorm, gelu  # noqa: E402
from jina_jax.nn.matmul import einsum  # noqa: E402
from jina_jax.nn.protocol import Rows  # noqa: E402
from jina_jax.nn.rope import apply_rotary, rotary_angles  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    more = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
    config = Config.from_dict({**published_config(FULL), **more})
    programs = parts(config, args)
    milliseconds = time_all(programs, args.rounds)
    print(common.header("jax", "flax"))
    print(f"{args.dtype}, {args.rows} x {args.tokens} tokens, medians of {args.rounds}\n")
    print("| part | ms | share of the layer |\n|---|---|---|")
    whole = milliseconds["the layer"]
    for name, value in milliseconds.items():
        print(f"| {name} | {value:.2f} | {value / whole:.0%} |")


def parts(config, args) -> dict[str, tuple]:
    """Return a jitted function and its arguments per part."""
    dtype, width = jnp.dtype(args.dtype), config.hidden_size
    rows, tokens = args.rows, args.tokens
    random = np.random.default_rng(0)

    def draw(*shape, dtype=dtype):
        return jnp.asarray(random.standard_normal(shape, np.float32), dtype)

    x, y = draw(rows, tokens, width), draw(rows, tokens, width, dtype=jnp.float32)
    inner = draw(rows, tokens, config.intermediate_size, dtype=jnp.float32)
    heads = (rows, tokens, config.num_attention_heads, config.head_dim)
    query = draw(*heads)
    mask = jnp.ones((rows, tokens), bool)
    angles = rotary_angles(jnp.arange(tokens)[None], config.head_dim, config.rotary_emb_base)
    layer = Layer(config, dtype=dtype, rngs=nnx.Rngs(0))
    norm = LayerNorm(config, dtype=dtype, rngs=nnx.Rngs(0))
    choice = choose(jax.default_backend(), args.dtype, tokens, 1, config.head_dim)
    kernel = head_kernels(1).get(choice.name, attention)  # a TPU's does not take heads apart
    prepared = choice.kernels.prepare(Rows(mask, None, angles))
    context = Context(prepared, False, None, choice.kernels)
    kernels = [
        draw(width, 3 * width),
        draw(width, width),
        draw(width, config.intermediate_size),
        draw(config.intermediate_size, width),
    ]
    inputs = [x, x, x, inner.astype(dtype)]

    def matmuls(inputs, kernels):
        return [einsum("bti,io->bto", *pair) for pair in zip(inputs, kernels, strict=True)]

    def rotate(query):
        return apply_rotary(query, *angles).astype(dtype)

    programs = {
        "the layer": (lambda x: layer(x, context), x),
        "its four matmuls": (matmuls, inputs, kernels),
        "attention": (lambda q: kernel(q, q, q, mask, None), query),
        "attention, before: one product for all heads": (lambda q: attention(q, q, q, mask), query),
        "GELU (erf)": (lambda h: gelu(h).astype(dtype), inner),
        "GELU, before: jax.nn.gelu (erfc)": (
            lambda h: jax.nn.gelu(h, approximate=False).astype(dtype),
            inner,
        ),
        "rotary positions, queries and keys": (lambda q, k: (rotate(q), rotate(k)), query, query),
        "residual sums and LayerNorm, twice": (
            lambda x, y: norm(norm(x.astype(jnp.float32) + y).astype(jnp.float32) + y),
            x,
            y,
        ),
    }
    return {name: (jax.jit(run), *arguments) for name, (run, *arguments) in programs.items()}


def time_all(programs: dict[str, tuple], rounds: int) -> dict[str, float]:
    """Return each program's median milliseconds, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, (run, *arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            if turn:  # the first call compiles
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
