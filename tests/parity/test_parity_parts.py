"""Parts of the network against PyTorch: rotary tables, pooling."""

import jax
import numpy as np
import pytest
from published import SMALL, write_published
from theirs import PARITY, batch, load_transformers, run_ours, run_torch

from jina_jax.convert import open_checkpoint, write_checkpoint
from jina_jax.nn.pooling import cut_and_normalize, pool
from jina_jax.nn.rope import rotary_angles

pytestmark = PARITY


@pytest.mark.parametrize(("base", "head_dim"), [(20000.0, 64), (10000.0, 64), (20000.0, 16)])
def test_rotary_tables_equal_torch_up_to_8192(base, head_dim):
    """A difference of one unit in a frequency would be 1e-4 at the last positions."""
    import torch
    from transformers import JinaEmbeddingsV3Config
    from transformers.models.jina_embeddings_v3 import modeling_jina_embeddings_v3 as theirs

    rope = {"rope_theta": base, "rope_type": "default"}
    config = JinaEmbeddingsV3Config(
        hidden_size=4 * head_dim, num_attention_heads=4, rope_parameters=rope
    )
    positions = np.arange(8192)[None]
    table = theirs.JinaEmbeddingsV3RotaryEmbedding(config)
    expected = table(torch.zeros(1, dtype=torch.float32), torch.from_numpy(positions))
    ours = jax.jit(lambda ids: rotary_angles(ids, head_dim, base))(positions.astype(np.int32))
    for mine, other in zip(ours, expected, strict=True):
        half, again = np.split(other.numpy(), 2, axis=-1)
        np.testing.assert_array_equal(half, again)
        np.testing.assert_allclose(mine, half, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """Token vectors of padded rows, from transformers and from us, and their mask."""
    directory = tmp_path_factory.mktemp("model")
    checkpoint = open_checkpoint(write_published(directory / "published"))
    write_checkpoint(checkpoint, directory / "transformers", "transformers")
    ids, mask = batch(SMALL["vocab"], (11, 4, 2, 9))
    theirs, _ = run_torch(load_transformers(directory / "transformers"), ids, mask)
    ((ours, _),) = run_ours(checkpoint, ids, mask, [None])
    return theirs[-1], ours[-1], mask


def whole_rows(mask):
    """Return the span of each row's tokens, (B, 1, 2)."""
    stops = mask.sum(axis=1, dtype=np.int32)
    return np.stack([np.zeros_like(stops), stops], axis=-1)[:, None]


@pytest.mark.parametrize("dim", [32, 64])
@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_pooling_truncating_and_normalising_equal_torch(hidden, kind, dim):
    """The steps of the published encode, written with PyTorch."""
    import torch

    theirs, ours, mask = hidden
    vectors, kept = torch.from_numpy(theirs), torch.from_numpy(mask).unsqueeze(-1).float()
    pooled = vectors[:, 0] if kind == "cls" else (vectors * kept).sum(1) / kept.sum(1)
    expected = torch.nn.functional.normalize(pooled[:, :dim], p=2, dim=1).numpy()
    for source, tolerance in ((theirs, 1e-6), (ours, 1e-5)):
        result = cut_and_normalize(
            np.asarray(pool(source, whole_rows(mask), kind)[:, 0]), dim, normalize=True
        )
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_pooling_equals_sentence_transformers(hidden, kind):
    import torch

    models = pytest.importorskip("sentence_transformers.models")
    theirs, _, mask = hidden
    features = {
        "token_embeddings": torch.from_numpy(theirs),
        "attention_mask": torch.from_numpy(mask).long(),
    }
    pooling = models.Pooling(SMALL["width"], pooling_mode=kind)
    expected = models.Normalize()(pooling(features))["sentence_embedding"].numpy()
    ours = cut_and_normalize(
        np.asarray(pool(theirs, whole_rows(mask), kind)[:, 0]), SMALL["width"], normalize=True
    )
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
