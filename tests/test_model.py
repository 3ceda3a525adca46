"""What a model is to users: types, names of sentence-transformers, copies, one state, JAX's own."""

import copy
import dataclasses
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published import TASKS
from tiny import write_tiny

from jina_jax import Batching, EncodeInfo, Encoder, JinaEmbeddings, make_mesh
from jina_jax.nn.lora import Adapter

TEXTS = ["A man is playing a guitar.", "", "Ein Mann spielt Gitarre."]
POOLERS = {"mean": {}, "cls": {"emb_pooler": "cls"}}
POSITIONS = {
    "rotary": {},
    "absolute": {"position_embedding_type": "absolute", "rotary_emb_base": None},
}


def load(directory, **options):
    options.setdefault("mesh", make_mesh(devices=jax.devices()[:1]))
    options.setdefault("batching", Batching(token_budget=128, row_lengths=(8, 128)))
    return JinaEmbeddings.from_pretrained(directory, **options)


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


# ---------------------------------------------------------------- names of sentence-transformers


def test_queries_and_documents_have_the_retrieval_pair(model):
    for method, task in ((model.encode_query, TASKS[0]), (model.encode_document, TASKS[1])):
        np.testing.assert_array_equal(method(TEXTS), model.encode(TEXTS, task=task))
        np.testing.assert_array_equal(
            method(TEXTS, task=None, truncate_dim=32), model.encode(TEXTS, truncate_dim=32)
        )


def test_queries_of_a_model_without_the_pair_have_no_adapter(tmp_path):
    names = dict.fromkeys("abcde", "")
    model = load(write_tiny(tmp_path, lora_adaptations=[*names], task_instructions=names))
    np.testing.assert_array_equal(model.encode_query(TEXTS), model.encode(TEXTS))


