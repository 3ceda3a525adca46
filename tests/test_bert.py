"""BERT with XLM-R's vocabulary, as multilingual-e5-small, with a SentencePiece model alone."""

import json

import numpy as np
import pytest
from foreign import write, xlm_roberta_config, xlm_roberta_tensors
from published import SMALL
from test_convert import arrays, same
from test_sentencepiece_model import train

from jina_jax import JinaEmbeddings
from jina_jax.convert import open_checkpoint, write_checkpoint

SIZE = {**SMALL, "layers": 1, "positions": 34}
BERT = {"model_type": "bert", "architectures": ["BertModel"], "pad_token_id": 0}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    train(path)
    tensors = xlm_roberta_tensors(SIZE, pooler=False)
    config = xlm_roberta_config(SIZE, **BERT, position_embedding_type="absolute")
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return write(path, config, tensors, prefix="bert.")


@pytest.mark.parametrize("layout", ["bert", "native"])
def test_every_bit_is_kept(directory, tmp_path, layout):
    checkpoint = open_checkpoint(directory)
    config = checkpoint.config
    assert (checkpoint.layout, config.position_embedding_type) == ("bert", "absolute_from_zero")
    assert (config.position_offset, config.max_length) == (0, 34)
    write_checkpoint(checkpoint, tmp_path / "out", layout)
    again = open_checkpoint(tmp_path / "out")
    assert (again.config, again.layout) == (config, layout)
    same(again.tensors, arrays(checkpoint))
    assert again.tokenizer == tmp_path / "out" / "sentencepiece.bpe.model"
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    if layout == "bert":
        assert (raw["model_type"], raw["architectures"]) == ("bert", ["BertModel"])
        assert raw["position_embedding_type"] == "absolute"


def test_its_vectors_have_positions_from_zero(directory):
    model = JinaEmbeddings.from_pretrained(directory)
    vectors = model.encode(["the cat", "cat the <mask>"])
    assert vectors.shape == (2, 64)
    table = model.state["position_embeddings"]["embedding"]
    table.set_value(table.get_value().at[0].set(9.0))
    assert np.abs(model.encode(["the cat", "cat the <mask>"]) - vectors).max() > 0.01
