"""Training: time of an adapter step compared with transformers + PEFT, and its memory.

    python benchmarks/training.py speed --layers 6
    python benchmarks/training.py memory [--tpu v5e]

``speed``: the same step on both sides in turns, one process per side with all cores: the retrieval
pair on queries and longer documents with hard negatives (triplet InfoNCE), or text-matching on
pairs of sentences (CoSENT); forward, backward, AdamW, starting with token ids. The other side pads
queries and documents each to the longest of them, as sentence-transformers does, and computes
gradients of the adapters only.

``memory``: compiles a step of the retrieval pair at the paper's batch, 128 rows of 9 texts of 512
tokens, at full size with a bfloat16 base; nothing is run. --tpu compiles for that chip by libtpu.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import common
from common import FULL, Peer, alternate, header, serve, table, write_checkpoints

WORKLOADS = {  # rows, texts per row, median tokens of queries and of documents, loss
    "retrieval": (8, 4, 16, 96, "triplet"),
    "retrieval, large": (32, 4, 16, 96, "triplet"),  # for a GPU
    "sentences": (32, 2, 20, 20, "cosent"),
}
RETRIEVAL = ("retrieval.query", "retrieval.passage")
TASKS = {"retrieval": RETRIEVAL, "retrieval, large": RETRIEVAL, "sentences": ("text-matching",)}
HEADS = ["step", "base", "texts", "tokens", "ours, s", "theirs, s", "theirs / ours", "losses"]
VOCAB = 32_000  # of 250,002: the adapters' rows of the table cost both sides the same
SIDES = ("jina_jax", "transformers + PEFT")
LEARNING_RATE, TAU = 5e-4, 0.05
PAPER = {"rows": 128, "texts": 9, "tokens": 512}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--layers", type=int, default=6)
    speed.add_argument("--rounds", type=int, default=7)
    speed.add_argument("--dtypes", default="float32,bfloat16")
    memory = commands.add_parser("memory")
    memory.add_argument("--layers", type=int, default=FULL["layers"])
    memory.add_argument("--micro-batch-tokens", type=int, default=4096)
    memory.add_argument("--tpu", help="a chip to compile for, e.g. v5e")
    worker = commands.add_parser("worker")
    for name in ("side", "directory", "dtype", "workload"):
        worker.add_argument(name)
    args = parser.parse_args()
    if args.command == "worker":
        make = Ours if args.side == SIDES[0] else Theirs
        serve(lambda: make(Path(args.directory), args.dtype, args.workload))
    elif args.command == "memory":
        measure_memory(args)
    else:
        measure_speed(args)


def measure_speed(args: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_base(directory, args.layers)
        for workload in ("retrieval", "sentences"):
            for dtype in args.dtypes.split(","):
                found = compare(directory, dtype, workload, args.rounds)
                rows.append([workload, dtype, *found])
                print(rows[-1], file=sys.stderr, flush=True)
    print(header("jax", "torch", "transformers", "peft"))
    print(f"{args.layers} layers of full width, medians of {args.rounds} alternating rounds\n")
    print(table(HEADS, rows))


def write_base(directory: Path, layers: int) -> None:
    """Write the base model and its adapters for both sides."""
    write_checkpoints(directory, layers, vocab=VOCAB, for_transformers=True)
    _write_adapters(directory)


def compare(
    directory: Path, dtype: str, workload: str, rounds: int, env: dict[str, str] | None = None
) -> list[Any]:
    """Return the cells of a row after "step" and "base", see ``HEADS``."""
    command = [__file__, "worker"]
    rest = [str(directory), dtype, workload]
    with (
        Peer([*command, SIDES[0], *rest], env or {}) as ours,
        Peer([*command, SIDES[1], *rest], {}) as theirs,
    ):
        first = {side: peer.ask("step") for side, peer in zip(SIDES, (ours, theirs), strict=True)}
        calls = {SIDES[0]: lambda: ours.ask("timed"), SIDES[1]: lambda: theirs.ask("timed")}
        times = alternate(calls, rounds)
    ids = _texts(workload)
    known = not any(isinstance(value, str) for value in times.values())
    ratio = times[SIDES[1]] / times[SIDES[0]] if known else None
    losses = " and ".join(f"{x:.4f}" for x in first.values() if not isinstance(x, str))
    return [len(ids), sum(map(len, ids)), times[SIDES[0]], times[SIDES[1]], ratio, losses]


def _write_adapters(directory: Path) -> None:
    from jina_jax.convert import open_checkpoint, write_checkpoint

    if not any(directory.glob("transformers/*/adapter_config.json")):
        write_checkpoint(open_checkpoint(directory / "published"), directory / "hf", "transformers")
    else:
        (directory / "hf").symlink_to(directory / "transformers")


def _texts(workload: str) -> list[list[int]]:
    """Draw token ids, row by row: a query and then documents, of log-normal lengths."""
    rows, columns, *medians, _ = WORKLOADS[workload]
    draw = random.Random(0)
    texts = []
    for i in range(rows * columns):
        length = min(int(draw.lognormvariate(0, 0.5) * medians[min(i % columns, 1)]), 400)
        texts.append([0, *(draw.randrange(4, VOCAB - 1) for _ in range(max(length, 3))), 2])
    return texts


def _scores(workload: str) -> list[float]:
    draw = random.Random(1)
    return [round(draw.uniform(0, 5), 1) for _ in range(WORKLOADS[workload][0])]


class Ours:
    """The step in this library."""

    def __init__(self, directory: Path, dtype: str, workload: str):
        import jax
        import numpy as np

        from jina_jax.convert import open_checkpoint
        from jina_jax.nn.kernels import choose
        from jina_jax.training import losses
        from jina_jax.training.micro_batches import Packing, pack
        from jina_jax.training.optimizer import optimizer
        from jina_jax.training.parameters import load_network
        from jina_jax.training.settings import Optimizer
        from jina_jax.training.step import Encoding, make_step, text_objective

        tasks = TASKS[workload]
        _, columns, *_, name = WORKLOADS[workload]
        checkpoint = open_checkpoint(directory / "published")
        network, trained, frozen = load_network(checkpoint, tasks, "adapters", dtype=dtype)
        ids = _texts(workload)
        task_ids = [min(i % columns, len(tasks) - 1) for i in range(len(ids))]
        self._micro_batches = pack(ids, task_ids, Packing(), checkpoint.config.pad_token_id)
        self._targets = {} if name == "triplet" else {"scores": np.float32(_scores(workload))}
        _, _, tokens = self._micro_batches.input_ids.shape
        slots = self._micro_batches.text_spans.shape[2]
        platform = jax.default_backend()
        kernels = choose(platform, dtype, tokens, slots, checkpoint.config.head_dim).kernels
        rule = optimizer(Optimizer(learning_rate=LEARNING_RATE, steps=100_000))
        objective = text_objective(Encoding(network, kernels), losses.function_of(name), columns)
        self._step = make_step(objective, rule)
        self._trained, self._frozen = trained, frozen
        self._opt_state = rule.init(self._trained)
        self._key = jax.random.key(0)

    def step(self) -> float:
        self._trained, self._opt_state, result = self._step(
            self._trained,
            self._opt_state,
            self._frozen,
            self._micro_batches,
            self._targets,
            self._key,
        )
        return float(result.loss)

    def timed(self) -> float:
        return common.seconds(self.step, 2.0)


class Theirs:
    """The same step in transformers and PEFT."""

    def __init__(self, directory: Path, dtype: str, workload: str):
        import torch
        from peft import PeftModel
        from transformers import AutoModel

        folder = directory / "hf"
        tasks = [task.replace(".", "_").replace("-", "_") for task in TASKS[workload]]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        base = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(self._device)
        first = tasks[0]
        model = PeftModel.from_pretrained(
            base, folder / first, adapter_name=first, is_trainable=True
        )
        for task in tasks[1:]:
            model.load_adapter(folder / task, adapter_name=task, is_trainable=True)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        self._model, self._tasks, self._workload = model.to(self._device), tasks, workload
        trained = [p for name, p in model.named_parameters() if "lora_" in name]
        self._optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
        self._trained = trained
        self._columns = WORKLOADS[workload][1]
        self._dtype = getattr(torch, dtype)

    def step(self) -> float:
        import torch

        ids = _texts(self._workload)
        queries = self._embed(ids[:: self._columns], self._tasks[0])
        documents = self._embed(
            [row for i, row in enumerate(ids) if i % self._columns], self._tasks[-1]
        )
        loss = self._loss(queries, documents)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _embed(self, ids: list[list[int]], task: str):
        import torch

        self._model.set_adapter(task)
        for parameter in self._trained:
            parameter.requires_grad_(True)  # set_adapter disables those of the other task
        longest = max(map(len, ids))
        tokens = torch.tensor([row + [1] * (longest - len(row)) for row in ids])
        tokens = tokens.to(self._device)
        mask = (tokens != 1).long()
        with torch.autocast(self._device, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            hidden = self._model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def _loss(self, queries, documents):
        import torch

        if self._workload == "sentences":
            scores = torch.tensor(_scores(self._workload), device=self._device)
            cosines = (queries * documents).sum(-1) / TAU
            apart = cosines[:, None] - cosines[None, :]
            apart = apart[scores[:, None] < scores[None, :]]
            return torch.logsumexp(torch.cat([apart.new_zeros(1), apart]), 0)
        rows = documents.reshape(len(queries), self._columns - 1, -1)
        positives = rows[:, 0]
        every = torch.cat([positives, rows[:, 1:].flatten(0, 1)])
        own = torch.arange(len(queries), device=self._device)
        entropy = torch.nn.functional.cross_entropy
        return entropy(queries @ every.T / TAU, own) + entropy(positives @ queries.T / TAU, own)

    def timed(self) -> float:
        return common.seconds(self.step, 2.0)


def measure_memory(args: argparse.Namespace) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    step, arguments, state = paper_step(args)
    compiled = step.lower(*arguments).compile()
    memory = compiled.memory_analysis()
    parts = {
        "weights and inputs": memory.argument_size_in_bytes,
        "activations": memory.temp_size_in_bytes,
        "results in memory of their own": memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }
    print(header("jax", "jaxlib"))
    texts = PAPER["rows"] * PAPER["texts"]
    print(
        f"retrieval pair, {PAPER['rows']} rows of {PAPER['texts']} texts of {PAPER['tokens']} "
        f"tokens, {args.layers} layers, bfloat16 base, {args.micro_batch_tokens} tokens at once, "
        f"compiled for {args.tpu or 'CPU'}\n"
    )
    rows = [[name, size / 1e9] for name, size in [*parts.items(), ("in all", sum(parts.values()))]]
    print(table(["part", "GB"], rows))
    trained = sum(leaf.size for leaf in jax.tree.leaves(arguments[0])) / 2
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)) / 2
    print(f"\nper task: {trained:,.0f} parameters trained, optimizer state {size / 1e6:.1f} MB")
    print(f"{texts * PAPER['tokens']:,} tokens per step")


def paper_step(args: argparse.Namespace) -> tuple[Any, tuple, Any]:
    """Return the step of the paper's batch, its abstract arguments, and the optimizer's state."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from published import published_config

    from jina_jax.config import Config
    from jina_jax.nn.encoder import abstract_encoder
    from jina_jax.nn.kernels import choose
    from jina_jax.nn.parameters import to_dict
    from jina_jax.training.losses import triplet_info_nce
    from jina_jax.training.micro_batches import MicroBatches
    from jina_jax.training.optimizer import optimizer
    from jina_jax.training.parameters import Network, is_trained
    from jina_jax.training.settings import Optimizer
    from jina_jax.training.step import Encoding, make_step, text_objective

    mesh = everywhere = None
    if args.tpu:
        from jax.experimental import topologies

        from jina_jax.runtime.sharding import make_mesh

        devices = topologies.get_topology_desc(f"{args.tpu}:2x2", "tpu").devices
        mesh = make_mesh(devices=devices[:1])
        everywhere = NamedSharding(mesh, P())

    def array(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    raw = {**published_config(FULL), "num_hidden_layers": args.layers, "emb_pooler": "mean"}
    raw |= {"add_pooling_layer": True, "default_prompt": ""}
    config = Config.from_dict(raw).only(TASKS["retrieval"])
    scan = args.tpu is not None
    graph, state = abstract_encoder(config, scan_layers=scan)
    shapes = {path: leaf.shape for path, leaf in to_dict(state).items()}
    trained = {k: array(s, jnp.float32) for k, s in shapes.items() if is_trained(k, "adapters")}
    frozen = {k: array(s, jnp.bfloat16) for k, s in shapes.items() if k not in trained}
    network = Network(config, graph, "bfloat16", scan)
    tokens, texts = PAPER["tokens"], PAPER["rows"] * PAPER["texts"]
    height = args.micro_batch_tokens // tokens
    count, slots = 1 << (-(-texts // height) - 1).bit_length(), tokens // 8
    micro_batches = MicroBatches(
        array((count, height, tokens), jnp.int32),
        array((count, height, slots, 2), jnp.int32),
        array((count, height, slots), jnp.int32),
        array((count,), jnp.bool_),
        array((texts,), jnp.int32),
    )
    platform = "tpu" if args.tpu else "cpu"
    kernels = choose(platform, "bfloat16", tokens, slots, config.head_dim, mesh).kernels
    rule = optimizer(Optimizer(learning_rate=LEARNING_RATE, steps=20_000, warmup_steps=1_000))
    objective = text_objective(
        Encoding(network, kernels, mesh=mesh), triplet_info_nce, PAPER["texts"]
    )
    opt_state = jax.tree.map(
        lambda leaf: array(leaf.shape, leaf.dtype), jax.eval_shape(rule.init, trained)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    return (
        make_step(objective, rule),
        (trained, opt_state, frozen, micro_batches, {}, key),
        opt_state,
    )


if __name__ == "__main__":
    main()