def test_similarity(model):
    first = np.array([[3.0, 4.0], [0.0, 0.0]])
    second = [[4.0, 3.0], [1.0, 0.0], [0.0, -2.0]]
    found = model.similarity(first, second)
    np.testing.assert_allclose(found, [[0.96, 0.6, -0.8], [0, 0, 0]], rtol=1e-6)
    assert found.dtype == np.float32
    pairs = model.similarity_pairwise(jnp.asarray([[3.0, 4.0], [2.0, 0.0]]), second[:2])
    np.testing.assert_allclose(pairs, [0.96, 1.0], rtol=1e-6)
    np.testing.assert_allclose(model.similarity([3.0, 4.0], second), found[:1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(m, d\), got \(2, 2\) and \(1, 3\)"):
        model.similarity(first, [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="as many vectors as embeddings1, 2, got 1"):
        model.similarity_pairwise(first, second[:1])


def test_dimension_device_and_repr(model):
    assert model.get_embedding_dimension() == model.get_sentence_embedding_dimension() == 64
    assert model.device == jax.devices()[0]
    assert repr(model) == (
        "JinaEmbeddings(1 layers, dimension 64, tasks ['retrieval.query', 'retrieval.passage', "
        "'separation', 'classification', 'text-matching'], float32 on cpu, max_seq_length=128)"
    )


def test_max_seq_length_is_the_default_of_calls(directory):
    model = load(directory)
    assert model.max_seq_length == 128
    model.max_seq_length = 16
    with pytest.warns(UserWarning, match="longer than max_length=16 tokens"):
        _, info = model.encode(TEXTS, return_info=True)
    assert info.tokens.max() == 16
    assert model.encode(TEXTS, max_length=128, return_info=True)[1].tokens.max() > 16
    for wrong in (129, 1, True, 16.0, None):
        with pytest.raises(ValueError, match=rf"max_seq_length={wrong}: .* integer from 2 to 128"):
            model.max_seq_length = wrong


# ---------------------------------------------------------------- None is what is absent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "none"}, r"task='none': expected None \(without quotes\) for the base model"),
        ({"task": "auto"}, "task='auto'.*; or None"),
        (
            {"task": [None, "none", None]},
            r"task='none': expected None \(without quotes\) for the base model",
        ),
        ({"prompt": "none"}, r"prompt='none': expected None \(without quotes\) for no prompt"),
        ({"overlap": 8}, "overlap=8: expected None with long_text='truncate'"),
    ],
)
def test_words_for_what_is_absent_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode(TEXTS, **options)


# ---------------------------------------------------------------- arguments of other types


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": "x"}, "mesh='x': expected one of jina_jax.make_mesh, or None"),
        ({"batching": 512}, "batching=512: expected a Batching or None"),
        ({"tusk": 1}, "from_pretrained: unexpected keyword argument 'tusk'"),
    ],
)
def test_options_of_a_checkpoint_of_other_types_are_refused(directory, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load(directory, **options)


def test_integers_of_numpy_are_integers(model):
    options = {"truncate_dim": 32, "max_length": 16, "batch_size": 2, "overlap": 4}
    of_numpy = {name: np.int64(value) for name, value in options.items()}
    windows = {"long_text": "windows"}
    found, expected = (model.encode(TEXTS, **given, **windows) for given in (of_numpy, options))
    np.testing.assert_array_equal(found, expected)
    found, expected = (model.encode_chunks(TEXTS[0], size) for size in (np.int32(3), 3))
    assert found.spans == expected.spans
    for name in options:
        for wrong in (True, 16.0, "16"):
            with pytest.raises(ValueError, match=f"{name}={wrong!r}: expected"):
                model.encode(TEXTS, **{name: wrong}, **windows)


def test_the_warning_of_texts_that_were_cut_points_at_the_users_line(model):
    for method in (model.encode, model.encode_query, model.encode_document):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method(TEXTS, max_length=8)
        assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # chunks are never cut
        model.encode_chunks(TEXTS, 3, max_length=8)


def test_a_lone_surrogate_of_the_prompt_is_the_prompts(model):
    for texts in (TEXTS, []):
        with pytest.raises(ValueError, match=r"prompt: expected Unicode text, got the lone surr"):
            model.encode(texts, prompt="no\ud800")


# ---------------------------------------------------------------- chunks


def test_chunks_have_a_batch_size_and_info(model):
    texts = ["one two six", "", "a b c d e f g"]
    expected = model.encode_chunks(texts, 3, task=None)
    found, info = model.encode_chunks(texts, 3, task=None, batch_size=1, return_info=True)
    for mine, other in zip(found, expected, strict=True):
        assert mine.spans == other.spans
        np.testing.assert_allclose(mine.embeddings, other.embeddings, atol=1e-5)
    assert isinstance(info, EncodeInfo)
    assert info.tokens.tolist() == [14, 2, 16]
    assert info.dropped.tolist() == [0, 0, 0]
    one, info = model.encode_chunks(texts[0], 3, return_info=True)
    assert len(one.embeddings) == len(one.spans)
    assert info.tokens.shape == (1,)


def test_chunks_of_a_model_that_reads_the_first_token_are_refused(tmp_path):
    model = load(write_tiny(tmp_path, emb_pooler="cls"))
    with pytest.raises(ValueError, match="encode_chunks: expected a model with the 'mean' pooler"):
        model.encode_chunks("a", "sentences")


# ---------------------------------------------------------------- packing


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_packed_is_as_alone(model, pooler, positions):
    """Each text with others in its row, for every pooler and kind of position."""
    changes = {**POOLERS[pooler], **POSITIONS[positions], "initializer_range": 0.5}
    config = dataclasses.replace(model.config, **changes)
    state = nnx.state(Encoder(config, rngs=nnx.Rngs(0)))
    packed, padded = (
        JinaEmbeddings(config, state, model.tokenizer, batching=batching)
        for batching in (Batching(128, row_lengths=(8, 128)), Batching(packing=False))
    )
    texts = ["abc" * size for size in (10, 1, 6, 0, 2, 14, 3, 20)]
    together, info = packed.encode(texts, return_info=True)
    assert info.padding < 0.5
    alone = np.stack([packed.encode(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, padded.encode(texts), atol=1e-5)


def test_vectors_of_many_pools_of_which_the_last_is_partial(model, monkeypatch):
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_POOL", 1)
    monkeypatch.setattr("jina_jax.runtime.pipeline._STEPS_IN_FIRST_POOL", 1)
    monkeypatch.setattr("jina_jax.runtime.pipeline._CHARACTERS_PER_TOKEN", 1)
    texts = [chr(97 + i % 26) * (1 + 7 * i % 40) for i in range(41)]
    expected = np.stack([model.encode(text) for text in texts])
    np.testing.assert_allclose(model.encode(texts), expected, atol=1e-5)


# ---------------------------------------------------------------- finite vectors


def with_broken(model, path, value):
    flat = [
        (keys, variable.replace(jnp.full_like(variable[...], value)))
        if ".".join(map(str, keys)) == path
        else (keys, variable)
        for keys, variable in nnx.to_flat_state(model.state)
    ]
    return model.with_state(nnx.from_flat_state(flat))


@pytest.mark.parametrize("output_value", ["sentence_embedding", "token_embeddings"])
def test_vectors_that_are_not_finite_are_an_error_that_names_the_text(model, output_value):
    broken = with_broken(model, "layers.0.norm2.bias", np.nan)
    with pytest.raises(ValueError, match=r"texts\[0\]: expected a finite embedding, got NaN"):
        broken.encode(TEXTS, output_value=output_value)
    with pytest.raises(ValueError, match=r"texts\[0\]: expected a finite"):
        broken.encode_chunks(TEXTS, 2)


def test_float16_that_overflows_says_to_use_bfloat16(directory):
    low = load(directory, dtype="float16")
    broken = with_broken(low, "layers.0.norm2.bias", np.inf)
    with pytest.raises(ValueError, match="load the model with dtype='bfloat16'"):
        broken.encode(TEXTS)


# ---------------------------------------------------------------- state, copies, JAX


def test_there_is_one_state(model):
    assert model.state is model.engine.state
    with pytest.raises(AttributeError):
        model.state = None
    other = model.with_state(jax.tree.map(jnp.zeros_like, model.state))
    assert other.state is other.engine.state is not model.state
    assert np.abs(other.encode("a") - model.encode("a")).max() > 1e-3


def test_a_state_is_put_where_the_model_is(directory, model):
    mesh = make_mesh(model=2, devices=jax.devices()[2:6])
    other = load(directory, mesh=mesh).with_state(jax.tree.map(np.asarray, model.state))
    np.testing.assert_allclose(other.encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    assert other.device == mesh.devices.flat[0]
    other.merged(TASKS[0])


@pytest.mark.parametrize("change", [lambda s: None, lambda s: jax.tree.map(jnp.float16, s)])
def test_a_state_of_another_kind_is_refused(model, change):
    with pytest.raises(ValueError, match=r"state: expected the weights of this model, \w+"):
        model.with_state(change(model.state))


ONE_DEVICE = {"mesh": make_mesh(devices=jax.devices()[:1])}
PLACES = {
    "one device": ONE_DEVICE,
    "stacked": {**ONE_DEVICE, "scan_layers": True},
    "2 x 2 devices": {"mesh": make_mesh(model=2, devices=jax.devices()[:4])},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("dtype", "least"), [("float32", 1 - 1e-6), ("bfloat16", 0.9999)])
def test_merged_is_the_model_of_one_task(directory, place, dtype, least):
    model = load(directory, dtype=dtype, **PLACES[place])
    expected = model.encode(TEXTS, task=TASKS[0], normalize_embeddings=True)
    merged = model.merged(TASKS[0])
    found = merged.encode(TEXTS)
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() >= least
    assert (found * model.encode(TEXTS)).sum(axis=1).max() < 0.999
    shardings = [leaf.sharding for leaf in jax.tree.leaves(merged.state)]
    base = nnx.split_state(model.state, Adapter, ...)[1]
    assert shardings == [leaf.sharding for leaf in jax.tree.leaves(base)]
    assert (merged.engine.dtype, merged.config.num_tasks) == (model.engine.dtype, 0)
    with pytest.raises(ValueError, match=r"task='retrieval\.query'"):
        merged.encode(TEXTS, task=TASKS[0])


def test_merging_an_unknown_task_is_refused(model):
    with pytest.raises(ValueError, match=r"task='search': expected one of \['retrieval.query'"):
        model.merged("search")


COPIES = {"pickle": lambda model: pickle.loads(pickle.dumps(model)), "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16", "scan_layers": True}])
def test_a_copy_gives_the_same_vectors(directory, copied, options):
    model = load(directory, **options)
    expected = model.encode(TEXTS, task=TASKS[2])
    other = COPIES[copied](model)
    assert other.engine.compiled == 0  # programs do not travel
    np.testing.assert_array_equal(other.encode(TEXTS, task=TASKS[2]), expected)
    assert other.engine.dtype == model.engine.dtype


def test_a_copy_of_a_sharded_model_lies_on_the_same_devices(directory):
    model = load(directory, mesh=make_mesh(model=2, devices=jax.devices()[2:6]))
    other = pickle.loads(pickle.dumps(model))
    assert other.engine.mesh == model.engine.mesh
    np.testing.assert_allclose(other.encode(TEXTS), model.encode(TEXTS), atol=1e-6)


def test_jax_arrays_stay_on_the_device(model):
    found = model.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(found, jax.Array)
    assert found.devices() == {model.device}
    np.testing.assert_array_equal(found, model.encode(TEXTS))
    tokens = model.encode(TEXTS, output_value="token_embeddings", convert_to_numpy=False)
    assert all(isinstance(vectors, jax.Array) for vectors in tokens)


@pytest.mark.parametrize("pooler", POOLERS)
def test_the_network_as_a_pure_function(tmp_path, pooler):
    model = load(write_tiny(tmp_path, **POOLERS[pooler]))
    apply, parameters = model.functional()
    ids = model.tokenize(TEXTS)
    table = np.full((3, 40), model.config.pad_token_id)
    mask = np.arange(40) < np.array([[len(row)] for row in ids])
    table[mask] = np.concatenate(ids)
    tasks = np.array([-1, 3, 2])
    found = jax.jit(apply)(parameters, table, mask, tasks)
    expected = model.encode(
        TEXTS, task=[None, TASKS[3], TASKS[2]], prompt=None, normalize_embeddings=False
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    single = jax.jit(apply)(parameters, table[:1, : len(ids[0])])
    np.testing.assert_allclose(single, expected[:1], atol=1e-5)


def test_gradients_and_vmap_of_the_pure_function(model):
    apply, parameters = model.functional()
    ids = np.array(model.tokenize(["abc", "xyz"]))
    gradients = jax.jit(jax.grad(lambda p: apply(p, ids, None, np.array([0, 1])).sum()))(parameters)
    assert gradients.keys() == parameters.keys()
    assert np.abs(gradients["layers.0.attention.out_proj.lora_b"][:2]).max() > 0
    one = jax.jit(jax.vmap(lambda row: apply(parameters, row[None])[0]))(ids)
    np.testing.assert_allclose(one, jax.jit(apply)(parameters, ids), atol=1e-5)


IDS = np.full((2, 5), 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IDS[0],), r"input_ids: expected integer \(B, T\), got int64 \(5,\)"),
        ((IDS * 1.0,), r"input_ids: expected integer \(2, 5\), got float64 \(2, 5\)"),
        ((IDS.tolist(),), r"input_ids: expected integer \(2, 5\), got list \(2, 5\)"),
        ((IDS - 8,), "input_ids: expected 0 to 119, got -1"),
        ((IDS + 113,), "input_ids: expected 0 to 119, got 120"),
        ((IDS, IDS), r"attention_mask: expected bool \(2, 5\), got int64 \(2, 5\)"),
        ((IDS, IDS[:1] > 0), r"attention_mask: expected bool \(2, 5\), got bool \(1, 5\)"),
        ((IDS, None, np.array([1])), r"task_ids: expected integer \(2,\), got int64 \(1,\)"),
        ((IDS, None, np.array([0, 5])), "task_ids: expected -1 to 4, got 5"),
        ((IDS, None, np.array([-2, 0])), "task_ids: expected -1 to 4, got -2"),
    ],
)
def test_inputs_of_the_pure_function_are_checked(model, arguments, message):
    apply, parameters = model.functional()
    with pytest.raises(ValueError, match=message):
        apply(parameters, *arguments)


