"""BERT with XLM-R's vocabulary (multilingual-e5-small), against transformers, both ways."""

import numpy as np
import pytest
from theirs import PARITY, assert_equal, batch, load_transformers, run_ours, run_torch

from jina_jax.convert import add_task, open_checkpoint, write_checkpoint

pytestmark = PARITY

# As multilingual-e5-small, but for its sizes: heads of 32, two token types, pad id 0.
FIELDS = {
    "vocab_size": 300,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
IDS = batch(300, (64, 7, 2))


def save(kind, directory):
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.BertConfig(**FIELDS))
    model.save_pretrained(directory)
    return getattr(model, "bert", model).eval()


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    return directory, run_torch(save("BertModel", directory), *IDS)


def test_bert_computes_the_same(bert):
    directory, expected = bert
    checkpoint = open_checkpoint(directory)
    assert checkpoint.layout == "bert"
    assert (checkpoint.config.max_length, checkpoint.config.head_dim) == (64, 32)
    assert_equal(run_ours(checkpoint, *IDS, [None])[0], expected)


@pytest.mark.parametrize("through", ["bert", "native"])
def test_what_is_written_is_read_by_transformers(bert, tmp_path, through):
    directory, expected = bert
    write_checkpoint(open_checkpoint(directory), tmp_path / "a", through)
    write_checkpoint(open_checkpoint(tmp_path / "a"), tmp_path / "b", "bert")
    assert_equal(run_torch(load_transformers(tmp_path / "b", "BertModel"), *IDS), expected)
    assert_equal(run_ours(open_checkpoint(tmp_path / "b"), *IDS, [None])[0], expected)


def test_an_encoder_with_a_head_and_a_prefix_is_read(tmp_path):
    encoder = save("BertForMaskedLM", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.ignored
    ids, mask = IDS
    graph = run_hidden(encoder, ids, mask)
    ours = ours_without_pooler(checkpoint, ids, mask)
    np.testing.assert_allclose(ours, graph, rtol=0, atol=2e-5)


def run_hidden(encoder, ids, mask):
    import torch

    with torch.no_grad():
        out = encoder(torch.from_numpy(ids).long(), torch.from_numpy(mask).long())
    return out.last_hidden_state.numpy() * mask[..., None]


def ours_without_pooler(checkpoint, ids, mask):
    from flax import nnx

    from jina_jax.checkpoints.load import to_state
    from jina_jax.nn.encoder import abstract_encoder

    graph, _ = abstract_encoder(checkpoint.config)
    state = to_state(checkpoint.config, checkpoint.tensors, "float32")
    return np.asarray(nnx.merge(graph, state)(ids, mask).last_hidden_state) * mask[..., None]


def test_adapters_of_bert_are_written_for_peft(bert, tmp_path):
    from peft import PeftModel

    directory, expected = bert
    checkpoint = add_task(open_checkpoint(directory), "x")
    write_checkpoint(checkpoint, tmp_path / "out", "bert")
    model = load_transformers(tmp_path / "out", "BertModel")
    adapted = PeftModel.from_pretrained(model, tmp_path / "out" / "x").eval()
    assert_equal(run_torch(adapted, *IDS), expected)  # a new adapter changes nothing
