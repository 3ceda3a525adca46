"""Special tokens in texts, and a SentencePiece model alone, against transformers."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from foreign import write, xlm_roberta_config, xlm_roberta_tensors
from published import SMALL
from test_sentencepiece_model import MORE, TEXTS
from theirs import PARITY, load_transformers
from tiny import TINY, write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.text.tokenizer import Tokenizer

pytestmark = PARITY

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[3] / "shared"))
INSIDE = [
    "a cat <pad> and a dog",
    "<pad><pad>a</s> cat <s>b<pad>",
    "no special token at all, but longer",
    "<mask> x <unk> <pad>",
    "<pad>",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens")
    write_tiny(path)
    (path / "model.safetensors").unlink()
    size = {**SMALL, "vocab": TINY["vocab"], "positions": 66, "layers": 2}
    return write(path, xlm_roberta_config(size), xlm_roberta_tensors(size, pooler=True))


def theirs(directory, texts) -> np.ndarray:
    """Embed texts as transformers' users do: one padded batch, the mean over the mask."""
    import torch
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), mask_token="<mask>", **names
    )
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    assert Tokenizer.from_file(directory / "tokenizer.json").encode(texts) == [
        ids[mask.bool()].tolist()
        for ids, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)
    ]
    model = load_transformers(directory, "XLMRobertaModel")
    with torch.no_grad():
        hidden = model(encoded.input_ids, encoded.attention_mask).last_hidden_state
    mask = encoded.attention_mask[..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(mean).numpy()


def test_vectors_of_texts_with_special_tokens_inside(directory):
    model = JinaEmbeddings.from_pretrained(directory)
    np.testing.assert_allclose(model.encode(INSIDE), theirs(directory, INSIDE), rtol=0, atol=1e-5)


@pytest.mark.skipif(not (SHARED / "xlm-roberta").is_dir(), reason="needs the shared vocabulary")
def test_ids_of_a_sentencepiece_model_alone(tmp_path):
    from transformers import XLMRobertaTokenizer

    path = tmp_path / "sentencepiece.bpe.model"
    path.symlink_to(SHARED / "xlm-roberta" / path.name)
    tokenizer = XLMRobertaTokenizer.from_pretrained(tmp_path)
    texts = [*TEXTS, *MORE, *(f" {a}  {b}\n" for a, b in itertools.pairwise(MORE))]
    expected = [tokenizer(text).input_ids for text in texts]
    assert Tokenizer.from_file(path).encode(texts) == expected
