"""Processes of the other routes of ``gpu.py``: transformers and ONNX Runtime.

Each class answers the questions of ``common.serve``. Weights are random; inputs and outputs are on
the device, and there is no mask.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peers
from common import per_call
from peers import Missing, needs

TORCH = ("torch", "torch compiled")


class Torch:
    """JinaEmbeddingsV3Model of transformers, with sdpa."""

    def __init__(self, settings: SimpleNamespace):
        self._torch = torch = needs("torch")
        self._settings = settings
        self._device = "cpu" if settings.dry_run else "cuda"
        if self._device == "cuda" and not torch.cuda.is_available():
            raise Missing(f"torch {torch.__version__} finds no CUDA device")

    @functools.cached_property
    def model(self):
        """The network with random weights on the device."""
        library, torch = peers.needs_jina(), self._torch
        config = library.JinaEmbeddingsV3Config(num_hidden_layers=self._settings.layers)
        options = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        with torch.device(self._device):
            return library.AutoModel.from_config(config, **options).eval()

    def matmul(self, size: int, seconds: float) -> float:
        """Return TFLOP/s."""
        torch = self._torch
        left, right = torch.randn(2, size, size, device=self._device).to(torch.bfloat16)

        def run(count: int) -> None:
            for _ in range(count):
                torch.matmul(left, right)
            self._wait()

        return 2 * size**3 / per_call(run, seconds) / 1e12

    def warmup(self, length: int, tokens: int) -> float:
        """Compile for a length, and return the seconds that took."""
        start = time.perf_counter()
        self.rate(length, tokens, 0.0)
        return time.perf_counter() - start

    def rate(self, length: int, tokens: int, seconds: float) -> float:
        """Return tokens per second of full rows."""
        torch = self._torch
        rows = max(1, tokens // length)
        ids = torch.randint(4, self.model.config.vocab_size, (rows, length), device=self._device)
        step = self._step(length)

        @torch.inference_mode()
        def run(count: int) -> None:
            for _ in range(count):
                step(ids)
            self._wait()

        return rows * length / per_call(run, seconds)

    def _step(self, length: int) -> Callable[[Any], Any]:
        """Return the function from ids to pooled vectors."""
        return lambda ids: self.model(ids).last_hidden_state.float().mean(1)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class CompiledTorch(Torch):
    """The same under torch.compile, for one shape at a time."""

    _compiled: tuple[int, Callable[[Any], Any]] = (0, lambda ids: ids)

    def _step(self, length: int) -> Callable[[Any], Any]:
        if self._compiled[0] != length:
            self._torch._dynamo.reset()
            step = super()._step(length)
            mode = self._settings.compile_mode
            self._compiled = length, self._torch.compile(step, dynamic=False, mode=mode)
        return self._compiled[1]


class Onnx(Torch):
    """The graph exported by torch, in float16 (float32 on a CPU), in ONNX Runtime."""

    @functools.cached_property
    def session(self):
        runtime = needs("onnxruntime")
        provider = "CPUExecutionProvider" if self._device == "cpu" else "CUDAExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise Missing(f"onnxruntime {runtime.__version__} has no {provider}")
        with tempfile.TemporaryDirectory() as scratch:
            self.model.float().cpu().save_pretrained(scratch)
            export = peers.exported_onnx if self._device == "cpu" else exported_half
            path = export(Path(scratch))
            session = runtime.InferenceSession(path, providers=[provider])
        if session.get_providers()[0] != provider:
            raise Missing(f"onnxruntime {runtime.__version__} could not start {provider}")
        return session

    def rate(self, length: int, tokens: int, seconds: float) -> float:
        """Return tokens per second of full rows; the hidden states remain on the device."""
        rows = max(1, tokens // length)
        ids = np.random.default_rng(0).integers(4, 250002, (rows, length))
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones_like(ids))
        binding.bind_output("hidden", self._device)

        def run(count: int) -> None:
            for _ in range(count):
                self.session.run_with_iobinding(binding)

        return rows * length / per_call(run, seconds)


def exported_half(directory: Path) -> Path:
    """Export as ``peers.exported_onnx`` does, in float16, which CUDA kernels have."""
    torch = needs("torch")
    whole = peers.traced
    peers.traced = lambda folder: whole(folder).to(torch.float16)
    try:
        return peers.exported_onnx(directory)
    finally:
        peers.traced = whole


PEERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "torch": Torch,
    "torch compiled": CompiledTorch,
    "onnxruntime": Onnx,
}
