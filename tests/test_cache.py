"""The folder of cached files, and JAX's cache of compiled programs in it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.cache import (
    cache_folder,
    compilation_cache,
    programs_folder,
    programs_in_use,
)

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture
def settings():
    """A function that reads JAX's settings; they are restored after the test."""
    before = [getattr(jax.config, name) for name in SETTINGS]
    yield lambda: [getattr(jax.config, name) for name in SETTINGS]
    for name, value in zip(SETTINGS, before, strict=True):
        jax.config.update(name, value)
    reset_cache()


@pytest.mark.parametrize(
    ("chosen", "general", "folder"),
    [
        ("/somewhere", "/general", "/somewhere"),
        ("", "/general", "/general/jina_jax"),
        ("", "", "/home/me/.cache/jina_jax"),
        ("~/mine", "", "/home/me/mine"),
    ],
)
def test_folders(monkeypatch, chosen, general, folder):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", general)
    monkeypatch.setenv("JINA_JAX_CACHE", chosen)
    assert cache_folder() == Path(folder)
    assert programs_folder() == Path(folder, "programs")


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home, as in many containers."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "JINA_JAX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)


def test_without_a_home_there_is_no_folder(homeless, settings, monkeypatch, tmp_path):
    assert cache_folder() is programs_folder() is None
    jax.config.update(SETTINGS[0], None)
    before = settings()
    with compilation_cache(True):
        assert settings() == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with compilation_cache(True):
        assert settings()[0] == str(tmp_path / "jina_jax" / "programs")


def test_a_folder_that_cannot_be_made_is_not_used(settings, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JINA_JAX_CACHE", str(tmp_path / "file"))
    jax.config.update(SETTINGS[0], None)
    before = settings()
    with compilation_cache(True):
        assert settings() == before


@pytest.fixture
def compile_new():
    """A function that compiles a program which is in memory nowhere: the number makes its text."""
    return lambda number: jax.jit(lambda x: x * number).lower(jnp.ones(3)).compile()


def programs(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*-cache")}


@pytest.mark.parametrize("own", [None, "", "/process's own"])
@pytest.mark.parametrize("kind", [str, Path])
def test_options_are_set_within_the_block_only(settings, own, kind):
    jax.config.update(SETTINGS[0], own)
    before = settings()
    with compilation_cache(kind("/chosen")):
        assert settings() == ["/chosen", 0.0, -1]
        assert programs_in_use() == (own or None)
    assert settings() == before
    with pytest.raises(ZeroDivisionError), compilation_cache("/chosen"):
        _ = 1 / 0
    assert settings() == before


@pytest.mark.parametrize("own", [None, ""])
def test_true_is_our_folder_unless_the_process_has_one(settings, monkeypatch, tmp_path, own):
    monkeypatch.setenv("JINA_JAX_CACHE", str(tmp_path))
    jax.config.update(SETTINGS[0], own)
    with compilation_cache(True):
        assert settings() == [str(tmp_path / "programs"), 0.0, -1]
    jax.config.update(SETTINGS[0], "/process's own")
    before = settings()
    with compilation_cache(True):
        assert settings() == before
    assert settings() == before


def test_false_changes_nothing(settings):
    before = settings()
    with compilation_cache(False):
        assert settings() == before


def test_blocks_that_overlap_share_the_first_folder(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("JINA_JAX_CACHE", str(tmp_path))
    jax.config.update(SETTINGS[0], None)
    before = settings()
    first, second, third = (compilation_cache(name) for name in ("/first", "/second", True))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    third.__enter__()
    second.__exit__(None, None, None)
    assert settings() == ["/first", 0.0, -1]
    third.__exit__(None, None, None)
    assert settings() == before


def test_only_programs_of_the_block_are_kept(settings, compile_new, tmp_path):
    for name, value in zip(SETTINGS, (None, 0.0, -1), strict=True):
        jax.config.update(name, value)
    compile_new(3)
    with compilation_cache(tmp_path):
        compile_new(5)
    kept = programs(tmp_path)
    assert kept
    compile_new(7)
    assert programs(tmp_path) == kept


def test_the_cache_of_the_process_is_used_as_before(settings, compile_new, tmp_path):
    own, ours = tmp_path / "own", tmp_path / "ours"
    for name, value in zip(SETTINGS, (str(own), 0.0, -1), strict=True):
        jax.config.update(name, value)
    reset_cache()
    compile_new(3)
    before = programs(own)
    assert before
    with compilation_cache(ours):
        compile_new(5)
    assert programs(ours)
    assert programs(own) == before
    compile_new(7)
    assert programs(own) > before
    with compilation_cache(True):
        compile_new(9)
    assert len(programs(own)) > len(before) + 1


def test_several_threads_compile_at_once(settings, compile_new, tmp_path):
    jax.config.update(SETTINGS[0], None)
    before = settings()

    def work(number):
        with compilation_cache(tmp_path):
            compile_new(number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(10, 30)))
    assert settings() == before
    assert programs(tmp_path)


def test_flags_of_numpy_are_flags(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("JINA_JAX_CACHE", str(tmp_path))
    before = settings()
    with compilation_cache(np.bool_(False)):
        assert settings() == before
    with compilation_cache(np.bool_(True)):
        assert settings() != before


@pytest.mark.parametrize("wrong", [None, 3, 0, 1, b"/bytes", ["/a"], "", __file__])
def test_another_type_is_refused(settings, wrong):
    before = settings()
    message = r"compilation_cache=.*: expected a directory,"
    with pytest.raises(ValueError, match=message), compilation_cache(wrong):
        pass
    assert settings() == before


def test_a_model_with_a_wrong_setting_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match="compilation_cache=3"):
        JinaEmbeddings.from_pretrained(write_tiny(tmp_path), compilation_cache=3)


# In a process of its own, whose memory has no program.
CACHED = """
import sys
import jax
import jax.numpy as jnp
from jina_jax.cache import compilation_cache

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
with compilation_cache(sys.argv[1]):
    jax.jit(lambda x: x * 2)(jnp.ones(3))
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


def test_programs_of_a_block_are_found_by_the_next_process(tmp_path):
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", CACHED, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(int(done.stdout))
    assert found[0] == 0 < found[1]


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
    """Encode a text in a new process: (setting, our folder) → programs found in the cache."""
    directory = write_tiny(tmp_path_factory.mktemp("model"))

    def run(setting, folder):
        environment = {**os.environ, "JINA_JAX_CACHE": str(folder), "JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        command = [sys.executable, "-c", ENCODE, str(directory), str(setting)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "cpu_aot_loader" not in done.stderr  # XLA's alarms about programs from the cache
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


# A process with a cache of its own reads one program from it, before or behind a block of ours.
OWN = """
import sys
import jax
import jax.numpy as jnp
from jina_jax.cache import compilation_cache

if sys.argv[2] == "behind":
    with compilation_cache(True):
        pass
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.jit(lambda x: x * 2)(jnp.ones(3))
"""


def test_alarms_about_programs_of_others_are_left_alone(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = []
    for when in ("before", "before", "behind"):
        command = [sys.executable, "-c", OWN, str(tmp_path), when]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(done.stderr.count("cpu_aot_loader"))
    assert found[1] == found[2]