def test_shapes_are_checked_under_jit(model):
    apply, parameters = model.functional()
    with pytest.raises(ValueError, match="task_ids: expected integer"):
        jax.jit(apply)(parameters, IDS, None, np.zeros((2, 1), int))


# ---------------------------------------------------------------- types, the process

USERS_CODE = """
import jax
import numpy as np
from jina_jax import Chunks, EncodeInfo, JinaEmbeddings

model = JinaEmbeddings.from_pretrained("tiny", revision=None, local_files_only=True)
one: np.ndarray = model.encode("a", task="separation")
many: np.ndarray = model.encode(["a", "b"], truncate_dim=64)
pair: tuple[np.ndarray, EncodeInfo] = model.encode(["a"], return_info=True)
own: jax.Array = model.encode(["a"], convert_to_numpy=False)
tokens: list[np.ndarray] = model.encode(["a"], output_value="token_embeddings")
token: np.ndarray = model.encode("a", output_value="token_embeddings")
query: np.ndarray = model.encode_query("a")
chunks: Chunks = model.encode_chunks("a. b", "sentences")
several: list[Chunks] = model.encode_chunks(["a. b"], 3, max_length=64)
ids: list[int] = model.tokenize("a")
rows: list[list[int]] = model.tokenize(["a"])
scores: np.ndarray = model.similarity(many, many)
"""
WRONG_CODE = """
from jina_jax import JinaEmbeddings

model = JinaEmbeddings.from_pretrained("tiny")
vectors: str = model.encode("a")
model.encode("a", tusk="separation")
"""


