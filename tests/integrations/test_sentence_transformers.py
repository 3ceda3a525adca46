"""A SentenceTransformer in JAX: its vectors are those of the model, and the rest is refused."""

import copy
import pickle

import numpy as np
import pytest
from integration_cases import DOCUMENTS, QUERY

torch = pytest.importorskip("torch", reason="needs the extra sentence-transformers")
st = pytest.importorskip("sentence_transformers", reason="needs the extra sentence-transformers")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

MATCHING = "text-matching"


@pytest.fixture(scope="module")
def make():
    from jina_jax.integrations.sentence_transformers import JinaJaxSentenceTransformer

    return JinaJaxSentenceTransformer


@pytest.fixture(scope="module")
def body(make, model):
    return make(model, task=MATCHING)


@pytest.fixture(scope="module")
def expected(model):
    return model.encode(DOCUMENTS, task=MATCHING)


def same(found, expected):
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


def test_vectors(body, model, expected):
    same(body.encode(DOCUMENTS), expected)
    same(body.encode(sentences=DOCUMENTS), expected)
    same(body.encode(np.array(DOCUMENTS)), expected)
    same(body.encode(DOCUMENTS[0]), expected[0])
    same(body.encode([]), model.encode([]))
    same(body.encode(DOCUMENTS, task=None), model.encode(DOCUMENTS))
    tasks = [MATCHING, None, "separation", MATCHING]
    same(body.encode(DOCUMENTS, task=tasks), model.encode(DOCUMENTS, task=tasks))
    same(body.encode_query(QUERY), model.encode_query(QUERY))
    same(body.encode_document(DOCUMENTS), model.encode_document(DOCUMENTS))
    options = {"truncate_dim": 64, "batch_size": 2, "normalize_embeddings": False, "max_length": 6}
    found = body.encode_query(DOCUMENTS, **options)
    same(found, model.encode_query(DOCUMENTS, **options))


def test_the_published_order_of_arguments(body, expected):
    given = (DOCUMENTS, None, None, 32, False, "sentence_embedding", "float32", True, False, "cpu")
    same(body.encode(*given, True, None), expected)


def test_tensors(body, model, expected):
    assert torch.equal(body.encode(DOCUMENTS, convert_to_tensor=True), torch.from_numpy(expected))
    rows = body.encode(DOCUMENTS, convert_to_numpy=False)
    assert isinstance(rows, list)
    assert torch.equal(torch.stack(rows), torch.from_numpy(expected))
    assert body.encode(QUERY, convert_to_numpy=False).shape == (192,)
    assert body.encode(QUERY, convert_to_tensor=True, device="meta").device.type == "meta"
    tokens = body.encode(DOCUMENTS, output_value="token_embeddings")
    known = model.encode(DOCUMENTS, task=MATCHING, output_value="token_embeddings")
    assert all(torch.equal(own, torch.from_numpy(k)) for own, k in zip(tokens, known, strict=True))
    one = body.encode(DOCUMENTS[0], output_value="token_embeddings")
    assert torch.equal(one, tokens[0])


def test_precisions(body, expected):
    bits = np.packbits(expected > 0, axis=-1)
    same(body.encode(DOCUMENTS, precision="ubinary"), bits)
    same(body.encode(DOCUMENTS[0], precision="ubinary"), bits[0])
    same(body.encode(DOCUMENTS, precision="binary"), (bits.astype(np.int16) - 128).astype(np.int8))
    assert body.encode(DOCUMENTS, precision="int8").dtype == np.int8
    same(body.encode(DOCUMENTS, precision=None), expected)


def test_prompts(make, body, model):
    same(body.encode(QUERY, prompt="find: "), model.encode(QUERY, task=MATCHING, prompt="find: "))
    query = {"task": "retrieval.query"}
    same(body.encode(QUERY, prompt="", **query), model.encode(QUERY, prompt=None, **query))
    for name in ("query", "retrieval.query"):
        named = model.encode(QUERY, task=MATCHING, prompt_name="retrieval.query")
        same(body.encode(QUERY, prompt_name=name), named)
    own = make(model, prompts={"query": "q: ", "x": "find: "}, default_prompt_name="x")
    same(own.encode(QUERY), model.encode(QUERY, prompt="find: "))
    same(own.encode_query(QUERY), model.encode(QUERY, prompt="q: ", **query))
    own.prompts, own.default_prompt_name = {"passage": "p: "}, None
    same(own.encode_query(QUERY), model.encode_query(QUERY))
    passage = model.encode(QUERY, prompt="p: ", task="retrieval.passage")
    same(own.encode_document(QUERY), passage)


