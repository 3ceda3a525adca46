"""Common ways to run this network on a CPU, behind one interface.

``PEERS[name](directory)`` loads a checkpoint in transformers' layout (the base model, without
adapters) and returns a ``Peer``; ``Missing`` has the reason why a route is unavailable. Packages
are imported only by the factories, and all routes can share one process. Every route uses all
cores. Converted graphs (ONNX, OpenVINO) are kept in folders beside the checkpoint.

Compilers and kernel libraries initialise at the first call of a new shape: time the second.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

MAX_LENGTH = 8192
PACKAGES = (
    *("torch", "transformers", "tokenizers", "sentence-transformers"),
    *("onnxruntime", "onnx", "onnxscript", "openvino"),
)

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
Encode = Callable[[list[str], int], np.ndarray]


class Missing(Exception):  # noqa: N818  (a reason to skip, not an error)
    """A route is unavailable; the message is what this machine lacks."""


@dataclass(frozen=True)
class Peer:
    """A route: its name, the network alone, and the loop from texts to vectors.

    Attributes:
        name: the key in ``PEERS``.
        forward: ``(input_ids, attention_mask)``, (B, T) int64, to mean-pooled vectors, (B, D)
            float32, not normalised.
        encode: ``(texts, batch_size)`` to normalised vectors, (n, D) float32, in the texts' order.
    """

    name: str
    forward: Forward
    encode: Encode


def versions() -> dict[str, str]:
    """Return the version of every installed package that a route may use."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def from_transformers(name: str, dtype: str, compiled: bool, directory: Path) -> Peer:
    """Load JinaEmbeddingsV3Model; ``compiled`` applies torch.compile with its defaults.

    The compiled route compiles four times until all shapes are covered: at the first call, at the
    first other length, at the first other number of texts, and for a single text.
    """
    torch = needs("torch")
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        raise Missing("torch.compile needs a C++ compiler: no g++ found, and CXX names none")
    model = load_model(directory, dtype)
    run = torch.compile(model) if compiled else model

    @torch.inference_mode()
    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        mask = torch.from_numpy(attention_mask)
        hidden = run(torch.from_numpy(input_ids), attention_mask=mask).last_hidden_state
        pooled = (hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return pooled.numpy()

    return Peer(name, forward, encoder(forward, directory))


def from_sentence_transformers(name: str, dtype: str, directory: Path) -> Peer:
    """Load a SentenceTransformer of Transformer and mean Pooling, and use its own loop."""
    torch, library = needs("torch"), needs("sentence_transformers")
    modules = needs("sentence_transformers.sentence_transformer.modules")
    needs_jina()
    torch.set_num_threads(os.cpu_count())
    settings = {"dtype": getattr(torch, dtype)}
    body = modules.Transformer(str(directory), model_kwargs=settings, max_seq_length=MAX_LENGTH)
    pooling = modules.Pooling(body.get_embedding_dimension(), "mean")
    model = library.SentenceTransformer(modules=[body, pooling], device="cpu").eval()

    @torch.inference_mode()
    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        features = model({key: torch.from_numpy(value) for key, value in batch.items()})
        return features["sentence_embedding"].float().numpy()

    def encode(texts: list[str], batch_size: int) -> np.ndarray:
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        return model.encode(texts, batch_size=batch_size, **options).astype(np.float32)

    return Peer(name, forward, encode)


def from_onnxruntime(name: str, int8: bool, directory: Path) -> Peer:
    """Open the exported graph in ONNX Runtime, with all of its graph optimisations."""
    runtime = needs("onnxruntime")
    path = (quantized_onnx if int8 else exported_onnx)(directory)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    # Otherwise its threads spin for a while after a run, which slows the next measurement.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        return mean_pool(session.run(None, feed)[0], attention_mask)

    return Peer(name, forward, encoder(forward, directory))


def from_openvino(name: str, precision: str, directory: Path) -> Peer:
    """Compile the converted graph with OpenVINO; ``precision`` is "f32" or "bf16"."""
    openvino = needs("openvino")
    core = openvino.Core()
    if precision.upper() not in {*core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"), "F32"}:
        raise Missing(f"OpenVINO does not offer {precision} on this CPU")
    graph = core.read_model(converted_openvino(directory))
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_NUM_THREADS"] = os.cpu_count()
    model = core.compile_model(graph, "CPU", settings)
    active = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if active != precision:
        raise Missing(f"OpenVINO was asked for {precision} and took {active}")

    def forward(input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        hidden = model({"input_ids": input_ids, "attention_mask": attention_mask})[0]
        return mean_pool(hidden, attention_mask)

    return Peer(name, forward, encoder(forward, directory))


PEERS: dict[str, Callable[[Path], Peer]] = {
    name: partial(factory, name, *options)
    for name, factory, *options in (
        ("transformers-float32", from_transformers, "float32", False),
        ("transformers-bfloat16", from_transformers, "bfloat16", False),
        ("transformers-bfloat16-compile", from_transformers, "bfloat16", True),
        ("sentence-transformers-float32", from_sentence_transformers, "float32"),
        ("sentence-transformers-bfloat16", from_sentence_transformers, "bfloat16"),
        ("onnxruntime-float32", from_onnxruntime, False),
        ("onnxruntime-int8", from_onnxruntime, True),
        ("openvino-float32", from_openvino, "f32"),
        ("openvino-bfloat16", from_openvino, "bf16"),
    )
}


def encoder(forward: Forward, directory: Path) -> Encode:
    """Return the loop that users write around a network: longest first, padded by batch."""
    library = needs("transformers")
    file = str(directory / "tokenizer.json")
    tokenizer = library.PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<pad>")
    options = {"padding": True, "truncation": True, "max_length": MAX_LENGTH}

    def encode(texts: list[str], batch_size: int) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        pooled = []
        for start in range(0, len(order), batch_size):
            chosen = [texts[i] for i in order[start : start + batch_size]]
            batch = tokenizer(chosen, return_tensors="np", **options)
            pooled.append(forward(batch["input_ids"], batch["attention_mask"]))
        vectors = np.concatenate(pooled)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors[np.argsort(order)]

    return encode


def mean_pool(hidden: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
    """Average the hidden states, (B, T, D), of the real tokens."""
    mask = attention_mask.astype(np.float32)
    # Not a matmul: NumPy's BLAS threads would spin during the next peer's time.
    return np.einsum("bt,btd->bd", mask, hidden) / mask.sum(1, keepdims=True)


def exported_onnx(directory: Path) -> Path:
    """Export float32 ONNX whose attention, rotary embedding and GELU are single nodes.

    That needs opset 23; older ones expand attention, which is slower for long texts.
    """

    def write(folder: Path) -> None:
        torch, _, _ = map(needs, ("torch", "onnx", "onnxscript"))
        names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["hidden"]}
        axes = {0: "batch", 1: "length"}
        shapes = {"input_ids": axes, "attention_mask": axes}
        module, example, path = traced(directory), tuple(examples().values()), folder / "model.onnx"
        options = {"dynamic_shapes": shapes, "opset_version": 23, "verbose": False, **names}
        with torch.no_grad(), quietly():
            torch.onnx.export(module, example, path, dynamo=True, **options)

    return cached(directory, "onnx-float32", write) / "model.onnx"


def quantized_onnx(directory: Path) -> Path:
    """Quantise the exported graph: int8 weights by output channel, uint8 activations by tensor.

    These are the settings of Optimum and Sentence Transformers for AVX512-VNNI, except that the
    embedding stays float32. All six matmuls of a layer become integer ones, attention does not.
    """
    quantization, source = needs("onnxruntime.quantization"), exported_onnx(directory)

    def write(folder: Path) -> None:
        options = {"op_types_to_quantize": ["MatMul"], "use_external_data_format": True}
        options |= {"weight_type": quantization.QuantType.QInt8, "per_channel": True}
        with quietly():
            quantization.quantize_dynamic(source, folder / "model.onnx", **options)

    return cached(directory, "onnx-int8", write) / "model.onnx"


def converted_openvino(directory: Path) -> Path:
    """Convert the PyTorch module, with attention as one node, to a float32 graph."""
    openvino = needs("openvino")

    def write(folder: Path) -> None:
        with quietly():
            graph = openvino.convert_model(traced(directory), example_input=examples())
        openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)

    return cached(directory, "openvino", write) / "model.xml"


def cached(directory: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Fill a folder by ``write`` unless it is newer than the checkpoint."""
    folder = directory / name
    newest = max(file.stat().st_mtime for file in directory.glob("*.safetensors"))
    if folder.exists() and folder.stat().st_mtime >= newest:
        return folder
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / name
        made.mkdir()
        write(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def load_model(directory: Path, dtype: str) -> Any:
    """Load the network for inference, on all cores."""
    torch, library = needs("torch"), needs_jina()
    torch.set_num_threads(os.cpu_count())
    return library.AutoModel.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


def traced(directory: Path) -> Any:
    """Return the float32 network as a module from two tensors to one, for exporters.

    Position ids have one row per text: ONNX Runtime's RotaryEmbedding does not broadcast them.
    """
    torch = needs("torch")

    class Hidden(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            positions = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
            return self.model(**inputs, position_ids=positions).last_hidden_state

    # A new module is in training mode, which exporters apply to the inner network: dropout.
    return Hidden(load_model(directory, "float32")).eval()


def examples() -> dict[str, Any]:
    """Return a padded batch for tracing, by name."""
    torch = needs("torch")
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return {"input_ids": torch.full((2, 8), 5), "attention_mask": mask}


def needs_jina() -> Any:
    """Import a transformers that has the architecture."""
    library = needs("transformers")
    if not hasattr(library, "JinaEmbeddingsV3Model"):
        raise Missing(f"transformers {library.__version__} has no JinaEmbeddingsV3Model: needs 5.4")
    return library


def needs(module: str) -> Any:
    """Import a module, or raise ``Missing``."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise Missing(f"{module} cannot be imported: {error}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Hide warnings and logs of exporters about tracing."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
