"""From a name to a directory, against a cache made by hand; nothing here leaves the machine."""

import http.server
import socket
import threading
from pathlib import Path

import huggingface_hub
import pytest
from foreign import published_tensors, write
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from published import SMALL, published_config

from jina_jax.checkpoints import hub
from jina_jax.checkpoints.hub import PACKAGED, fetch
from jina_jax.checkpoints.native import WEIGHTS_FILE
from jina_jax.convert import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_cache(cache: Path, name: str, files: list[str], revision: str = "main") -> Path:
    """Lay out a snapshot as huggingface_hub does."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text("{}")
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text(COMMIT)
    return snapshot


def test_a_directory_is_itself(tmp_path):
    assert fetch(tmp_path) == tmp_path
    assert fetch(str(tmp_path)) == tmp_path


def test_tiny_is_the_model_in_the_package_but_a_directory_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fetch("tiny") == fetch(Path("tiny")) == PACKAGED
    (tmp_path / "tiny").write_text("a file")
    assert fetch("tiny") == PACKAGED
    (tmp_path / "tiny").unlink()
    (tmp_path / "tiny").mkdir()
    assert fetch("tiny") == Path("tiny")


@pytest.mark.parametrize("name", [".", "tiny"])
def test_a_directory_has_no_revisions(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="revision='v1': expected None for the directory"):
        fetch(name, revision="v1")


def test_a_cached_model_is_found(tmp_path):
    snapshot = make_cache(tmp_path, "jinaai/model", ["config.json", "model.safetensors"])
    assert fetch("jinaai/model", cache_dir=tmp_path, local_files_only=True) == snapshot


def test_a_cached_revision_is_found(tmp_path, monkeypatch):
    snapshot = make_cache(tmp_path, "jinaai/model", ["pytorch_model.bin"], revision="v1")
    found = fetch("jinaai/model", revision="v1", cache_dir=tmp_path, local_files_only=True)
    assert found == snapshot
    with pytest.raises(FileNotFoundError) as error:
        fetch("jinaai/model", revision="v2", cache_dir=tmp_path, local_files_only=True)
    assert str(error.value) == (
        f"name_or_path='jinaai/model': no such directory, and not in the Hub's cache ({tmp_path}); "
        "unset HF_HUB_OFFLINE to download it"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(FileNotFoundError, match="; without local_files_only=True it is downloaded"):
        fetch("jinaai/model", revision="v2", cache_dir=tmp_path, local_files_only=True)


def test_a_fetched_checkpoint_opens(tmp_path):
    snapshot = make_cache(tmp_path, "jinaai/model", ["config.json"])
    write(snapshot, published_config(SMALL), published_tensors())
    found = fetch("jinaai/model", cache_dir=tmp_path, local_files_only=True)
    assert open_checkpoint(found).layout == "published"


@pytest.mark.parametrize("name", ["jinaai/nothing", "runs/mistyped", "mistyped"])
def test_a_name_of_either_kind_is_neither_a_directory_nor_on_a_hub_out_of_reach(monkeypatch, name):
    def lost(*_, **__):
        raise LocalEntryNotFoundError("Got: ConnectError")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_failure", lambda *_: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lost)
    message = rf"name_or_path='{name}': no such directory, .*the Hub could not be reached"
    with pytest.raises(FileNotFoundError, match=message):
        fetch(name)


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/dir", "~/model", "a/b/c", "../model", ".", "models/x/", "a b"]
)
def test_a_missing_directory_is_not_looked_for_on_the_hub(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    if name == ".":
        (tmp_path / "file").write_text("x")
        name = "file"
    with pytest.raises(
        FileNotFoundError, match=rf"name_or_path={name!r}: no such directory, and not"
    ):
        fetch(name)


class Hub:
    """A stand-in for ``snapshot_download`` that holds some files and records what it was asked."""

    def __init__(self, directory: Path, files: list[str]):
        self.directory, self.files, self.calls = directory, files, []

    def __call__(self, name, *, allow_patterns, **options):
        self.calls.append((name, options))
        for file in filter_repo_objects(self.files, allow_patterns=allow_patterns):
            (self.directory / file).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / file).touch()
        return str(self.directory)

    def downloaded(self) -> list[str]:
        paths = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.directory)) for path in paths)


SMALL_FILES = ["1_Pooling/config.json", "config.json", "modules.json", "tokenizer.json"]
# What the repository holds, what of it is fetched besides the small files, and what is not.
REPOSITORIES = {
    "published": (
        ["model.safetensors"],
        ["pytorch_model.bin", "onnx/model.onnx", "onnx/model.onnx_data", "custom_st.py", "a.png"],
    ),
    "native": ([WEIGHTS_FILE], ["model.safetensors", "pytorch_model.bin"]),
    "sharded": (
        ["model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"],
        ["pytorch_model.bin"],
    ),
    "torch only": (["pytorch_model.bin"], ["tf_model.h5", "flax_model.msgpack"]),
    "transformers": (
        ["model.safetensors"]
        + [f"separation/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")],
        ["openvino/openvino_model.bin", "separation/README.md"],
    ),
    "adapter alone": (
        ["adapter_config.json", "adapter_model.safetensors", "sentencepiece.bpe.model"],
        ["checkpoint-500/optimizer.pt", "training_args.bin"],
    ),
}


@pytest.mark.parametrize("case", REPOSITORIES)
def test_only_what_is_needed_is_downloaded(monkeypatch, tmp_path, case):
    wanted, others = REPOSITORIES[case]
    stand_in = Hub(tmp_path / "snapshot", SMALL_FILES + wanted + others)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    found = fetch("jinaai/model", revision="v1", token="secret", cache_dir=tmp_path)
    assert found == tmp_path / "snapshot"
    assert stand_in.downloaded() == sorted(SMALL_FILES + wanted)
    options = {"revision": "v1", "token": "secret", "cache_dir": tmp_path}
    assert all(
        call == ("jinaai/model", {**options, "local_files_only": False}) for call in stand_in.calls
    )


@pytest.fixture
def silent_hub(monkeypatch):
    """A server as the Hub that accepts connections and never answers; it may be asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield server


