"""Inputs of bulk jobs: the files that paths, URLs and patterns name."""

import os
import uuid

import loopback_store
import pytest

from jina_jax.bulk.inputs import InputFile, describe, format_of, list_inputs
from jina_jax.bulk.stores import Store

NAMES = (
    *("a.parquet", "b/c.jsonl.gz", "b/d/e.CSV", "b/f.tsv.zst", "_x/g.csv", "b/_h.csv", ".i/j.csv"),
    "b/.k.csv",
)
SEEN = ["a.parquet", "b/c.jsonl.gz", "b/d/e.CSV", "b/f.tsv.zst"]


@pytest.fixture(params=["local", "memory", "loop"])
def corpus(request, tmp_path):
    """A directory or prefix with files."""
    name = uuid.uuid4().hex
    with loopback_store.running():
        url = str(tmp_path / name) if request.param == "local" else f"{request.param}://{name}"
        for own in NAMES:
            Store(url).put(own, b"12345")
        yield url


def below(corpus, *patterns):
    """List files by patterns below a corpus, as names in it."""
    found = list_inputs([f"{corpus}/{pattern}" for pattern in patterns])
    assert found == sorted(found)
    assert all(file.size == 5 and file.version for file in found)
    assert [describe(file.url) for file in found] == found
    return [file.url.removeprefix(corpus + "/") for file in found]


def test_directories_and_patterns(corpus):
    assert [file.url.removeprefix(corpus + "/") for file in list_inputs([corpus])] == SEEN
    assert below(corpus, "") == SEEN
    assert below(corpus, "*") == SEEN
    assert below(corpus, "b") == SEEN[1:]
    assert below(corpus, "*.parquet") == ["a.parquet"]
    assert below(corpus, "**/*.jsonl.gz", "a.parquet") == SEEN[:2]
    assert below(corpus, "b/*.*") == ["b/c.jsonl.gz", "b/f.tsv.zst"]
    assert below(corpus, "b/[cf].*") == ["b/c.jsonl.gz", "b/f.tsv.zst"]
    assert below(corpus, "b", "b/c.jsonl.gz", "*", "b/d") == SEEN


def test_hidden_files_that_are_named(corpus):
    assert below(corpus, "_x/g.csv", "b/.k.csv") == ["_x/g.csv", "b/.k.csv"]
    assert below(corpus, "_x") == ["_x/g.csv"]
    assert below(corpus, "b/_*.csv") == ["b/_h.csv"]
    assert below(corpus, "_x/*.csv") == ["_x/g.csv"]


def test_nothing_found(corpus):
    for pattern in ("none", "*.arrow", "b/none/**/*.csv", "b/*/*.csv/x.csv"):
        with pytest.raises(FileNotFoundError, match="expected files, got none"):
            list_inputs([corpus, f"{corpus}/{pattern}"])
    with pytest.raises(FileNotFoundError, match="gone"):
        describe(f"{corpus}/gone.csv")


def test_unknown_suffixes(corpus):
    Store(corpus).put("b/README.md", b"x")
    for pattern in ("", "/b/README.md", "/b/*"):
        with pytest.raises(ValueError, match=r"README.md: unknown .* ends in \.parquet, \.jsonl"):
            list_inputs([corpus + pattern])


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.zst", "a.arrow.zst", "parquet", "a.txt"])
def test_no_format(name):
    with pytest.raises(ValueError, match=name):
        format_of(name)


def test_a_change_is_seen(corpus):
    before = describe(f"{corpus}/a.parquet")
    assert describe(f"{corpus}/a.parquet") == before
    Store(corpus).put("a.parquet", b"54321")
    after = describe(f"{corpus}/a.parquet")
    assert (after.size, after.url) == (before.size, before.url)
    assert after.version != before.version


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a[1].csv").write_bytes(b"x")
    path = "in/a[1].csv"
    expected = [InputFile(f"{tmp_path}/{path}", 1, str(os.stat(path).st_mtime_ns))]
    assert list_inputs([path]) == expected
    assert list_inputs(["in", f"{tmp_path}/in", "./in/../in/*.csv", path]) == expected
    assert list_inputs([f"file://{tmp_path}/in"])[0].url == f"{tmp_path}/in/a[1].csv"


def test_names_that_are_not_unicode_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/b\xff.csv", "wb"):
        pass
    with pytest.raises(ValueError, match=r"input '.*/b\\udcff\.csv': expected Unicode text, got"):
        list_inputs([str(tmp_path)])


def test_links_and_special_files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_bytes(b"x")
    (folder / "again").symlink_to(folder)
    assert [file.url for file in list_inputs([str(folder)])] == [f"{folder}/a.csv"]
    (folder / "lost.csv").symlink_to("nothing")
    with pytest.raises(FileNotFoundError, match=r"lost\.csv"):
        list_inputs([str(folder)])
    (folder / "lost.csv").unlink()
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(ValueError, match=r"pipe\.csv: expected a regular file"):
        list_inputs([str(folder)])