def test_attributes(make, body, model):
    assert isinstance(body, st.SentenceTransformer)
    assert (body.device, body.similarity_fn_name) == (torch.device("cpu"), "cosine")
    assert body.get_backend() == "jax"
    assert body.max_seq_length == body.get_max_seq_length() == model.max_seq_length
    assert body.get_embedding_dimension() == 192
    assert body.tokenizer is model.tokenizer
    own = make("tiny", truncate_dim=64, similarity_fn_name="dot")
    assert (own.get_embedding_dimension(), own.encode(QUERY).shape) == (64, (64,))
    with own.truncate_embeddings(32):
        assert own.encode(QUERY).shape == (32,)
    first, second = own.encode(DOCUMENTS[:2])
    assert float(own.similarity(first, second)) == pytest.approx(first @ second, rel=1e-6)
    pairs = body.similarity_pairwise(body.encode(DOCUMENTS), body.encode(DOCUMENTS))
    np.testing.assert_allclose(pairs, 1, rtol=1e-6)


def test_ids(make, body, model):
    found = body.preprocess([DOCUMENTS[0], "bread"], prompt="a ")
    known = model.tokenize(["a " + DOCUMENTS[0], "a bread"])
    for ids, mask, own in zip(found["input_ids"], found["attention_mask"], known, strict=True):
        assert ids[mask.bool()].tolist() == own
    short = make(model)
    short.max_seq_length = 4
    assert short.preprocess(DOCUMENTS)["input_ids"].shape == (4, 4)
    assert short.preprocess(DOCUMENTS)["input_ids"][:, -1].unique().tolist() == [2]


def test_a_length_is_set_for_this_object_alone(make, model):
    own, longest = make(model), model.max_seq_length
    own.max_seq_length = 6
    assert (own.max_seq_length, model.max_seq_length) == (6, longest)
    same(own.encode(DOCUMENTS), model.encode(DOCUMENTS, max_length=6))
    same(own.encode(DOCUMENTS, max_length=64), model.encode(DOCUMENTS))
    own = make(model, encode_options={"max_length": 8, "long_text": "windows"})
    expected = model.encode(DOCUMENTS, max_length=8, long_text="windows")
    same(own.encode(DOCUMENTS), expected)
    with pytest.raises(ValueError, match="max_seq_length=1"):
        own.max_seq_length = 1


def test_copies(body, expected):
    for other in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        same(other.encode(DOCUMENTS), expected)
        assert other.task == MATCHING


def test_moves(make, model):
    own = make(model)
    assert own.to("meta").device.type == "meta"
    assert own.encode(QUERY, convert_to_tensor=True).device.type == "meta"
    same(own.encode(QUERY), model.encode(QUERY))
    own.to("meta")
    for move in (own.half, own.bfloat16, lambda: own.to(torch.float64)):
        with pytest.raises(ValueError, match="model_options"):
            move()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": {"input": None}}, "pool="),
        ({"chunk_size": 8}, "chunk_size=8"),
        ({"device": ["cpu", "cpu"]}, "device=.'cpu', 'cpu'."),
        ({"device": "toaster"}, "device='toaster'"),
        ({"precision": "int4"}, "precision='int4'"),
        ({"precision": "int8", "output_value": "token_embeddings"}, "precision='int8'"),
        ({"output_value": None}, "output_value=None"),
        ({"prompt_name": "other"}, "prompt_name='other'"),
        ({"prompt": "a", "prompt_name": "query"}, "prompt_name='query'"),
        ({"sentences": DOCUMENTS}, "inputs, sentences"),
        ({"truncate_dim": 1000}, "truncate_dim=1000"),
        ({"task": "summary"}, "summary"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"convert_to_numpy": "no"}, "convert_to_numpy='no'"),
    ],
)
def test_refused_values(options, message, body):
    with pytest.raises(ValueError, match=message):
        body.encode(DOCUMENTS, **options)


def test_refused_inputs(make, body, model):
    for texts in ([("a", "b")], [{"text": "a"}], None):
        with pytest.raises(ValueError, match=r"texts|inputs"):
            body.encode(texts)
    with pytest.raises(TypeError, match="'processing_kwargs'"):
        body.encode(DOCUMENTS, processing_kwargs={})
    with pytest.raises(TypeError, match="trust_remote_code"):
        make(model, trust_remote_code=True)
    for options, message in (
        ({"task": "x"}, "task='x': this checkpoint has"),
        ({"truncate_dim": 7777}, "truncate_dim=7777: expected"),
        ({"default_prompt_name": "x"}, "Default prompt name 'x' not found"),
    ):
        with pytest.raises(ValueError, match=message):
            make(model, **options)
    with pytest.raises(TypeError, match="'dtype'"):
        make(model, encode_options={"dtype": "float32"})


@pytest.mark.parametrize(
    "name",
    [
        "train",
        "fit",
        "forward",
        "compile",
        "save",
        "save_pretrained",
        "push_to_hub",
        *("start_multi_process_pool", "set_pooling_include_prompt"),
    ],
)
def test_refused_methods(name, body, tmp_path):
    given = () if name in ("train", "compile", "start_multi_process_pool") else (tmp_path,)
    with pytest.raises(NotImplementedError, match=f"JinaJaxSentenceTransformer.{name}"):
        getattr(body, name)(*given)
    assert not list(tmp_path.iterdir())
