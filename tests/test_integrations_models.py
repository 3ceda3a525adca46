"""Models of the integrations: loaded once, let go, and named when they are stored."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
from tiny import write_tiny

from jina_jax.integrations.models import Encoder, load, model_name

LIBRARIES = {
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "haystack": ("haystack", "haystack"),
    "chroma": ("chromadb", "chroma"),
    "sklearn": ("sklearn", "eval"),
    "sentence_transformers": ("torch", "sentence-transformers"),
}


def test_one_model_per_name_and_options(directory):
    assert load(directory) is load(str(directory))
    assert load(directory, {"dtype": "bfloat16"}) is not load(directory)
    assert load(directory, {"dtype": "bfloat16"}).engine.dtype == "bfloat16"


def test_a_directory_that_changes(tmp_path):
    first = load(write_tiny(tmp_path / "model"))
    assert load(tmp_path / "model") is first
    (tmp_path / "model" / "config.json").touch()
    assert load(tmp_path / "model") is not first


def test_models_that_nobody_uses_are_freed(directory, tmp_path):
    unused = weakref.ref(load(write_tiny(tmp_path / "model")))
    used = load(directory)
    gc.collect()
    assert unused() is None
    assert load(directory) is used


def test_pickles_have_no_weights(directory, model):
    named, given = Encoder(directory), Encoder(model)
    named.load()
    assert len(pickle.dumps(named)) < 1000
    assert pickle.loads(pickle.dumps(named)).load() is named.load()
    assert copy.deepcopy(named).load() is named.load()
    assert copy.deepcopy(given).load() is model


def test_copies_keep_the_model_of_a_directory_that_changes(tmp_path):
    own = Encoder(write_tiny(tmp_path / "model"))
    model = own.load()
    (tmp_path / "model" / "config.json").touch()
    assert copy.copy(own).load() is model
    assert copy.deepcopy(own).load() is model


def test_settings(directory):
    encoder = Encoder(directory, "separation", 32, 4, {"dtype": "float32"}, {"overlap": None})
    assert Encoder(**encoder.settings()).settings() == encoder.settings()
    assert encoder.settings()["model"] == str(directory)
    assert repr(Encoder("tiny", None, 32)) == "'tiny', task=None, truncate_dim=32"


@pytest.mark.parametrize("name", [None, "", 3, b"tiny"])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="model: expected a directory, a Hub id or 'tiny'"):
        model_name(name)


def test_options_that_are_no_keys(directory):
    with pytest.raises(ValueError, match=r"expected hashable values of \['token', 'mesh'\]$"):
        load(directory, {"token": "hf_secret", "mesh": []})


def test_tokens_of_the_hub_are_not_kept(directory, model):
    for given in (directory, model):
        with pytest.raises(ValueError, match=r"model_options: unexpected 'token'.*set \$HF_TOKEN$"):
            Encoder(given, model_options={"token": "hf_secret"})
    with pytest.raises(ValueError, match=r"beside a model that is loaded, got \['token'\]$"):
        load(model, {"token": "hf_secret"})


def test_libraries_that_are_missing():
    """Each module names the extra, in a process in which no library can be imported."""
    code = f"""
import importlib, sys
libraries = {LIBRARIES!r}
missing = [library for library, _ in libraries.values()]

class Nowhere:
    def find_spec(name, path=None, target=None):
        if name in missing:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Nowhere)
for module in libraries:
    try:
        importlib.import_module("jina_jax.integrations." + module)
    except ModuleNotFoundError as error:
        assert error.name in missing
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f'{library} is not installed: pip install "jina-jax[{extra}]"'
        for library, extra in LIBRARIES.values()
    ]
