"""Make the initial network: its vocabulary, and vectors for it from the teacher.

    python recipes/tiny/start.py pieces work    writes tokenizer.json there
    python recipes/tiny/start.py bag work       writes rows.npy, words.npy and bag.npy
    python recipes/tiny/start.py model work NAME LAYERS WIDTH      writes the network

The pieces are those of XLM-R's vocabulary (MIT) that the training text uses most, counted for each
language on its own, so that every language has its pieces.

The network starts as the best bag of pieces: the least-squares solution of "the mean of a text's
pieces is the teacher's vector", found by conjugate gradients in minutes; training by steps would
need an hour for the same. Vectors are on the teacher's principal axes: the first values have most
of the information, as Matryoshka training requires. A LayerNorm would remove the pieces' lengths,
and with them the weights of words; so the last axis is used to extend every piece to one length,
and the scale of the last norm hides it. Layers start as the identity, with output projections of
zero.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import scipy.sparse
from common import SHARED, TASKS, read_rows
from flax import nnx

from jina_jax.checkpoints.native import save_native
from jina_jax.config import Config
from jina_jax.nn.encoder import Encoder
from jina_jax.text.tokenizer import Tokenizer

PIECES = 112_000
FEWEST = 4  # least count of a single character to be included
WIDTH = 256  # width of the bag: a network uses the first values
RIDGE, TURNS = 0.02, 10  # regularisation and iterations of the least squares
MAX_LENGTH = 64
LENGTH = 3.0  # length of the rows in the table


def main() -> None:
    action, work = sys.argv[1], Path(sys.argv[2])
    if action == "pieces":
        choose_pieces(work)
    elif action == "bag":
        make_bag(work)
    else:
        layers, width = map(int, sys.argv[4:6])
        make_model(work, work / sys.argv[3], layers, width)


def choose_pieces(work: Path) -> None:
    source = SHARED / "xlm-roberta" / "tokenizer.json"
    fields = json.loads(source.read_text(encoding="utf-8"))
    vocab = fields["model"]["vocab"]
    tokenizer = Tokenizer.from_file(source)
    texts = collections.defaultdict(list)
    for name in ("sample.jsonl", "words.jsonl"):
        for row in read_rows(work / name):
            texts[row["language"]].append(row["text"])
    worth: collections.Counter[int] = collections.Counter()
    characters: collections.Counter[str] = collections.Counter()
    for language, own in sorted(texts.items()):
        counts = collections.Counter(token for ids in tokenizer.encode(own) for token in ids)
        # Much of the text is about computers; XLM-R's probabilities are those of the whole web. The
        # geometric mean requires both.
        weights = {t: math.sqrt(n * math.exp(vocab[t][1])) for t, n in counts.items() if t > 3}
        total = sum(weights.values())
        worth.update({token: weight / total for token, weight in weights.items()})
        print(language, len(own), len(counts))
    for row in read_rows(work / "rows.jsonl"):
        characters.update(row["text"])
    mask = len(vocab) - 1
    ids = {piece: token for token, (piece, _) in enumerate(vocab)}
    needed = {ids[c] for c, n in characters.items() if n >= FEWEST and c in ids} | {ids["▁"]}
    prompts = {token for row in tokenizer.encode(list(TASKS.values())) for token in row}
    kept = {token for token in needed | prompts if 3 < token < mask}
    for token, _ in worth.most_common():
        if len(kept) >= PIECES - 5:
            break
        if 3 < token < mask:
            kept.add(token)
    order = [*range(4), *sorted(kept), mask]
    fields["model"]["vocab"] = [vocab[token] for token in order]
    fields["added_tokens"][-1]["id"] = len(order) - 1
    (work / "tokenizer.json").write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")
    print(f"{len(order):,} pieces, {len(needed):,} of them single characters")


def make_bag(work: Path) -> None:
    english = np.load(work / "english-e5.npy").astype(np.float32)
    mean = english.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(english.T))
    axes = axes[:, ::-1][:, :WIDTH]

    def project(vectors: np.ndarray) -> np.ndarray:
        return unit((vectors - mean) @ axes).astype(np.float16)

    rows = list(read_rows(work / "rows.jsonl"))
    of_rows = project(english)[[row["row"] for row in rows]]
    of_words = project(np.load(work / "words-e5.npy").astype(np.float32))
    np.save(work / "rows.npy", of_rows)
    np.save(work / "words.npy", of_words)
    texts = [without_prompt(row["text"]) for row in rows]
    texts += [row["text"] for row in read_rows(work / "words.jsonl")]
    tokenizer = Tokenizer.from_file(work / "tokenizer.json")
    ids = [row[:MAX_LENGTH] for row in tokenizer.encode(texts)]
    targets = np.concatenate([of_rows, of_words])
    np.save(work / "bag.npy", solve_bag(ids, targets, tokenizer.vocab_size))


def make_model(work: Path, target: Path, layers: int, width: int) -> None:
    bag = np.load(work / "bag.npy")[:, :width]
    lengths = np.linalg.norm(bag[:, :-1], axis=1, keepdims=True)
    longest = np.percentile(lengths, 99)
    bag[:, :-1] *= np.minimum(1, longest / lengths.clip(1e-9)) / longest
    bag[:, -1] = np.sqrt(1 - np.square(bag[:, :-1]).sum(axis=1).clip(0, 1))

    encoder = Encoder(make_config(len(bag), layers, width), dtype=jnp.float32, rngs=nnx.Rngs(0))
    # A table with larger entries learns more slowly under Adam; its directions are the same.
    encoder.word_embeddings.embedding.set_value(jnp.asarray(LENGTH * bag))
    encoder.token_type_embeddings.embedding.set_value(jnp.zeros((1, width)))
    for layer in encoder.layers:
        for linear in (layer.attention.out_proj, layer.mlp.fc2):
            linear.kernel.set_value(jnp.zeros_like(linear.kernel.get_value()))
    scale = encoder.layers[-1].norm2.scale
    scale.set_value(scale.get_value().at[-1].set(0))
    save_native(target, encoder.config, nnx.state(encoder))
    shutil.copyfile(work / "tokenizer.json", target / "tokenizer.json")


def without_prompt(text: str) -> str:
    for prompt in filter(None, TASKS.values()):
        text = text.removeprefix(prompt)
    return text


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def solve_bag(ids: list[list[int]], targets: np.ndarray, vocab_size: int) -> np.ndarray:
    """Minimise |mean of pieces - target|² over texts, plus RIDGE · |pieces|².

    Args:
      ids: ids of n texts.
      targets: float16 (n, d).
      vocab_size: pieces V.

    Returns:
      float32 (V, d).
    """
    counts = np.array([len(row) for row in ids])
    means = scipy.sparse.csr_matrix(
        (
            np.repeat(1 / counts, counts).astype(np.float32),
            np.fromiter(itertools.chain.from_iterable(ids), np.int32, counts.sum()),
            np.concatenate([[0], np.cumsum(counts)]),
        ),
        shape=(len(ids), vocab_size),
    )
    back = means.T.tocsr()
    # Conjugate gradients, all columns at once, with the diagonal as preconditioner.
    diagonal = np.asarray(means.power(2).sum(axis=0)).reshape(-1, 1) + RIDGE
    pieces = np.zeros((vocab_size, targets.shape[1]), np.float32)
    rest = back @ targets.astype(np.float32)
    first = np.linalg.norm(rest)
    step = rest / diagonal
    direction, size = step, (rest * step).sum(axis=0)
    for turn in range(TURNS):
        image = back @ (means @ direction) + RIDGE * direction
        along = size / (direction * image).sum(axis=0)
        pieces += along * direction
        rest -= along * image
        step = rest / diagonal
        size, before = (rest * step).sum(axis=0), size
        direction = step + size / before * direction
        print(f"turn {turn + 1}: {np.linalg.norm(rest) / first:.4f} of the residual", flush=True)
    return pieces


def make_config(vocab_size: int, layers: int, width: int) -> Config:
    return Config(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        max_position_embeddings=8194,
        type_vocab_size=1,
        pad_token_id=1,
        initializer_range=0.02,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        position_embedding_type="rotary",
        rotary_emb_base=20000.0,
        add_pooling_layer=False,
        emb_pooler="mean",
        lora_adaptations=tuple(TASKS),
        lora_rank=4,
        lora_alpha=1.0,
        task_instructions=tuple(TASKS.items()),
        default_prompt="",
        matryoshka_dimensions=tuple(dim for dim in (32, 64, 128, 192, 256) if dim <= width),
        truncate_dim=None,
    )


if __name__ == "__main__":
    main()