def test_types_of_users_code(tmp_path):
    pytest.importorskip("mypy", reason="needs mypy (extra dev)")
    root = Path(__file__).parents[1]
    (tmp_path / "right.py").write_text(USERS_CODE)
    (tmp_path / "wrong.py").write_text(WRONG_CODE)
    (tmp_path / "jina_jax").symlink_to(root / "jina_jax")
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml")]
    command += ["--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent"]
    command += ["right.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    found = set(re.findall(r"^(\w+\.py:\d+): error:", done.stdout, re.MULTILINE))
    assert found == {"wrong.py:5", "wrong.py:6"}, done.stdout


def test_batching_of_the_example_in_the_readme_still_packs(directory):
    model = load(directory, batching=Batching(token_budget=65536))
    assert model.batching == dataclasses.replace(Batching(token_budget=65536)).on("cpu")
    assert model.batching.row_lengths == (128, 256, 512)


def test_similarity_of_large_and_small_vectors_and_of_none(model):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3, 8)).astype(np.float32)
    expected = model.similarity(vectors, vectors)
    for factor in (1e30, 1e-30):
        scaled = model.similarity(vectors * np.float32(factor), vectors)
        np.testing.assert_allclose(scaled, expected, atol=1e-6)
    assert model.similarity(vectors[:0], vectors).shape == (0, 3)
    with pytest.raises(ValueError, match="embeddings2: expected finite vectors"):
        model.similarity(vectors, vectors * np.float32(np.nan))
    with pytest.raises(ValueError, match="embeddings1: expected vectors of one length"):
        model.similarity([[1, 2], [1]], vectors)


