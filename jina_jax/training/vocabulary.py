"""Names in the settings: losses with their rows and options. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple


class LossKind(NamedTuple):
    """A loss as the settings name it.

    Attributes:
      function: its name in ``jina_jax.training.losses``.
      rows: kinds of rows that it takes (``jina_jax.data.kinds.ROWS``).
      fields: of the section [data.loss], besides ``name``.
      needs_teacher: whether its rows have vectors of a teacher.
    """

    function: str
    rows: tuple[str, ...]
    fields: frozenset[str]
    needs_teacher: bool = False


def _loss(function: str, rows: str, fields: str, *, needs_teacher: bool = False) -> LossKind:
    return LossKind(function, tuple(rows.split()), frozenset(fields.split()), needs_teacher)


LOSSES = {
    "info_nce": _loss("info_nce", "pairs", "temperature bidirectional reduction matryoshka"),
    # Of labelled rows a batch of triplets is drawn (``jina_jax.training.tuples``).
    "triplet": _loss("triplet_info_nce", "triplets labelled", "temperature reduction matryoshka"),
    "cosent": _loss("cosent", "scored", "temperature matryoshka"),
    "separation": _loss("separation", "labelled", "temperature matryoshka"),
    "cosine_distillation": _loss("cosine_distillation", "texts", "matryoshka", needs_teacher=True),
    "similarity_distillation": _loss(
        "similarity_distillation", "texts", "matryoshka", needs_teacher=True
    ),
    "contrastive_distillation": _loss(
        "contrastive_distillation", "texts", "temperature matryoshka", needs_teacher=True
    ),
    "mlm": _loss("masked_lm", "texts", "mask_rate"),
}
DISTILLATIONS = tuple(name for name, loss in LOSSES.items() if loss.needs_teacher)

# Parts of the network that may be trained.
TRAINABLE = ("adapters", "all", "all-but-embeddings")
