"""Programs of joined weights, compiled for a TPU that is not here, at a small size."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: libtpu wants its settings before jax starts, and stays in the process.
# It opens no device, so other processes need not be kept from loading it.
SETTINGS = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
COMPILE = """
import json, sys
sys.path[:0] = sys.argv[1:]
from jax.experimental import topologies
from published import SMALL, published_config
from tpu_hlo import count_collectives, count_copies
from jina_jax.config import Config
from jina_jax.runtime.engine import Engine, Program
from jina_jax.runtime.sharding import abstract_state, make_mesh

fields = {"default_prompt": "", "add_pooling_layer": True, "emb_pooler": "mean"}
devices = topologies.get_topology_desc("v5e:2x2", "tpu").devices
found = []
for name, data, model, tasks in (
    (None, 1, 1, True), (None, 1, 1, False), (None, 2, 2, True), ("pallas_fused", 2, 1, True)
):
    mesh = make_mesh(model, devices[: data * model])
    texts = []
    for layers in (1, 2):
        size = {**SMALL, "width": 256, "heads": 4, "inner": 512, "layers": layers}
        config = Config.from_dict({**published_config(size), **fields})
        state = abstract_state(config, "bfloat16", mesh, scan_layers=False)
        engine = Engine(config, state, mesh=mesh, attn_implementation=name)
        program = Program(2 * data, 256, 4, None, tasks, "mean")
        texts.append(engine.lower(program).compile().as_text())
    kernels, copies = ([count(text) for text in texts] for count in (
        lambda text: text.count("tpu_custom_call"), lambda text: count_copies(text)[0]
    ))
    one, two = map(count_collectives, texts)
    sums = {kind: n - one.get(kind, 0) for kind, n in two.items()}
    found.append((kernels[1] - kernels[0], copies[1] - copies[0], sums))
print(json.dumps(found))
"""


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu (jax[tpu])")
def test_a_layer_more():
    root = Path(__file__).parent
    command = [sys.executable, "-c", COMPILE, str(root), str(root.parent / "benchmarks")]
    environment = os.environ | SETTINGS
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    # Kernels, copies and collectives: attention and two norms, or two fused kernels; nothing is
    # moved; and the heads' devices sum twice.
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [3, 0, {}],
        [3, 0, {}],
        [3, 0, {"all-reduce": 2}],
        [2, 0, {}],
    ]
