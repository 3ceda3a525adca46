"""TPUs: their published peaks, what a step needs of them at least, and compilation without one.

Peaks are those of cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x, per device of JAX: a chip,
or half of a tpu7x chip, whose two parts are devices of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import common

# Otherwise libtpu looks for a TPU's machine, and for the only process that may use it.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Chip(NamedTuple):
    """A device.

    Attributes:
      kind: JAX's name of it.
      topology: the smallest one that libtpu describes.
      memory: bytes.
      flops: operations per second in bfloat16.
      bandwidth: bytes per second of its memory.
      clock: hertz, from ``flops`` and the size of its matrix units; None where a device has two
        cores, which share a program.
    """

    kind: str
    topology: str
    memory: float
    flops: float
    bandwidth: float
    clock: float | None


CHIPS = {
    "v5e": Chip("TPU v5 lite", "2x2", 16e9, 197e12, 819e9, 197e12 / (4 * 128**2 * 2)),
    "v6e": Chip("TPU v6 lite", "2x2", 32e9, 918e12, 1640e9, 918e12 / (4 * 256**2 * 2)),
    "v5p": Chip("TPU v5", "2x2x1", 95e9, 459e12, 2765e9, None),
    "v4": Chip("TPU v4", "2x2x1", 32e9, 275e12, 1228e9, None),
    "tpu7x": Chip("TPU7x", "2x2x1", 96e9, 1153.5e12, 3690e9, None),
}
USUAL = ("v5e", "v6e")
_TASK_RANKS = 5 * 4  # a batch computes the adapters of all tasks, and keeps each text's own


def chip_of(kind: str) -> str | None:
    """Return the name of the chip that JAX calls ``kind``, or None for an unknown one."""
    return next((name for name, chip in CHIPS.items() if chip.kind == kind), None)


def route_of(engine: Any, program: Any) -> Any:
    """Return a program's ``KernelChoice``: its attention route, and why others were refused."""
    return engine.choose_kernels(program)


def flops_per_token(tokens: int, layers: int, tasks: bool) -> float:
    """Return the operations per token in rows of one text of ``tokens``; see ``common.flops``."""
    width, inner = common.FULL["width"], common.FULL["inner"]
    low = _TASK_RANKS if tasks else 0
    pairs = ((width, 3 * width), (width, width), (width, inner), (inner, width))
    return common.flops(tokens, layers) + layers * 2 * low * sum(map(sum, pairs))


def make_engine(
    chip: str,
    layers: int,
    *,
    scan: bool,
    dtype: str = "bfloat16",
    route: str | None = None,
    data: int = 1,
    model: int = 1,
) -> Any:
    """Return an engine of abstract weights of the full width on a topology's devices.

    Args:
      chip: a name in ``CHIPS``.
      layers: of the encoder.
      scan: whether its layers are one loop.
      dtype: of the weights.
      route: attention route; None for the default.
      data, model: devices per batch and per model.
    """
    from jax.experimental import topologies
    from published import FULL, published_config

    from jina_jax.config import Config
    from jina_jax.runtime.engine import Engine
    from jina_jax.runtime.sharding import abstract_state, make_mesh

    more = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
    config = Config.from_dict({**published_config({**FULL, "layers": layers}), **more})
    topology = topologies.get_topology_desc(f"{chip}:{CHIPS[chip].topology}", "tpu")
    mesh = make_mesh(model, topology.devices[: data * model])
    state = abstract_state(config, dtype, mesh, scan_layers=scan)
    return Engine(config, state, mesh=mesh, scan_layers=scan, attn_implementation=route)
