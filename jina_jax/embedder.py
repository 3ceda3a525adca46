"""JinaEmbeddings: texts in, vectors out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import jax
import numpy as np
from jax.sharding import Mesh

from jina_jax import cache
from jina_jax.checkpoints.hub import HubOptions, fetch
from jina_jax.checkpoints.load import to_state
from jina_jax.checks import check_flags
from jina_jax.convert import open_checkpoint
from jina_jax.runtime import arguments, forks, quantizing
from jina_jax.runtime.batching import Batching
from jina_jax.runtime.model import Model
from jina_jax.runtime.results import (
    ChunkOptions,
    Chunks,
    EncodeInfo,
    EncodeOptions,
    FormOptions,
    finish,
    warn_dropped,
    warn_user,
)
from jina_jax.runtime.sharding import check_mesh, placer, usual_mesh
from jina_jax.runtime.steps import Result
from jina_jax.tasks import AUTO, Task, usual_tasks
from jina_jax.text.spans import Chunker
from jina_jax.text.tokenizer import Tokenizer

Texts = str | Sequence[str]
_Tokens = Literal["token_embeddings"]
Wanted = int | str | Chunker | Sequence[Any]


class JinaEmbeddings(Model):
    """A model for embedding texts, for threads and spawned processes: see ``Model``."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        quantization: str | None = None,
        split_special_tokens: bool = False,
        mesh: Mesh | None = None,
        batching: Batching | None = None,
        tokenizer_processes: int | None = None,
        attn_implementation: str | None = None,
        scan_layers: bool | None = None,
        compilation_cache: bool | str | os.PathLike[str] = True,
        **hub: Unpack[HubOptions],
    ) -> JinaEmbeddings:
        """Load a checkpoint of any layout that ``jina_jax.convert`` reads, converting nothing.

        Args:
          name_or_path: a directory, a Hugging Face Hub id, or "tiny", the model in the package.
          dtype: "float32", "bfloat16" or "float16", of weights and activations; None: the file's.
          quantization: None, or "int8" or "fp8" (Ada, Hopper and later) for products in 8 bits.
          split_special_tokens: read "<s>", "<mask>", … inside a text as plain text, not as the
            special tokens of that name; set it for texts from strangers.
          mesh: devices to use (``jina_jax.make_mesh``); None for all of them, each with a copy of
            the weights and a part of every batch.
          batching: how texts are put into batches; None for the platform's default.
          tokenizer_processes: to tokenise inputs of a million characters and more; None for half
            of the cores beside an accelerator, at most 8, and for none below 4 cores.
          attn_implementation: required kernel (``jina-jax info --devices``); None: the best here.
          scan_layers: compile one layer for all, see ``Encoder``; None for TPU only.
          compilation_cache: directory of compiled programs; True for JAX's own setting or, without
            one, a folder in ``$JINA_JAX_CACHE`` (~/.cache/jina_jax); False for none.
          hub: revision, token, cache_dir, local_files_only, as in huggingface_hub.

        Raises:
          ValueError: for a wrong argument; ``ConfigError``, ``CheckpointError`` for unusable files.
          FileNotFoundError: if there is no such checkpoint.
        """
        if unknown := hub.keys() - HubOptions.__annotations__.keys():
            raise TypeError(f"from_pretrained: unexpected keyword argument {min(unknown)!r}")
        checkpoint = open_checkpoint(fetch(name_or_path, **hub), **hub)
        warn_user(*checkpoint.notes)
        forks.refuse_fork()
        mesh = usual_mesh() if mesh is None else mesh
        scan_layers = jax.default_backend() == "tpu" if scan_layers is None else scan_layers
        options: Any = {"scan_layers": scan_layers, "quantization": quantization}
        if mesh is not None:
            check_mesh(mesh, checkpoint.config)
            options["place"] = placer(mesh)
        quantizing.check_quantization(quantization, mesh)
        with cache.compilation_cache(compilation_cache):
            state = to_state(checkpoint.config, checkpoint.tensors, dtype, **options)
        return cls(
            checkpoint.config,
            state,
            Tokenizer.from_file(checkpoint.tokenizer),
            split_special_tokens=split_special_tokens,
            mesh=mesh,
            batching=batching,
            tokenizer_processes=tokenizer_processes,
            attn_implementation=attn_implementation,
            scan_layers=scan_layers,
            compilation_cache=compilation_cache,
        )

    @overload
    def encode(
        self, texts: Texts, *, return_info: Literal[False] = ..., **options: Unpack[EncodeOptions]
    ) -> np.ndarray: ...
    @overload
    def encode(
        self, texts: Texts, *, return_info: Literal[True], **options: Unpack[EncodeOptions]
    ) -> tuple[np.ndarray, EncodeInfo]: ...
    @overload
    def encode(
        self, texts: Texts, *, convert_to_numpy: Literal[False], **options: Unpack[EncodeOptions]
    ) -> jax.Array: ...
    @overload
    def encode(  # type: ignore[overload-overlap]
        self, texts: str, *, output_value: _Tokens, **options: Unpack[EncodeOptions]
    ) -> np.ndarray: ...
    @overload
    def encode(
        self, texts: Sequence[str], *, output_value: _Tokens, **options: Unpack[EncodeOptions]
    ) -> list[np.ndarray]: ...
    @overload
    def encode(self, texts: Texts, **options: Unpack[FormOptions]) -> Any: ...
    def encode(
        self,
        texts: Texts,
        *,
        task: Task = None,
        prompt: str | None = "auto",
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        long_text: str = "truncate",
        overlap: int | None = None,
        batch_size: int | None = None,
        normalize_embeddings: bool = True,
        output_value: str = "sentence_embedding",
        convert_to_numpy: bool = True,
        show_progress_bar: bool | None = None,
        return_info: bool = False,
    ) -> Any:
        """Embed texts.

        Args:
          texts: a string, or n in a list, generator or column; the same on each process of a mesh.
          task: adapter to use, one of ``config.lora_adaptations``, or None for the base model; or
            a sequence with one of these per text.
          prompt: "auto" for the prompt of each text's task, None for none, or a string for all.
          prompt_name: one of ``config.prompts`` or a task, to use its prompt for every text.
          truncate_dim: Matryoshka dimension d, cut to before normalising; None or 0: the model's.
          max_length: most tokens that the encoder sees at once, prompt, ``<s>`` and ``</s>``
            included; None for ``max_seq_length``.
          long_text: "truncate" cuts a text of more tokens at its end, with a warning; "windows"
            encodes it in windows of ``max_length`` tokens and averages over all tokens.
          overlap: tokens that a window shares with the one before, in which they count; None for a
            quarter of ``max_length``, at most 256.
          batch_size: most texts per step of one device; None for as many tokens as run best.
          normalize_embeddings: scale embeddings to unit length; token embeddings never are.
          output_value: "sentence_embedding", or "token_embeddings" for the last hidden states.
          convert_to_numpy: False returns ``jax.Array`` on the model's devices.
          show_progress_bar: None shows it for several texts if the logger "jina_jax" is at INFO.
          return_info: also return an ``EncodeInfo``: tokens used and dropped per text, padding.

        Returns:
          float32 (n, d), or (d,) for a string; of tokens a list of float32 (tokens, d), or one for
          a string. With ``return_info`` a pair of that and an ``EncodeInfo``.

        Raises:
          ValueError: for an argument out of range, a text that is not a valid string, or an
            embedding that is not finite; the message names it.
        """
        check_flags(normalize_embeddings=normalize_embeddings, return_info=return_info)
        requests = arguments.make_requests(self.config, texts, task, prompt, prompt_name)
        dim = arguments.pick_dim(self.config, truncate_dim, output_value)
        max_length = self._max_length(max_length)
        overlap = arguments.pick_windows(self.config, long_text, overlap, max_length, output_value)
        by_token = output_value == "token_embeddings"
        count, width = len(requests), self.config.hidden_size if self.config.dense else dim
        found: Any = [None] * count if by_token else np.zeros((count, width), np.float32)

        def store(index: int, result: Result) -> None:
            if by_token:
                vectors = result.vectors[:, :dim].copy()
                found[index] = finish(vectors, self.engine.dtype, normalize=False, text=index)
            else:
                found[index] = result.vectors[0, :width]

        info = self._run(
            requests,
            store,
            pooling=None if by_token else self.config.emb_pooler,
            max_length=max_length,
            overlap=overlap,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        warn_dropped(info.dropped, max_length)
        if not by_token:
            found = self.project(found)[:, :dim]
            found = finish(found, self.engine.dtype, normalize=normalize_embeddings)
        embeddings = found[0] if isinstance(texts, str) else found
        embeddings = embeddings if convert_to_numpy else self.engine.put(embeddings)
        return (embeddings, info) if return_info else embeddings

    def encode_query(self, texts: Texts, **options: Unpack[EncodeOptions]) -> np.ndarray:
        """Embed queries: ``encode`` with "retrieval.query", or the prompt named "query"."""
        return self.encode(texts, **arguments.with_side(self.config, "query", options))

    def encode_document(self, texts: Texts, **options: Unpack[EncodeOptions]) -> np.ndarray:
        """Embed documents: ``encode`` with "retrieval.passage", or the prompt of documents."""
        return self.encode(texts, **arguments.with_side(self.config, "document", options))

    @overload
    def encode_chunks(  # type: ignore[overload-overlap]
        self, texts: str, chunks: Wanted, **options: Unpack[ChunkOptions]
    ) -> Chunks: ...
    @overload
    def encode_chunks(
        self, texts: Sequence[str], chunks: Wanted, **options: Unpack[ChunkOptions]
    ) -> list[Chunks]: ...
    @overload
    def encode_chunks(
        self, texts: Texts, chunks: Wanted, *, return_info: bool, **options: Unpack[ChunkOptions]
    ) -> Any: ...
    def encode_chunks(
        self,
        texts: Texts,
        chunks: Wanted,
        *,
        task: Task = AUTO,
        prompt: str | None = "auto",
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        normalize_embeddings: bool = True,
        show_progress_bar: bool | None = None,
        return_info: bool = False,
    ) -> Any:
        """Embed chunks of texts, each in the context of its whole text: late chunking.

        A text is encoded whole, and each chunk's vector is the mean of its own tokens' (arXiv
        2409.04701). The first chunk also has ``<s>`` and the prompt, the last one ``</s>``.

        Args:
          texts: a string or a sequence of n strings.
          chunks: an integer for chunks of that many tokens; "sentences" for one per sentence; a
            function from a text to spans (``jina_jax.text`` has some); or the spans themselves,
            for a single text [(start, stop), …] in characters, for several a list of these. Spans
            may overlap and need not cover the text.
          task: adapter, as for ``encode``; "auto" for "retrieval.passage" where there is one.
          max_length: most tokens that the encoder sees at once. Longer texts are encoded in windows
            of so many; nothing is cut off.
          prompt, prompt_name, truncate_dim, overlap, batch_size: as for ``encode``.
          normalize_embeddings, show_progress_bar, return_info: as for ``encode``.

        Returns:
          ``Chunks`` for a string, a list of them for a sequence: a vector for every chunk asked
          for. With ``return_info`` a pair of that and an ``EncodeInfo``.

        Raises:
          ValueError: as ``encode``, and for a model without the mean pooler, or a span that is not
            in its text or covers no token.
        """
        arguments.check_mean_pooler(self.config, "encode_chunks")
        if isinstance(task, str) and task == AUTO:
            task = usual_tasks(self, "late chunking")[0]
        check_flags(normalize_embeddings=normalize_embeddings, return_info=return_info)
        requests = arguments.make_requests(self.config, texts, task, prompt, prompt_name, chunks)
        dim = self.config.embedding_dim(truncate_dim)
        max_length = self._max_length(max_length)
        overlap = arguments.pick_overlap(overlap, max_length)
        found: Any = [None] * len(requests)

        def store(index: int, result: Result) -> None:
            vectors, dtype = self.project(result.vectors)[:, :dim], self.engine.dtype
            vectors = finish(vectors, dtype, normalize=normalize_embeddings, text=index)
            found[index] = Chunks(result.prepared.spans, vectors)

        info = self._run(
            requests,
            store,
            pooling="mean",
            max_length=max_length,
            overlap=overlap,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
        done = found[0] if isinstance(texts, str) else found
        return (done, info) if return_info else done