def connections(server: socket.socket) -> int:
    """Count the connections that were made to a server."""
    server.settimeout(0.1)
    for count in range(100):
        try:
            server.accept()[0].close()
        except TimeoutError:
            return count
    raise AssertionError("more than 100")


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
def test_a_hub_that_never_answers_is_asked_once(silent_hub, tmp_path, weights):
    snapshot = make_cache(tmp_path, "jinaai/model", ["config.json", weights])
    message = (
        r"jinaai/model: the Hub could not be reached \(no answer within 0.3 s\); using the copy"
    )
    with pytest.warns(UserWarning, match=message):
        assert fetch("jinaai/model", cache_dir=tmp_path) == snapshot
    assert connections(silent_hub) == 1


def test_a_model_that_is_nowhere(silent_hub, tmp_path):
    message = rf"jinaai/no.*not in the Hub's cache \({tmp_path}\); the Hub .* \(no answer within"
    with pytest.raises(FileNotFoundError, match=message):
        fetch("jinaai/no", cache_dir=tmp_path)
    assert connections(silent_hub) == 1


def test_a_hub_that_refuses_connections(silent_hub, tmp_path):
    silent_hub.close()
    snapshot = make_cache(tmp_path, "jinaai/model", ["config.json"])
    with pytest.warns(UserWarning, match=r"could not be reached \(.*refused.*\); using the copy"):
        assert fetch("jinaai/model", cache_dir=tmp_path) == snapshot


class Answers(http.server.BaseHTTPRequestHandler):
    """A server as the Hub; ``kind`` says how it misbehaves."""

    kind = ""

    def log_message(self, *_):
        pass

    def do_GET(self):
        body = b"[1]" if self.kind == "list" else b"<html>Log in</html>"
        self.send_response(500 if self.kind == "500" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


MISBEHAVIOURS = {"500": "it answers 500", "page": "is not the Hub", "list": "is not the Hub"}


@pytest.fixture
def broken_hub(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", MISBEHAVIOURS)
def test_a_hub_that_answers_nonsense(broken_hub, monkeypatch, tmp_path, kind):
    monkeypatch.setattr(Answers, "kind", kind)
    with pytest.raises(FileNotFoundError, match=f"'jinaai/model': .*{MISBEHAVIOURS[kind]}"):
        fetch("jinaai/model", cache_dir=tmp_path)
    snapshot = make_cache(tmp_path, "jinaai/model", ["config.json", "model.safetensors"])
    with pytest.warns(UserWarning, match=f"{MISBEHAVIOURS[kind]}.*; using the copy"):
        assert fetch("jinaai/model", cache_dir=tmp_path) == snapshot


def test_a_download_that_breaks_off(monkeypatch):
    class RemoteProtocolError(Exception):
        __module__ = "httpx"

    def half(*_, **__):
        raise RemoteProtocolError("received 100 bytes, expected 2000")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", half)
    message = "'jinaai/model': the download was not finished .received 100 bytes"
    with pytest.raises(ConnectionError, match=message):
        fetch("jinaai/model")


def test_a_repository_without_weights_comes_back_as_it_is(monkeypatch, tmp_path):
    """``open_checkpoint`` then says which files it expected."""
    stand_in = Hub(tmp_path / "snapshot", SMALL_FILES)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    assert fetch("jinaai/model") == tmp_path / "snapshot"


@pytest.mark.parametrize("name", ["", 3, b"tiny"])
def test_a_name_that_is_empty_or_no_string_is_refused(name):
    message = f"name_or_path={name!r}: expected a directory or a Hub id"
    with pytest.raises(ValueError, match=message):
        fetch(name)