def test_tasks_and_texts_in_arrays_and_generators(model):
    tasks = ["separation", None]
    expected = model.encode(["a", "b"], task=tasks)
    for given in (np.array(tasks, object), (task for task in tasks), tuple(tasks)):
        found = model.encode(np.array(["a", "b"]), task=given)
        np.testing.assert_array_equal(found, expected)
    chunks = model.encode_chunks(["ab", "cd"], 1, task=np.array(tasks, object))
    assert len(chunks) == 2
    with pytest.raises(ValueError, match=r"texts: expected .*got ndarray of 0 axes"):
        model.encode(np.array("a"))


@pytest.mark.parametrize("library", ["pandas", "pyarrow"])
def test_columns_of_tables(model, library):
    tasks = ["separation", None]
    expected = model.encode(["a", "b"], task=tasks)
    module = pytest.importorskip(library)
    column = module.array if library == "pyarrow" else lambda values: module.Series(values, [7, 3])
    np.testing.assert_array_equal(model.encode(column(["a", "b"]), task=column(tasks)), expected)
    with pytest.raises(ValueError, match=r"texts\[1\]: expected str, got"):
        model.encode(column(["a", None]))


@pytest.mark.parametrize("number", [np.int32, np.uint8, np.int64])
def test_numbers_of_numpy_are_integers(model, number):
    given = {"truncate_dim": 32, "max_length": 16, "batch_size": 2}
    own = {name: number(value) for name, value in given.items()}
    np.testing.assert_array_equal(
        model.encode(["a", "b"], **own), model.encode(["a", "b"], **given)
    )


def test_the_pure_function_takes_the_model_s_parameters_alone(model):
    function, parameters = model.functional()
    ids = np.array([[0, 5, 2]])
    for wrong in ({**parameters, "zz": 1}, {k: parameters[k] for k in list(parameters)[1:]}):
        with pytest.raises(ValueError, match="parameters: expected those of the model"):
            function(wrong, ids)
    with pytest.raises(ValueError, match=r"input_ids: expected integer \(B, T\)"):
        function(parameters, ids[:, :0])


@pytest.mark.parametrize("name", ["normalize_embeddings", "return_info"])
def test_flags_are_true_or_false(model, name):
    with pytest.raises(ValueError, match=f"{name}='no': expected True or False"):
        model.encode("a", **{name: "no"})
    model.encode("a", **{name: np.True_})


def test_flags_of_a_model_are_true_or_false(directory):
    for name in ("split_special_tokens", "scan_layers"):
        with pytest.raises(ValueError, match=f"{name}='no': expected True or False"):
            JinaEmbeddings.from_pretrained(directory, **{name: "no"})
