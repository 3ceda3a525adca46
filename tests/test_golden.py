"""The encoder against numbers that transformers computed (``golden/make.py``)."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jina_jax.checkpoints.load import to_state
from jina_jax.convert import open_checkpoint
from jina_jax.nn.encoder import abstract_encoder

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = np.load(GOLDEN / "encoder.npz")
IDS, MASK = EXPECTED["input_ids"].astype(np.int32), EXPECTED["attention_mask"]


def encode(name, task_ids):
    checkpoint = open_checkpoint(GOLDEN / name)
    state = to_state(checkpoint.config, checkpoint.tensors, "float32")
    graph, _ = abstract_encoder(checkpoint.config)
    run = jax.jit(lambda s, *args: nnx.merge(graph, s)(*args, output_hidden_states=True))
    return run(state, IDS, MASK, None if task_ids is None else np.array(task_ids))


@pytest.mark.parametrize(
    ("name", "task_ids"),
    [("published", [-1, 0, 1, 2, 3, 4]), ("xlm_roberta", None)],
)
def test_every_layer_and_the_pooler_equal_transformers(name, task_ids):
    out = encode(name, task_ids)
    hidden = np.stack(out.hidden_states) * MASK[..., None]
    np.testing.assert_allclose(hidden, EXPECTED[f"{name}_hidden_states"], rtol=0, atol=1e-5)
    pooled = EXPECTED[f"{name}_pooler_output"]
    np.testing.assert_allclose(out.pooler_output, pooled, rtol=0, atol=1e-5)


def test_wrong_tasks_are_far_from_the_golden_numbers():
    """Golden numbers in which adapters did nothing would prove nothing."""
    wrong = np.asarray(encode("published", [-1, 1, 2, 3, 4, 0]).last_hidden_state)
    off = np.abs(wrong * MASK[..., None] - EXPECTED["published_hidden_states"][-1])
    assert off[0].max() < 1e-5
    assert (off[1:].max(axis=(1, 2)) > 0.1).all()
