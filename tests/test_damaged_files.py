"""Files that are not what their names promise: named for what they are, or read."""

import json
import os

import pytest
from foreign import write, xlm_roberta_config, xlm_roberta_tensors
from published import SMALL

from jina_jax.convert import open_checkpoint
from jina_jax.files import read_json
from jina_jax.text.tokenizer import Tokenizer

SIZE = {**SMALL, "layers": 1, "positions": 34}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 1144685320\n"
KINDS = {
    "pointer": "a Git LFS pointer, not the file itself: run git lfs pull",
    "link": "a link to nothing .*nowhere",
    "empty": "an empty file",
    "page": "a web page, not the file itself",
}


@pytest.fixture
def directory(tmp_path):
    return write(tmp_path, xlm_roberta_config(SIZE), xlm_roberta_tensors(SIZE, pooler=False))


def damage(path, kind):
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to("nowhere")
    else:
        content = {"pointer": POINTER, "empty": "", "page": "\n<!DOCTYPE html><html>"}[kind]
        path.write_text(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "adapter_config.json"])
def test_damaged_files_of_a_checkpoint_are_named(directory, name, kind):
    damage(directory / name, kind)
    with pytest.raises(ValueError, match=rf"{name}: .*{KINDS[kind]}"):
        open_checkpoint(directory)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "flax_model.safetensors"])
def test_damaged_files_of_other_kinds_are_named(directory, name, kind):
    (directory / "model.safetensors").unlink()
    damage(directory / name, kind)
    if name.startswith("flax"):
        write_native_config(directory)
    with pytest.raises(ValueError, match=rf"{name}: .*{KINDS[kind]}"):
        open_checkpoint(directory)


def write_native_config(directory):
    tensors = xlm_roberta_tensors(SIZE, pooler=False)
    other = write(directory / "other", xlm_roberta_config(SIZE), tensors)
    config = open_checkpoint(other).config
    (directory / "config.json").write_text(json.dumps(config.to_dict()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["tokenizer.json", "sentencepiece.bpe.model"])
def test_damaged_tokenizers_are_named(tmp_path, name, kind):
    damage(tmp_path / name, kind)
    with pytest.raises(ValueError, match=rf"{name}: {KINDS[kind]}"):
        Tokenizer.from_file(tmp_path / name)


def test_a_tokenizer_that_is_missing_is_named_with_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a tokenizer\.json or a sentencepiece"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(FileNotFoundError, match=r"vocab\.txt is a WordPiece vocabulary"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (4, "its header reaches beyond its end"),
        (100, "its header reaches beyond its end"),
        (-1, r"truncated: \d+ of \d+ bytes; download it again"),
    ],
)
def test_half_a_download_is_named(directory, size, message):
    path = directory / "model.safetensors"
    os.truncate(path, size if size > 0 else path.stat().st_size + size)
    with pytest.raises(ValueError, match=rf"model\.safetensors: not a valid .*{message}"):
        open_checkpoint(directory)


@pytest.mark.parametrize("folder", ["", ".cache/huggingface/download"])
def test_downloads_that_did_not_finish_are_named(directory, folder):
    path = directory / folder / "model.safetensors.ab12.incomplete"
    path.parent.mkdir(parents=True, exist_ok=True)
    (directory / "model.safetensors").rename(path)
    message = r"found downloads that did not finish: model\.safetensors\.ab12\.incomplete"
    with pytest.raises(ValueError, match=message):
        open_checkpoint(directory)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_json_of_an_editor_on_another_system_is_read(tmp_path, encoding, newline):
    text = json.dumps({"prompt": "Frage: 検索"}, indent=1, ensure_ascii=False)
    (tmp_path / "x.json").write_bytes(text.replace("\n", newline).encode(encoding))
    assert read_json(tmp_path / "x.json") == {"prompt": "Frage: 検索"}
