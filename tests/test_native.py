"""Native checkpoints and loading into JAX."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from foreign import native_tensors, published_tensors, save
from published import SMALL, published_config

from jina_jax.checkpoints.load import to_state
from jina_jax.checkpoints.native import (
    WEIGHTS_FILE,
    check_keys,
    load_native,
    save_native,
    state_tensors,
)
from jina_jax.checkpoints.tensors import CheckpointError, LazyTensor, write_safetensors
from jina_jax.config import Config, ConfigError
from jina_jax.nn.encoder import abstract_encoder
from jina_jax.nn.parameters import parameter_shapes

FIELDS = {"add_pooling_layer": True, "emb_pooler": "mean", "default_prompt": ""}
CONFIG = Config.from_dict({**published_config(SMALL), **FIELDS})
ARRAYS = native_tensors(published_tensors())


lazy = LazyTensor.of


def aligned(array: np.ndarray) -> np.ndarray:
    """Copy to an address that XLA would take over as it is: a multiple of 64."""
    buffer = np.empty(array.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


TENSORS = {path: lazy(array) for path, array in ARRAYS.items()}


def arrays(state: nnx.State) -> dict[str, np.ndarray]:
    return {".".join(map(str, k)): np.asarray(v[...]) for k, v in nnx.to_flat_state(state)}


@pytest.fixture
def native(tmp_path) -> Path:
    """A native checkpoint on disk, written by the safetensors library."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    save(tmp_path / WEIGHTS_FILE, ARRAYS)
    return tmp_path


def test_parameter_shapes_are_those_of_the_published_tensors():
    assert parameter_shapes(CONFIG) == {path: array.shape for path, array in ARRAYS.items()}


def test_full_size_has_the_published_number_of_parameters():
    full = {"vocab": 250002, "width": 1024, "layers": 24, "heads": 16, "inner": 4096}
    config = Config.from_dict({**published_config({**full, "positions": 8194}), **FIELDS})
    shapes = parameter_shapes(config)
    assert len(shapes) == 492
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 572_310_396
    adapters = (shape for path, shape in shapes.items() if ".lora_" in path)
    assert sum(int(np.prod(shape)) for shape in adapters) == 12_946_300


def test_float8_is_read_as_bfloat16_exactly(native):
    """Of every value that float8 has, NaN and the subnormal ones included."""
    path = "word_embeddings.embedding"
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    stored = np.resize(codes, ARRAYS[path].shape)
    write_safetensors(native / "new", {**TENSORS, path: lazy(stored)}, "flax")
    (native / "new").replace(native / WEIGHTS_FILE)
    config, tensors = load_native(native)
    read = tensors[path].read()
    assert read.dtype == tensors[path].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read.astype(np.float32), stored.astype(np.float32))
    table = arrays(to_state(config, tensors))[path]
    np.testing.assert_array_equal(table.astype(np.float32), stored.astype(np.float32))


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16"])
def test_to_state_holds_the_files_numbers_in_the_dtype_asked_for(dtype):
    state = to_state(CONFIG, TENSORS, dtype)
    loaded = arrays(state)
    assert loaded.keys() == ARRAYS.keys()
    for path, array in loaded.items():
        expected = ARRAYS[path].astype(dtype or "float32")
        assert array.dtype == expected.dtype
        assert array.tobytes() == np.ascontiguousarray(expected).tobytes(), path


def test_to_state_takes_the_dtype_of_the_word_embeddings():
    path = "word_embeddings.embedding"
    tensors = {**TENSORS, path: lazy(ARRAYS[path].astype(ml_dtypes.bfloat16))}
    assert {array.dtype.name for array in arrays(to_state(CONFIG, tensors)).values()} == {
        "bfloat16"
    }


def test_to_state_fits_the_encoder():
    state = to_state(CONFIG, TENSORS)
    _, abstract = abstract_encoder(CONFIG)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)


def test_to_state_copies_what_it_reads():
    """What a reader gives may be a view of a file that changes or goes away."""
    source = {path: aligned(array) for path, array in ARRAYS.items()}
    state = to_state(CONFIG, {path: lazy(array) for path, array in source.items()})
    for array in source.values():
        array.fill(0)
    for path, array in arrays(state).items():
        np.testing.assert_array_equal(array.ravel(), ARRAYS[path].ravel())


