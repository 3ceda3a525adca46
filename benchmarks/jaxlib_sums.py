"""Wrong sums of the installed jaxlib on CPU, and the cost of avoiding them.

    python benchmarks/jaxlib_sums.py            # wrong results: patterns by route
    python benchmarks/jaxlib_sums.py --speed    # milliseconds per batch, 6 of 24 layers, by route

Routes: "plain", ``jax.jit`` without options; "ours", with ``jina_jax.compiler_options``; for speed
also "off", without YNNPACK. A cell counts the wrong results of all reductions (sum, mean, max, sum
of squares, over rows, columns and both) at 256 to 4,096 rows, against NumPy in float64.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import jina_jax
from jina_jax.runtime import compiling

ROWS = (256, 4096)
REDUCTIONS = {
    "sum": lambda y, axis: y.sum(axis=axis),
    "mean": lambda y, axis: y.mean(axis=axis),
    "max": lambda y, axis: y.max(axis=axis),
    "sum of squares": lambda y, axis: (y * y).sum(axis=axis),
}
OPERANDS = {
    "an array": lambda w: w,
    "a constant array": lambda w: jnp.asarray(np.cos(np.arange(w.size)).reshape(w.shape), w.dtype),
    "one number, constant": lambda w: jnp.full(w.shape, 2, w.dtype),
    "one number, computed": lambda w: jnp.full(w.shape, w[0, 0], w.dtype),
    "one row repeated": lambda w: jnp.broadcast_to(w[:1], w.shape),
}
OFF = {"xla_cpu_experimental_ynn_fusion_type": ""}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jina_jax.JaxlibWarning)
        routes = {"plain": {}, "ours": jina_jax.compiler_options("cpu")}
    print(f"jax {jax.__version__}, Python {sys.version.split()[0]}\n")
    if args.speed:
        print_speed({**routes, "off": OFF}, args.layers, args.rounds)
    else:
        print_wrong(routes)


def print_wrong(routes: dict[str, dict[str, str]]) -> None:
    """Print one line per kind of right operand and dtype: wrong results of each route."""
    print("| right operand | dtype | " + " | ".join(routes) + " |")
    print("|---|---|" + "---|" * len(routes))
    for name, dtype in itertools.product(OPERANDS, (jnp.float32, jnp.bfloat16)):
        counts = [wrong(OPERANDS[name], dtype, options) for options in routes.values()]
        cells = " | ".join(f"{bad} of {total}" for bad, total in counts)
        print(f"| {name} | {dtype.__name__} | {cells} |", flush=True)


def wrong(operand, dtype, options: dict[str, str]) -> tuple[int, int]:
    """Return the number of wrong results and the number of all results."""
    bad = total = 0
    random = np.random.default_rng(0)
    for rows in ROWS:
        x = jnp.asarray(random.standard_normal((rows, 64)), dtype)
        w = jnp.asarray(random.standard_normal((64, 96)), dtype)
        product = np.asarray(x, np.float64) @ np.asarray(operand(w), np.float64)
        for reduce, axis in itertools.product(REDUCTIONS.values(), (-1, 0, None)):

            def run(x, w, reduce=reduce, axis=axis):
                y = jnp.matmul(x, operand(w), preferred_element_type=jnp.float32)
                return reduce(y, axis)

            found = np.asarray(jax.jit(run, compiler_options=options)(x, w))
            expected = reduce(product, axis)
            scale = np.abs(product).max() * max(1, len(np.atleast_1d(product)) ** 0.5)
            total += 1
            bad += not np.allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)
    return bad, total


def print_speed(routes: dict[str, dict[str, str]], layers: int, rounds: int) -> None:
    """Print median milliseconds per batch and route, measured in turns, and ratios to plain."""
    from flax import nnx
    from published import FULL, published_config

    from jina_jax.config import Config
    from jina_jax.nn.encoder import Encoder
    from jina_jax.nn.forward import Inputs
    from jina_jax.runtime.engine import Engine, Program

    more = {"default_prompt": "", "add_pooling_layer": False, "emb_pooler": "mean"}
    fields = published_config({**FULL, "layers": layers, "vocab": 1000})
    config = Config.from_dict({**fields, **more})
    print("| batch | dtype | " + " | ".join(f"{name}, ms" for name in routes) + " | ours / plain |")
    print("|---|---|" + "---|" * (len(routes) + 1))
    for dtype in (jnp.bfloat16, jnp.float32):
        state = nnx.state(Encoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
        engine = Engine(config, state)
        for rows, tokens in ((8, 128), (2, 512), (32, 32), (1, 32)):
            ids = np.random.default_rng(0).integers(4, 1000, (rows, tokens)).astype(np.int32)
            spans = np.broadcast_to(np.array([0, tokens], np.int32), (rows, 1, 2))
            program = Program(rows, tokens, 1, None, False, "mean")
            programs = {}
            for name, options in routes.items():
                with mock.patch.object(compiling, "compiler_options", lambda _, o=options: o):
                    programs[name] = engine.lower(program).compile()
            times: dict[str, list[float]] = {name: [] for name in routes}
            for _ in range(rounds):
                for name in routes:
                    start = time.perf_counter()
                    programs[name](state, Inputs(ids, spans)).block_until_ready()
                    times[name].append(time.perf_counter() - start)
            medians = {name: statistics.median(own[1:]) for name, own in times.items()}
            cells = " | ".join(f"{1e3 * medians[name]:.1f}" for name in routes)
            ratio = medians["ours"] / medians["plain"]
            print(f"| {rows} x {tokens} | {dtype.__name__} | {cells} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
