"""Models that sentence-transformers wrote, read by us, and ours read by it through its own call."""

import dataclasses
import json

import fuzz_files
import numpy as np
import pytest
from published import PROMPTS
from sbert import encoder_files, theirs, unit, write_sbert
from sbert_cases import CASES, compare
from theirs import PARITY
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.tensors import LazyTensor
from jina_jax.config import Dense
from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint
from jina_jax.nn.parameters import parameter_shapes

pytestmark = PARITY

SHORT = ["a cat", "", "the dog sleeps; seven bridges"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sbert")


@pytest.mark.parametrize("name", CASES)
def test_every_option_of_its_files_gives_its_vectors(root, name):
    (root / name.replace(" ", "_")).mkdir()
    rows = list(compare(name, root / name.replace(" ", "_")))
    assert len(rows) == 3
    for row in rows:
        print(f"{row.what}: {row.ours} and {row.theirs}: {row.difference:.1e}")
        assert row.difference < 2e-6, row


TASK = "retrieval.query"
OPTIONS = {
    "as published": {},
    "cls": {"emb_pooler": "cls"},
    "prompt left out, lengths": {"include_prompt": False, "max_seq_length": 100},
    "dense": {
        "dense": (Dense(out_features=8, bias=True, activation="tanh"),),
        "truncate_dim": None,
    },
    "max, no Normalize": {"emb_pooler": "max", "normalize": False},
}


def with_options(checkpoint, options):
    """Change a checkpoint's config, with random weights of the modules Dense that it names."""
    if "dense" in options:
        options = {**options, "matryoshka_dimensions": ()}
    config = dataclasses.replace(checkpoint.config, **options)
    tensors, rng = dict(checkpoint.tensors), np.random.default_rng(0)
    for path, shape in parameter_shapes(config).items():
        if path.startswith("dense."):
            tensors[path] = LazyTensor.of(rng.standard_normal(shape, np.float32))
    return dataclasses.replace(checkpoint, config=config, tensors=tensors)


@pytest.fixture(scope="module")
def rotary(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("rotary")))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_merged_adapter_keeps_prompt_and_pooling_in_every_layout(rotary, tmp_path, name):
    merged = with_options(merge_checkpoint(rotary, TASK), OPTIONS[name])
    for layout in ("native", "transformers", "published"):
        write_checkpoint(merged, tmp_path / layout, layout)
    ours = JinaEmbeddings.from_pretrained(tmp_path / "native")
    assert ours.config == merged.config
    assert ours.config.default_prompt == PROMPTS[TASK]
    expected = ours.encode(SHORT)
    for layout in ("transformers", "published"):
        assert open_checkpoint(tmp_path / layout).config == merged.config
        found = theirs(tmp_path / layout, SHORT)
        difference = np.abs(unit(found) - expected).max()
        print(f"{name}: {layout} merged: {difference:.1e}")
        assert difference < 2e-6
        if merged.config.normalize:
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    plain = theirs(tmp_path / "transformers", SHORT, prompt="")
    assert np.abs(unit(plain) - expected).max() > 0.01  # the prompt counts


def test_adapters_beside_the_base(rotary, tmp_path):
    """PEFT folders leave the base as it is; the code of stacked ones is asked for, not left out."""
    for layout in ("transformers", "published"):
        write_checkpoint(rotary, tmp_path / layout, layout)
    expected = JinaEmbeddings.from_pretrained(tmp_path / "published").encode(SHORT)
    np.testing.assert_allclose(theirs(tmp_path / "transformers", SHORT), expected, atol=2e-6)
    with pytest.raises(ValueError, match="trust_remote_code"):
        theirs(tmp_path / "published", SHORT)


def test_both_sides_of_retrieval_have_their_prompts(root):
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "q: ", "passage": "p: ", "corpus": "c: "}
    source = write_sbert(root / "sides", encoder_files(root / "encoder"), prompts=prompts)
    ours, other = JinaEmbeddings.from_pretrained(source), SentenceTransformer(str(source))
    for side in ("encode_query", "encode_document"):
        found = getattr(ours, side)(SHORT)
        np.testing.assert_allclose(found, getattr(other, side)(SHORT), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_fn_name(root, kind):
    from sentence_transformers import SentenceTransformer

    encoder = encoder_files(root / "encoder")
    source = write_sbert(root / kind, encoder, similarity_fn_name=kind, normalize=False)
    vectors = np.random.default_rng(0).standard_normal((2, 3, 16), np.float32)
    other = SentenceTransformer(str(source))
    if kind == "cosine":
        ours = JinaEmbeddings.from_pretrained(source)
    else:
        with pytest.warns(UserWarning, match=f"similarity_fn_name='{kind}' compares vectors"):
            ours = JinaEmbeddings.from_pretrained(source)
    for name in ("similarity", "similarity_pairwise"):
        expected = getattr(other, name)(*vectors).numpy()
        np.testing.assert_allclose(getattr(ours, name)(*vectors), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("through", ["bert", "native"])
def test_a_bert_without_settings_of_its_tokenizer_is_written_with_them(root, tmp_path, through):
    """sentence-transformers would make a WordPiece tokenizer of the same file."""
    source = write_sbert(tmp_path / "source", encoder_files(root / "bert", "Bert"))
    expected = theirs(source)
    (source / "tokenizer_config.json").unlink()
    write_checkpoint(open_checkpoint(source), tmp_path / "a", through)
    write_checkpoint(open_checkpoint(tmp_path / "a"), tmp_path / "b", "bert")
    np.testing.assert_allclose(theirs(tmp_path / "b"), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {"additional_special_tokens": ["world"]},
        {"extra_special_tokens": {"x": "world"}},
        {"added_tokens_decoder": {"8": {"content": "world", "special": False}}},
        {"tokenizer_class": "RobertaTokenizer"},
    ],
)
def test_a_tokenizer_that_its_settings_change_is_refused(root, tmp_path, fields):
    source = write_sbert(tmp_path / "source", encoder_files(root / "encoder"))
    expected, path = theirs(source), source / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert np.abs(theirs(source) - expected).max() > 0.01  # not to be ignored
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json: {next(iter(fields))}"):
        JinaEmbeddings.from_pretrained(source)


@pytest.mark.slow
def test_fuzz_of_config_and_module_files(capfd):
    assert fuzz_files.main(2000, 0) == 0
    print(capfd.readouterr().out.splitlines()[-1])
