"""infinity beside our server: the same checkpoint, texts and clients.

Needs an environment with ``infinity-emb[server,torch]``, whose interpreter ``--infinity`` names.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import common

_SECONDS_TO_START = 180
# A plain XLM-R of full width, in both a layout and a size that infinity loads as it is.
_WRITE = """
import sys, json, pathlib, torch
from transformers import XLMRobertaConfig, XLMRobertaModel
torch.manual_seed(0)
directory, layers = pathlib.Path(sys.argv[1]), int(sys.argv[2])
config = XLMRobertaConfig(
    vocab_size=250002, hidden_size=1024, num_hidden_layers=layers, num_attention_heads=16,
    intermediate_size=4096, max_position_embeddings=514, type_vocab_size=1,
)
XLMRobertaModel(config).eval().save_pretrained(directory)
(directory / "1_Pooling").mkdir()
pooling = {"word_embedding_dimension": 1024, "pooling_mode_mean_tokens": True}
(directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
kinds = ("Transformer", "Pooling", "Normalize")
modules = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (kind, path) in enumerate(zip(kinds, ("", "1_Pooling", "2_Normalize")))
]
(directory / "2_Normalize").mkdir()
(directory / "modules.json").write_text(json.dumps(modules))
settings = {"max_seq_length": 512, "do_lower_case": False}
(directory / "sentence_bert_config.json").write_text(json.dumps(settings))
tokenizer = {"tokenizer_class": "XLMRobertaTokenizerFast", "model_max_length": 512}
(directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
"""


def write(python: Path, directory: Path, layers: int) -> None:
    """Write a random checkpoint in float32."""
    directory.mkdir(parents=True)
    subprocess.run([python, "-c", _WRITE, directory, str(layers)], check=True)
    shutil.copy(common.SHARED / "xlm-roberta" / "tokenizer.json", directory)


@contextlib.contextmanager
def infinity(python: Path, directory: Path) -> Iterator[str]:
    """Serve a checkpoint with infinity; yield the address of its embeddings."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = ["--model-id", directory, "--served-model-name", "m", "--port", str(port)]
    options += ["--engine", "torch", "--device", "cpu", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [python.parent / "infinity_emb", "v2", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen) -> None:
    for _ in range(_SECONDS_TO_START):
        time.sleep(1)
        if process.poll() is not None:
            sys.exit(f"infinity ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health") as reply:
            if reply.status == 200:
                return
    sys.exit("infinity did not start")
