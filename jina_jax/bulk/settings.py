"""Settings of a bulk job: all that its vectors depend on, beside the model and the texts."""

from __future__ import annotations

import dataclasses
from typing import Any

KINDS = ("float32", "float16", "bytes", "ubinary")
LONG_TEXT = ("truncate", "windows", "error")
SHARD_ROWS = 100_000  # most rows of a shard
SHARD_BYTES = 64 << 20  # most bytes of texts of a shard, about


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the texts of a job are encoded, and what its tables have.

    Attributes:
      text: names of the columns with texts, each of which gets a column of vectors.
      tasks: the adapter of each of these columns; None for the base model.
      task_column: column with the row's own adapter, in place of ``tasks`` where it is not null.
      prompt: "auto", None or a string, as for ``JinaEmbeddings.encode``.
      prompt_name: name of a prompt for every text.
      id: column that names rows; None for the file and the row's number in it.
      columns: further columns to pass through.
      kind: one of ``KINDS``: lists of float32 or float16; float32 as bytes; packed bits.
      dim: dimension of the vectors.
      normalize: whether vectors have unit length.
      max_length: most tokens that the encoder sees at once.
      long_text: one of ``LONG_TEXT``: cut longer texts, average over windows, or refuse the row.
      chunks: "sentences" or a number of tokens, for a row per chunk (late chunking); None for a
        row per text.
      dedup: encode identical texts of a shard once.
      split_special_tokens: read "<s>", "<mask>", … in texts as plain text.
      dtype: of weights and activations.
      quantization: of the weights; None for none.
    """

    text: tuple[str, ...]
    tasks: tuple[str | None, ...]
    task_column: str | None = None
    prompt: str | None = "auto"
    prompt_name: str | None = None
    id: str | None = None
    columns: tuple[str, ...] = ()
    kind: str = "float32"
    dim: int = 1024
    normalize: bool = True
    max_length: int = 8192
    long_text: str = "truncate"
    chunks: int | str | None = None
    dedup: bool = False
    split_special_tokens: bool = False
    dtype: str = "bfloat16"
    quantization: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return them as values of JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Return those of ``to_dict`` or its JSON."""
        own: dict[str, Any] = {}
        for name, value in values.items():
            own[name] = tuple(value) if isinstance(value, list) else value
        return cls(**own)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the columns of vectors."""
        if len(self.text) == 1:
            return ("embedding",)
        return tuple(f"{name}_embedding" for name in self.text)
