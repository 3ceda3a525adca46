"""Tasks added to a checkpoint, and trained values put into it: to the bit, in every layout."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from published import PROMPTS, TASKS, write_published
from test_convert import arrays, same, write_xlm_roberta
from tiny import TINY, write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.load import to_state
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor
from jina_jax.convert import (
    add_task,
    merge_checkpoint,
    open_checkpoint,
    with_adapters,
    with_weights,
    write_checkpoint,
)
from jina_jax.nn.parameters import parameter_shapes

LAYOUTS = ("native", "published", "transformers")
BF16 = np.dtype(ml_dtypes.bfloat16)
TEXTS = ["a cat", "the dog sleeps", ""]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def checkpoint(directory):
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def plain(checkpoint):
    """The same network without any adapters, and without a default prompt."""
    return merge_checkpoint(checkpoint, "text-matching")


def opened(tmp_path, dtype):
    return open_checkpoint(write_published(tmp_path / dtype, TINY, dtype))


def is_adapter(path):
    return ".lora_" in path


def trained(checkpoint, count, dtype="float32", seed=1):
    """Draw adapters for some tasks, with values that bfloat16 does not have."""
    rng = np.random.default_rng(seed)
    return {
        path: rng.standard_normal((count, *shape[1:]), np.float32).astype(dtype)
        for path, shape in parameter_shapes(checkpoint.config).items()
        if is_adapter(path)
    }


def written(checkpoint, directory, layout):
    """Write a checkpoint, and check that what is read again is the same to the bit."""
    write_checkpoint(checkpoint, directory, layout)
    again = open_checkpoint(directory)
    assert again.config == checkpoint.config
    assert again.layout == layout
    same(again.tensors, arrays(checkpoint))
    return again


# --- add_task


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("copy_of", [None, "retrieval.passage"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sixth_task_leaves_the_others_alone_in_every_layout(tmp_path, layout, copy_of, dtype):
    source = opened(tmp_path, dtype)
    before = arrays(source)
    again = written(add_task(source, "legal-search", copy_of=copy_of), tmp_path / "out", layout)
    assert again.config.lora_adaptations == (*TASKS, "legal-search")
    assert again.tensors.keys() == before.keys()
    for path, array in arrays(again).items():
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(array[:5] if is_adapter(path) else array, before[path])
        if is_adapter(path):
            assert array.shape[0] == 6
            assert copy_of is None or np.array_equal(array[5], before[path][1]), path
    same(source.tensors, before)


def test_a_new_adapter_has_the_published_initial_values(checkpoint):
    new = {
        path: array[5]
        for path, array in arrays(add_task(checkpoint, "x")).items()
        if is_adapter(path)
    }
    assert len(new) == 2 * (2 + 4 + 1)
    for path, array in new.items():
        is_table = "_embeddings." in path
        if path.endswith("lora_a") == is_table:
            assert not array.any(), path
        elif is_table:
            assert (array.shape, 0.7 < array.std() < 1.3) == ((4, 64), True), path
        else:
            # Uniform within 1/8: the standard deviation is the bound over √3.
            assert np.abs(array).max() <= 64**-0.5, path
            assert np.abs(array).max() > 0.9 * 64**-0.5, path
            np.testing.assert_allclose(array.std(), 64**-0.5 / 3**0.5, rtol=0.15, err_msg=path)
    drawn = [array.tobytes() for array in new.values() if array.any()]
    assert len(set(drawn)) == len(drawn) == len(new) // 2


def test_values_depend_on_seed_and_name_alone(checkpoint):
    path = "layers.0.mlp.fc1.lora_a"

    def drawn(*args, **options):
        return add_task(checkpoint, *args, **options).tensors[path].read()[-1].tobytes()

    first = add_task(checkpoint, "x").tensors[path]
    assert first.read().tobytes() == first.read().tobytes()
    assert drawn("x") == drawn("x", prompt="p") == drawn("x", seed=0)
    assert len({drawn("x"), drawn("x", seed=1), drawn("y")}) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ""),
        ({"prompt": "Find: "}, "Find: "),
        ({"copy_of": "retrieval.query"}, PROMPTS["retrieval.query"]),
        ({"copy_of": "retrieval.query", "prompt": ""}, ""),
    ],
)
def test_the_prompt_is_given_copied_or_none(checkpoint, tmp_path, options, expected):
    again = written(add_task(checkpoint, "x", **options), tmp_path / "out", "transformers")
    assert again.config.prompt("x") == expected
    assert {task: again.config.prompt(task) for task in TASKS} == PROMPTS


def test_vectors_of_new_tasks_are_those_of_the_base_model_or_of_the_copied_task(
    checkpoint, tmp_path
):
    both = add_task(add_task(checkpoint, "new"), "copy", copy_of="separation")
    write_checkpoint(both, tmp_path / "out", "published")
    model = JinaEmbeddings.from_pretrained(tmp_path / "out")
    base, other = model.encode(TEXTS), model.encode(TEXTS, task="separation")
    assert np.abs(base - other).max() > 0.01
    np.testing.assert_allclose(model.encode(TEXTS, task="new"), base, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.encode(TEXTS, task="copy"), other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_task_of_plain_weights(plain, tmp_path, layout):
    again = written(add_task(plain, "x", rank=3, alpha=6.0), tmp_path / "out", layout)
    assert (again.config.lora_rank, again.config.lora_alpha) == (3, 6.0)
    assert again.tensors["layers.0.mlp.fc1.lora_a"].shape == (1, 64, 3)
    same({p: t for p, t in again.tensors.items() if not is_adapter(p)}, arrays(plain))
    default = add_task(plain, "x").config
    assert (default.lora_rank, default.lora_alpha) == (4, 1)
    model = JinaEmbeddings.from_pretrained(tmp_path / "out")
    vectors = model.encode(TEXTS, task="x")
    np.testing.assert_allclose(vectors, model.encode(TEXTS), rtol=0, atol=1e-6)


def test_the_first_tasks_adapter_has_its_weights_dtype(plain):
    tensors = dict(plain.tensors)
    kernel = "layers.0.mlp.fc2.kernel"
    tensors[kernel] = LazyTensor(tensors[kernel].shape, BF16, lambda: np.ones((64, 64), BF16))
    added = add_task(dataclasses.replace(plain, tensors=tensors), "x")
    lora = {path: t.dtype.name for path, t in added.tensors.items() if is_adapter(path)}
    assert lora.pop("layers.0.mlp.fc2.lora_a") == lora.pop("layers.0.mlp.fc2.lora_b") == "bfloat16"
    assert set(lora.values()) == {"float32"}
    assert added.tensors["layers.0.mlp.fc2.lora_a"].read().dtype == BF16


@pytest.mark.parametrize("layout", ["native", "published", "xlm-roberta"])
def test_absolute_positions_get_adapters_too(tmp_path, layout):
    source = open_checkpoint(write_xlm_roberta(tmp_path / "source"))
    again = written(add_task(source, "x"), tmp_path / "out", layout)
    assert again.tensors["position_embeddings.lora_a"].shape == (1, 514, 4)


@pytest.mark.parametrize("name", ["", ".", "__", "検索", None, 3])
def test_a_name_without_a_folder_name_is_refused(checkpoint, name):
    with pytest.raises(ValueError, match=rf"name={name!r}: expected a string with a letter"):
        add_task(checkpoint, name)


@pytest.mark.parametrize("name", ["separation", "text_matching", "retrieval/query"])
def test_a_name_whose_folder_is_taken_is_refused(checkpoint, name):
    with pytest.raises(ValueError, match=rf"name={name!r}: expected a folder name of its own"):
        add_task(checkpoint, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"copy_of": "search"}, "task='search': this checkpoint has"),
        ({"rank": 8}, "rank=8: expected 4: all adapters of a checkpoint share it"),
        ({"alpha": 2.0}, "alpha=2.0: expected 1: all adapters of a checkpoint share it"),
        ({"prompt": 3}, "prompt=3: expected a string or None"),
        ({"seed": -1}, "seed=-1: expected an integer of at least 0"),
        ({"seed": 0.5}, "seed=0.5: expected an integer of at least 0, got float"),
    ],
)
def test_refused_options(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        add_task(checkpoint, "x", **options)
    assert add_task(checkpoint, "x", rank=4, alpha=1).config.num_tasks == 6


def test_refused_rank_and_alpha_of_a_first_task(plain):
    for options in ({"rank": 0}, {"rank": 2.5}, {"alpha": 0}, {"alpha": float("nan")}):
        message = "^rank=" if "rank" in options else "lora_alpha="
        with pytest.raises(ValueError, match=message):
            add_task(plain, "x", **options)
    with pytest.raises(ValueError, match="this checkpoint has no adapters: expected None"):
        add_task(plain, "x", copy_of="separation")


# --- with_adapters


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_trained_adapters_take_their_places_and_others_keep_every_bit(tmp_path, layout, dtype):
    source = opened(tmp_path, dtype)
    before, new = arrays(source), trained(source, 2)
    changed = with_adapters(source, ["text-matching", "retrieval.passage"], new)
    again = written(changed, tmp_path / "out", layout)
    assert again.dtype.name == dtype
    for path, array in arrays(again).items():
        if is_adapter(path):
            assert array.dtype.name == "float32", path
            np.testing.assert_array_equal(array[[4, 1]], new[path], err_msg=path)
            np.testing.assert_array_equal(array[[0, 2, 3]], before[path][[0, 2, 3]].astype("f4"))
        else:
            assert array.tobytes() == before[path].tobytes(), path
    same(source.tensors, before)
    to_state(again.config, again.tensors)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("bfloat16", BF16, "bfloat16"),
        ("bfloat16", "float16", "float32"),
        ("float32", BF16, "float32"),
    ],
)
def test_adapters_get_the_smallest_dtype_that_holds_both(tmp_path, old, new, expected):
    source = opened(tmp_path, old)
    before, values = arrays(source), trained(source, 1, new)
    changed = with_adapters(source, ["separation"], values)
    for path, tensor in changed.tensors.items():
        if is_adapter(path):
            array = tensor.read()
            assert array.dtype.name == tensor.dtype.name == expected
            np.testing.assert_array_equal(array[2], values[path][0].astype(expected))
            np.testing.assert_array_equal(array[3], before[path][3].astype(expected))


def test_float32_adapters_beside_a_bfloat16_base_change_what_is_computed(tmp_path):
    source = open_checkpoint(write_tiny(tmp_path / "source", dtype="bfloat16"))
    new = trained(source, 1)
    changed = with_adapters(add_task(source, "x"), ["x"], new)
    for layout in ("published", "transformers"):
        write_checkpoint(changed, tmp_path / layout, layout)
        model = JinaEmbeddings.from_pretrained(tmp_path / layout, dtype="float32")
        state = to_state(changed.config, changed.tensors, "float32")
        expected = JinaEmbeddings(model.config, state, model.tokenizer)
        vectors = model.encode(TEXTS, task="x")
        assert np.abs(vectors - model.encode(TEXTS)).max() > 0.01
        np.testing.assert_array_equal(vectors, expected.encode(TEXTS, task="x"))


def test_every_wrong_array_is_named_at_once(checkpoint):
    new = trained(checkpoint, 1)
    del new["pooler.lora_b"]
    new["layers.0.mlp.fc1.kernel"] = np.zeros((64, 64), np.float32)
    new["word_embeddings.lora_a"] = np.zeros((2, 120, 4), np.float32)
    new["pooler.lora_a"] = new["pooler.lora_a"].astype(np.float64)
    with pytest.raises(CheckpointError) as error:
        with_adapters(checkpoint, ["separation"], new)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  ! pooler.lora_a: expected 'float32', 'bfloat16', 'float16', got float64",
        "  ! word_embeddings.lora_a: expected shape [1, 120, 4], got [2, 120, 4]",
        "  + layers.0.mlp.fc1.kernel [64, 64]: unknown",
        "  - pooler.lora_b [1, 4, 64]: missing",
    ]


@pytest.mark.parametrize("tasks", [[], ["separation", "separation"], [None]])
def test_no_task_and_the_same_task_twice_are_refused(checkpoint, tasks):
    with pytest.raises(ValueError, match="expected distinct names, at least one"):
        with_adapters(checkpoint, tasks, trained(checkpoint, len(tasks)))


def test_unknown_tasks_are_refused(checkpoint, plain):
    for source in (checkpoint, plain):
        with pytest.raises(ValueError, match="task='search'"):
            with_adapters(source, ["search"], {})


# --- with_weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trained_weights_take_their_places_with_their_dtype(tmp_path, layout):
    source = opened(tmp_path, "bfloat16")
    before = arrays(source)
    rng = np.random.default_rng(2)
    names = ("layers.0.attention.qkv_proj.kernel", "embedding_norm.scale", "pooler.bias")
    new = {path: rng.standard_normal(before[path].shape, np.float32) for path in names}
    again = written(with_weights(source, new), tmp_path / "out", layout)
    same(again.tensors, {**before, **new})
    same(source.tensors, before)


def test_the_word_embeddings_dtype_is_the_checkpoints(tmp_path):
    source = opened(tmp_path, "bfloat16")
    table = {"word_embeddings.embedding": np.ones((120, 64), np.float32)}
    changed = with_weights(source, table)
    assert changed.dtype.name == "float32"
    write_checkpoint(changed, tmp_path / "out", "published")
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["torch_dtype"] == "float32"
    same(with_weights(source, {}).tensors, arrays(source))


def test_every_wrong_weight_is_named_at_once(checkpoint):
    new = {
        "pooler.kernel": np.zeros((64, 1), np.float32),
        "pooler.bias": np.zeros(64, np.int32),
        "pooler.lora_a": np.zeros((5, 64, 4), np.float32),
        "layers.7.norm1.bias": np.zeros(64, np.float32),
    }
    with pytest.raises(CheckpointError) as error:
        with_weights(checkpoint, new)
    assert sorted(str(error.value).splitlines()[1:]) == [
        "  ! pooler.bias: expected 'float32', 'bfloat16', 'float16', got int32",
        "  ! pooler.kernel: expected shape [64, 64], got [64, 1]",
        "  + layers.7.norm1.bias [64]: unknown",
        "  + pooler.lora_a [5, 64, 4]: unknown",
    ]


def test_numbers_of_numpy_are_numbers(plain):
    values = {"rank": 3, "alpha": 6, "seed": 5}
    ours, again = (
        add_task(plain, "x", **{name: kind(value) for name, value in values.items()})
        for kind in (int, np.int64)
    )
    assert ours.config == again.config
    assert type(again.config.lora_rank) is type(again.config.lora_alpha) is int
    for path, tensor in ours.tensors.items():
        np.testing.assert_array_equal(again.tensors[path].read(), np.array(tensor.read()))
    assert add_task(plain, "x", alpha=np.float32(0.5)).config.lora_alpha == 0.5
    with pytest.raises(ValueError, match="rank=True: expected an integer"):
        add_task(plain, "x", rank=True)