@pytest.mark.parametrize("dtype", ["float64", "int8", "fp32", "", np.float32])
def test_to_state_refuses_another_dtype(dtype):
    with pytest.raises(ValueError, match="expected 'float32', 'bfloat16', 'float16' or None"):
        to_state(CONFIG, TENSORS, dtype)


def test_to_state_refuses_tensors_of_another_config():
    with pytest.raises(CheckpointError, match=r"tensors: .*\n  - layers\.3\."):
        to_state(dataclasses.replace(CONFIG, num_hidden_layers=4), TENSORS)


def test_load_native(native):
    config, tensors = load_native(native)
    assert config == CONFIG
    assert tensors.keys() == ARRAYS.keys()
    for path, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.read(), ARRAYS[path])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_state_comes_back_to_the_bit(tmp_path, dtype):
    state = to_state(CONFIG, TENSORS, dtype)
    save_native(tmp_path / "saved", CONFIG, state)
    config, tensors = load_native(tmp_path / "saved")
    assert config == CONFIG
    before, after = arrays(state), arrays(to_state(config, tensors))
    assert before.keys() == after.keys()
    for path, array in before.items():
        assert array.dtype == after[path].dtype
        assert array.tobytes() == after[path].tobytes(), path


def test_saving_a_state_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    state = to_state(CONFIG, TENSORS)
    with pytest.raises(
        CheckpointError, match=r"state: 30 keys do not fit its config:\n  \+ layers"
    ):
        save_native(tmp_path / "saved", CONFIG.merged("separation"), state)
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_checkpoint_is_refused(native):
    before = (native / WEIGHTS_FILE).read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        save_native(native, CONFIG, to_state(CONFIG, TENSORS))
    assert (native / WEIGHTS_FILE).read_bytes() == before


def test_state_tensors_view_the_state():
    state = to_state(CONFIG, TENSORS, "bfloat16")
    viewed = state_tensors(state)
    assert viewed.keys() == ARRAYS.keys()
    for path, tensor in viewed.items():
        assert tensor.shape == ARRAYS[path].shape
        assert tensor.read().dtype == tensor.dtype == ml_dtypes.bfloat16


def test_check_keys_lists_everything_in_one_error():
    found = [
        ("doubled", lazy(np.zeros(2, np.float32))),
        ("doubled", lazy(np.zeros(2, np.float32))),
        ("unknown", lazy(np.zeros((1, 2), np.float32))),
        ("misshapen", lazy(np.zeros((2, 3), np.float32))),
        ("quantised", lazy(np.zeros(2, np.int8))),
        ("right", lazy(np.zeros(2, np.float16))),
    ]
    expected = {"missing": (4,), "doubled": (2,), "misshapen": (3, 2), "right": (2,)}
    with pytest.raises(CheckpointError) as error:
        check_keys({**expected, "quantised": (2,)}, found, "file")
    assert str(error.value).splitlines() == [
        "file: 5 keys do not fit its config:",
        "  ! doubled: found twice",
        "  + unknown [1, 2]: unknown",
        "  ! misshapen: expected shape [3, 2], got [2, 3]",
        "  ! quantised: expected 'float32', 'bfloat16', 'float16', got int8",
        "  - missing [4]: missing",
    ]


def test_damaged_native_checkpoint_is_refused(native):
    (native / WEIGHTS_FILE).write_bytes((native / WEIGHTS_FILE).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        load_native(native)


def test_native_checkpoint_of_another_config_is_refused(native):
    fields = {**CONFIG.to_dict(), "hidden_size": 32, "matryoshka_dimensions": [32]}
    (native / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        CheckpointError, match=r"pooler\.kernel: expected shape \[32, 32\], got \[64"
    ):
        load_native(native)


def test_native_config_without_a_field_is_refused(native):
    fields = CONFIG.to_dict()
    del fields["rotary_emb_base"], fields["emb_pooler"]
    (native / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="rotary_emb_base is missing; emb_pooler is missing"):
        load_native(native)
