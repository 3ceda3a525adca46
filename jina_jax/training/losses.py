"""Losses: contrastive, ranking, distillation, their Matryoshka forms, masked language modelling.

Embeddings come in any float dtype and of any length: they are cast to float32 and compared by
cosine. Every loss is a float32 scalar over the whole batch, also when its rows lie on several
devices. "eq" refers to arXiv 2409.10173; a temperature is its τ, and the ``scale`` of
sentence-transformers is 1 / τ.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.checks import is_integer
from jina_jax.nn.matmul import einsum
from jina_jax.training.settings import Loss as LossSection
from jina_jax.training.vocabulary import LOSSES

LossFunction = Callable[..., jax.Array]

_REDUCTIONS: dict[str, LossFunction] = {"mean": jnp.mean, "sum": jnp.sum}
# Under the square root, so that a zero vector has a finite gradient; its cosines are 0.
_SMALLEST_SQUARE = 1e-12
# Bytes of float32 similarities that exist at once in a contrastive loss, on all devices together.
_SIMILARITY_BYTES = 256 << 20


def info_nce(
    queries: jax.Array,
    documents: jax.Array,
    /,
    *,
    temperature: float = 0.05,
    bidirectional: bool = True,
    reduction: str = "mean",
) -> jax.Array:
    """Separate each query's document from those of other queries, and the reverse (eq 1, 2).

    The two directions are summed, as in the paper; sentence-transformers averages them. The paper
    also sums over rows. "mean" makes the gradient independent of the batch size.

    Args:
      queries, documents: (B, D); row i of one belongs to row i of the other.
      temperature: divides the cosines, positive.
      bidirectional: add the direction from documents to queries.
      reduction: "mean" or "sum" over rows.

    Raises:
      ValueError: for arguments other than these.
    """
    _check_shapes(queries=(queries, "BD"), documents=(documents, "BD"))
    _check_temperature(temperature)
    reduce = _reducer(reduction)
    queries, documents = _unit(queries), _unit(documents)
    own = jnp.arange(queries.shape[0])
    rows = _contrast(queries, documents, own, temperature)
    if bidirectional:
        rows += _contrast(documents, queries, own, temperature)
    return reduce(rows)


def triplet_info_nce(
    queries: jax.Array,
    positives: jax.Array,
    negatives: jax.Array,
    /,
    *,
    temperature: float = 0.05,
    reduction: str = "mean",
) -> jax.Array:
    """Separate each query's positive from all other documents, and the reverse (eq 3).

    A query is compared with the positives and hard negatives of the whole batch, a positive with
    the queries only. The two directions are summed.

    Args:
      queries, positives: (B, D).
      negatives: (B, M, D), hard negatives of each query; M may be 0.
      temperature: divides the cosines, positive.
      reduction: "mean" (the paper's) or "sum" over rows.

    Raises:
      ValueError: for arguments other than these.
    """
    _check_shapes(
        queries=(queries, "BD"), positives=(positives, "BD"), negatives=(negatives, "BMD")
    )
    _check_temperature(temperature)
    reduce = _reducer(reduction)
    queries, positives, negatives = map(_unit, (queries, positives, negatives))
    # A row's documents stay together, so that rows on several devices need not move.
    documents = jnp.concatenate([positives[:, None], negatives], axis=1)
    own = jnp.arange(queries.shape[0])
    rows = _contrast(
        queries,
        documents.reshape(-1, documents.shape[-1]),
        own * documents.shape[1],
        temperature,
    )
    return reduce(rows + _contrast(positives, queries, own, temperature))


def cosent(
    first: jax.Array, second: jax.Array, /, *, scores: jax.Array, temperature: float = 0.05
) -> jax.Array:
    """Rank pairs of texts as their scores do (CoSENT, eq 4).

    ln(1 + Σ exp((s_j - s_i) / τ)) over all i, j with score_i > score_j, where s are the pairs'
    cosines. 0 if all scores are equal. Needs memory for B² numbers.

    Args:
      first, second: (B, D), the two texts of each pair.
      scores: (B,), only their order counts.
      temperature: divides the cosines, positive.

    Raises:
      ValueError: for arguments other than these.
    """
    _check_shapes(first=(first, "BD"), second=(second, "BD"), scores=(scores, "B"))
    _check_temperature(temperature)
    scores = jnp.asarray(scores)
    cosines = einsum("bd,bd->b", _unit(first), _unit(second)) / temperature
    excess = jnp.where(
        scores[:, None] > scores[None, :], cosines[None, :] - cosines[:, None], -jnp.inf
    )
    # ln(1 + Σ exp) with the largest exponent, or that of the 1, taken out.
    top = jax.lax.stop_gradient(jnp.max(excess, initial=0.0))
    return top + jnp.log1p(jnp.sum(jnp.exp(excess - top)) + jnp.expm1(-top))


def separation(
    embeddings: jax.Array, /, *, labels: jax.Array, temperature: float = 0.05
) -> jax.Array:
    """Make texts of one label more alike than texts of two labels (eq 5).

    CoSENT over all B (B - 1) / 2 pairs of texts, with score 1 for one label and 0 for two. As
    every pair of one grade is compared with every pair of the other, the double sum is a product:

      ln(1 + Σ_different exp(s / τ) · Σ_same exp(-s / τ)),

    which takes memory for B² numbers, and not for the B⁴ of the formula. 0 if there are no pairs
    of one of the grades. (Eq 5 names only pairs of one label, which alone have no order.)

    Args:
      embeddings: (B, D).
      labels: int (B,).
      temperature: divides the cosines, positive.

    Raises:
      ValueError: for arguments other than these.
    """
    _check_shapes(embeddings=(embeddings, "BD"), labels=(labels, "B"))
    _check_temperature(temperature)
    labels = _integers("labels", labels)
    embeddings = _unit(embeddings)
    cosines = einsum("bd,cd->bc", embeddings, embeddings) / temperature
    once = jnp.triu(jnp.ones(cosines.shape, bool), k=1)
    same = once & (labels[:, None] == labels[None, :])
    different = once & ~same
    # Minus infinity for no pairs, of which softplus makes 0, without a gradient.
    rising = jax.nn.logsumexp(cosines, where=different)
    falling = jax.nn.logsumexp(-cosines, where=same)
    return jax.nn.softplus(rising + falling)


def cosine_distillation(embeddings: jax.Array, /, *, teacher: jax.Array) -> jax.Array:
    """Align each vector with its teacher's: the mean of 1 - cosine.

    Args:
      embeddings: (B, D).
      teacher: (B, D'), cut to its first D values if it is wider (a Matryoshka teacher).

    Raises:
      ValueError: for other shapes, D' < D included.
    """
    cosines = einsum("bd,bd->b", _unit(embeddings), _teacher_of(embeddings, teacher))
    return jnp.mean(1.0 - cosines)


def similarity_distillation(embeddings: jax.Array, /, *, teacher: jax.Array) -> jax.Array:
    """Match the teacher's cosine of every two texts: the mean squared difference over i ≠ j.

    Only similarities are compared, so that the teacher may be of any width.

    Args:
      embeddings: (B, D), at least two rows.
      teacher: (B, D').

    Raises:
      ValueError: for other shapes.
    """
    _check_shapes(embeddings=(embeddings, "BD"), teacher=(teacher, "BE"))
    rows = np.shape(embeddings)[0]
    if rows < 2:
        raise ValueError(f"embeddings: expected at least 2 rows to compare, got {rows}")
    student, target = (einsum("bd,cd->bc", v, v) for v in map(_unit, (embeddings, teacher)))
    squares = jnp.where(jnp.eye(rows, dtype=bool), 0.0, jnp.square(student - target))
    return jnp.sum(squares) / (rows * (rows - 1))


def contrastive_distillation(
    embeddings: jax.Array, /, *, teacher: jax.Array, temperature: float = 0.05
) -> jax.Array:
    """Rank the batch's teacher vectors for each text as the teacher does.

    The cross-entropy between two distributions over the batch's teacher vectors: that of the
    teacher's own cosines over τ, and that of the student's (SEED, arXiv 2101.04731, with one
    temperature). Texts with one meaning, such as translations, share a teacher vector and are
    no negatives of each other. Needs memory for B² numbers.

    Args:
      embeddings: (B, D).
      teacher: (B, D'), cut to its first D values if it is wider (a Matryoshka teacher).
      temperature: divides the cosines, positive.

    Raises:
      ValueError: for other arguments, D' < D included.
    """
    target = _teacher_of(embeddings, teacher)
    _check_temperature(temperature)
    wanted, found = (
        einsum("bd,cd->bc", vectors / temperature, target)
        for vectors in (target, _unit(embeddings))
    )
    rows = jax.nn.logsumexp(found, axis=1) - jnp.sum(jax.nn.softmax(wanted) * found, axis=1)
    return jnp.mean(rows)


def masked_lm(logits: jax.Array, /, *, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum the weighted cross-entropies of masked tokens.

    It is a sum, so that a step of several micro-batches divides once, by their total count.

    Args:
      logits: (M, V) of any float dtype.
      labels: int (M,), the tokens before masking. One outside 0 … V - 1 makes the loss NaN, unless
        its weight is 0.
      weights: (M,); 0 leaves a row out, whatever its label.

    Raises:
      ValueError: for other shapes, or labels that are not integers.
    """
    _check_shapes(logits=(logits, "MV"), labels=(labels, "M"), weights=(weights, "M"))
    labels = _integers("labels", labels)
    labels = jnp.where(labels < 0, np.shape(logits)[1], labels)  # would count from the end
    weights = jnp.asarray(weights).astype(jnp.float32)
    rows = _cross_entropies(jnp.asarray(logits).astype(jnp.float32), labels)
    return jnp.sum(jnp.where(weights == 0.0, 0.0, weights * rows))


def matryoshka(
    loss: LossFunction,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    reduction: str = "mean",
) -> LossFunction:
    """Make a loss that is also computed on first parts of the vectors (arXiv 2205.13147).

    The cosines inside a loss normalise each part again. The paper names the dims that it measured
    (32 to 1024), but no weights.

    Args:
      loss: a function of embeddings, all positional, and targets, all by keyword.
      dims: widths to which every embedding is cut.
      weights: one for each of them; None for 1 each.
      reduction: "mean" divides the weighted sum by the sum of the weights; "sum" does not, as in
        sentence-transformers.

    Returns:
      A function with the arguments of ``loss``. It raises ValueError for embeddings that are
      narrower than one of ``dims``.

    Raises:
      ValueError: for arguments other than these.
    """
    dims, factors = tuple(dims), _matryoshka_factors(dims, weights, reduction)

    @functools.wraps(loss)
    def cut_loss(*embeddings: jax.Array, **targets) -> jax.Array:
        width = min(((np.shape(array) or (0,))[-1] for array in embeddings), default=0)
        if width < max(dims):
            raise ValueError(f"dims={dims}: expected none above {width}, the width of embeddings")
        total = jnp.float32(0.0)
        for dim, factor in zip(dims, factors, strict=True):
            total += factor * loss(*(jnp.asarray(a)[..., :dim] for a in embeddings), **targets)
        return total

    return cut_loss


def function_of(name: str) -> LossFunction:
    """Return the function of a loss by its name in ``vocabulary.LOSSES``."""
    return globals()[LOSSES[name].function]


def loss_function(section: LossSection) -> LossFunction:
    """Return the function of this module for a section [data.loss], with its options."""
    fields = section.model_dump(exclude={"name", "matryoshka", "mask_rate"}, exclude_none=True)
    function = functools.partial(function_of(section.name), **fields)
    if section.matryoshka is None:
        return function
    return matryoshka(function, **section.matryoshka.model_dump())


def _matryoshka_factors(
    dims: Sequence[int], weights: Sequence[float] | None, reduction: str
) -> list[float]:
    """Check the arguments of ``matryoshka`` and return the factor of each part."""
    _reducer(reduction)
    if not dims or not all(is_integer(dim, 1) for dim in dims):
        raise ValueError(f"dims={dims!r}: expected one positive integer or more")
    values = [1.0] * len(dims) if weights is None else [float(weight) for weight in weights]
    if len(values) != len(dims):
        raise ValueError(f"weights={weights!r}: expected {len(dims)}, one for each of dims={dims}")
    if not all(0.0 <= value < math.inf for value in values) or not any(values):
        raise ValueError(f"weights={weights!r}: expected none below 0, one above 0, all finite")
    total = sum(values) if reduction == "mean" else 1.0
    return [value / total for value in values]


def _contrast(
    queries: jax.Array, documents: jax.Array, own: jax.Array, temperature: float
) -> jax.Array:
    """Return each query's cross-entropy between its own document's number and all documents, (B,).

    Many similarities are taken a block of queries at a time, and again in the backward pass.
    """

    def contrast_rows(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        return _cross_entropies(einsum("bd,cd->bc", rows[0] / temperature, documents), rows[1])

    count, width = queries.shape
    blocks = _count_blocks(count, documents.shape[0])
    if blocks == 1:
        return contrast_rows((queries, own))
    size = -(-count // blocks)
    padding = (0, size * blocks - count)
    # Block k holds rows k, k + blocks, …: rows split over devices are split in each block as well.
    queries = jnp.pad(queries, (padding, (0, 0))).reshape(size, blocks, width).swapaxes(0, 1)
    own = jnp.pad(own, padding).reshape(size, blocks).T
    rows = jax.lax.map(jax.checkpoint(contrast_rows, prevent_cse=False), (queries, own))
    return rows.T.reshape(-1)[:count]


def _count_blocks(rows: int, columns: int) -> int:
    """Return a power of two (it divides most batch sizes) or ``rows``; 1 if everything fits."""
    needed = -(-4 * rows * columns // _SIMILARITY_BYTES)
    return min(1 << (needed - 1).bit_length(), rows)


def _cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return -ln softmax at each row's label; NaN for a label outside."""
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1, mode="fill")[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - chosen


def _unit(vectors: jax.Array) -> jax.Array:
    """Divide vectors by their lengths in float32; a zero vector stays zero."""
    vectors = jnp.asarray(vectors).astype(jnp.float32)
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors / jnp.sqrt(jnp.maximum(squares, _SMALLEST_SQUARE))


def _teacher_of(embeddings: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return unit vectors of the teacher that are as wide as the embeddings."""
    _check_shapes(embeddings=(embeddings, "BD"), teacher=(teacher, "BE"))
    width, given = np.shape(embeddings)[1], np.shape(teacher)[1]
    if given < width:
        raise ValueError(f"teacher: expected vectors of at least {width} values, got {given}")
    return _unit(jnp.asarray(teacher)[:, :width])


def _check_shapes(**arrays: tuple[jax.Array, str]) -> None:
    """Check that axes of one letter have one size, which is at least 1 (0 for M)."""
    sizes: dict[str, int] = {}
    for name, (array, letters) in arrays.items():
        shape, known = np.shape(array), dict(sizes)
        matches = len(shape) == len(letters) and all(
            sizes.setdefault(letter, size) == size and size >= (letter != "M")
            for letter, size in zip(letters, shape, strict=True)
        )
        if not matches:
            rule = "".join(f", {letter}={known.get(letter, 'any')}" for letter in letters)
            raise ValueError(f"{name}: expected shape ({', '.join(letters)}){rule}, got {shape}")


def _check_temperature(temperature: float) -> None:
    if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r}: expected a positive number")


def _reducer(reduction: str) -> LossFunction:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}: expected one of {tuple(_REDUCTIONS)}")
    return _REDUCTIONS[reduction]


def _integers(name: str, array: jax.Array) -> jax.Array:
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name}: expected integers, got {array.dtype}")
    return array.astype(jnp.int32)
