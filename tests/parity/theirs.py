"""The other side of the parity tests: PyTorch, transformers and PEFT, imported when used."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jina_jax.checkpoints.load import to_state
from jina_jax.convert import Checkpoint
from jina_jax.nn.encoder import abstract_encoder

_MISSING = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
PARITY = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)} (extra: parity)"),
    # What PyTorch's libraries say about each other is not about us.
    *map(pytest.mark.filterwarnings, ("ignore::FutureWarning", "ignore::DeprecationWarning")),
]
TOLERANCE = 2e-5

Output = tuple[np.ndarray, np.ndarray]  # hidden states (L + 1, B, T, D), pooler output (B, D)


def load_transformers(directory: Path, kind: str = "JinaEmbeddingsV3Model"):
    """Load a directory with transformers, which must find every key, and no other."""
    import transformers

    model, info = getattr(transformers, kind).from_pretrained(
        directory, dtype="float32", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def load_merged(directory: Path, folder: str | None):
    """Load a directory in the transformers layout and merge one PEFT folder with PEFT."""
    from peft import PeftModel

    model = load_transformers(directory)
    if folder is None:
        return model
    return PeftModel.from_pretrained(model, directory / folder).merge_and_unload().eval()


def run_torch(model, ids: np.ndarray, mask: np.ndarray) -> Output:
    """Run a PyTorch encoder; hidden states at padding are set to zero."""
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
        )
    return np.stack([h.numpy() for h in out.hidden_states]) * mask[..., None], (
        out.pooler_output.numpy()
    )


def run_ours(
    checkpoint: Checkpoint,
    ids: np.ndarray,
    mask: np.ndarray,
    task_ids: list[np.ndarray | None],
    dtype: str = "float32",
) -> list[Output]:
    """Run our encoder for each of ``task_ids``; hidden states at padding are set to zero."""
    graph, _ = abstract_encoder(checkpoint.config)
    state = to_state(checkpoint.config, checkpoint.tensors, dtype)
    encode = jax.jit(lambda s, tasks: nnx.merge(graph, s)(ids, mask, tasks, **_ALL))
    outputs = []
    for tasks in task_ids:
        out = encode(state, tasks)
        hidden = np.stack([np.asarray(h, np.float32) for h in out.hidden_states])
        outputs.append((hidden * mask[..., None], np.asarray(out.pooler_output)))
    return outputs


def batch(vocab: int, lengths: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids (B, T) and the mask of rows of these lengths, padded on the right."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(4, vocab, mask.shape)
    return np.where(mask, ids, 1).astype(np.int32), mask


def assert_equal(ours: Output, theirs: Output, tolerance: float = TOLERANCE) -> None:
    """Compare every layer's hidden states and the pooler's output."""
    for name, mine, other in zip(("hidden states", "pooler"), ours, theirs, strict=True):
        print(f"{name}: largest difference {np.abs(mine - other).max():.1e}")
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)


_ALL = {"output_hidden_states": True}
