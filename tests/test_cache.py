"""What is kept on disk between runs."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.cache import cache_folder, compilation_cache, programs_folder, set_compilation_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def settings():
    """Read jax's settings; afterwards they are what they were."""
    before = [getattr(jax.config, name) for name in SETTINGS]
    yield lambda: [getattr(jax.config, name) for name in SETTINGS]
    for name, value in zip(SETTINGS, before, strict=True):
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("chosen", "folder"),
    [("/somewhere", "/somewhere"), ("", "/home/me/.cache/jina_jax")],
)
def test_folders(monkeypatch, chosen, folder):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("JINA_JAX_CACHE", chosen)
    assert cache_folder() == Path(folder)
    assert programs_folder() == Path(folder, "programs")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_directory_is_told_to_jax_with_every_program(settings, kind):
    set_compilation_cache(kind("/chosen"))
    assert settings() == ["/chosen", 0.0, -1]


def test_a_context_leaves_jax_as_it_was(settings):
    jax.config.update("jax_compilation_cache_dir", None)
    before = settings()
    with compilation_cache("/chosen"):
        assert settings() == ["/chosen", 0.0, -1]
    assert settings() == before != ["/chosen", 0.0, -1]


def test_false_leaves_jax_as_it_is(settings):
    jax.config.update("jax_compilation_cache_dir", "/jax's own")
    before = settings()
    set_compilation_cache(False)
    assert settings() == before


def test_true_takes_what_jax_was_told_of(settings):
    jax.config.update("jax_compilation_cache_dir", "/jax's own")
    before = settings()
    set_compilation_cache(True)
    assert settings() == before


@pytest.mark.parametrize("none", [None, ""])  # "" is what an empty variable gives
def test_true_is_our_folder_where_jax_was_told_of_none(settings, monkeypatch, none):
    jax.config.update("jax_compilation_cache_dir", none)
    monkeypatch.setenv("JINA_JAX_CACHE", "/ours")
    set_compilation_cache(True)
    assert settings() == ["/ours/programs", 0.0, -1]


@pytest.mark.parametrize("wrong", [None, 3, 0, 1, b"/bytes", ["/a"]])
def test_another_type_is_refused(settings, wrong, tmp_path):
    before = settings()
    with pytest.raises(ValueError, match=r"compilation_cache=.*: expected a directory, True or"):
        set_compilation_cache(wrong)
    assert settings() == before


def test_a_model_with_a_wrong_setting_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="compilation_cache=3"):
        JinaEmbeddings.from_pretrained(write_tiny(tmp_path), compilation_cache=3)


# In a process of its own: jax opens its cache once.
ENCODE = """
import sys
import jax
from jina_jax import JinaEmbeddings

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
setting = {"true": True, "false": False}.get(sys.argv[2], sys.argv[2])
JinaEmbeddings.from_pretrained(sys.argv[1], compilation_cache=setting).encode("a")
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.fixture(scope="module")
def encode(tmp_path_factory):
    """Encode a text in a new process: (setting, folder of ours) → programs found in the cache."""
    directory = write_tiny(tmp_path_factory.mktemp("model"))

    def run(setting, folder):
        environment = {**os.environ, "JINA_JAX_CACHE": str(folder), "JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-c", ENCODE, str(directory), str(setting)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return int(done.stdout)

    return run


def test_programs_are_kept_and_found_again(encode, tmp_path):
    chosen, ours = tmp_path / "chosen", tmp_path / "ours"
    assert encode(chosen, ours) == 0
    assert any(chosen.iterdir())
    assert not (ours / "programs").exists()
    assert encode(chosen, ours) > 0


def test_true_and_false(encode, tmp_path):
    assert encode("false", tmp_path) == 0
    assert not (tmp_path / "programs").exists()
    assert encode("true", tmp_path) == 0
    assert any((tmp_path / "programs").iterdir())
