"""Make the small model's start and all of its data, from the public data beside the repository.

    python recipes/small/make.py work

writes into ``work``:

    start              a random network of 4 layers, with what its texts use of XLM-R's vocabulary
    pairs-*.jsonl      the sentences of STS-b (train) with their translations
    paraphrases.jsonl  its sentences that mean the same in one language
    queries.jsonl      a sentence in one language, and an English one of like meaning
    search             the same from STS-b (dev) in BEIR's form
    eval               the data itself, as a link

No dev text is in a training file, except where STS-b has it in both.
"""

from __future__ import annotations

import collections
import csv
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from jina_jax.checkpoint import save_native
from jina_jax.config import Config
from jina_jax.encoder import Encoder
from jina_jax.tokenizer import Tokenizer

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[3] / "shared"))
LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
PIECES = 20_000
SAME_MEANING = 4.0  # of 5: "mostly equivalent" in STS-b's scale
SIZE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
# As in jinaai/jina-embeddings-v3, where the size does not say otherwise.
TASKS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}


def main() -> None:
    work = Path(sys.argv[1])
    work.mkdir()
    (work / "eval").symlink_to(SHARED.resolve() / "eval")
    train = {language: rows(language, "train") for language in ("en", *LANGUAGES)}
    texts = [
        text for rows in train.values() for first, second, _ in rows for text in (first, second)
    ]
    texts += TASKS.values()
    make_model(work / "start", texts)
    for language in LANGUAGES:
        found = {}  # a sentence comes in several rows
        for own, english in zip(train[language], train["en"], strict=True):
            found |= dict(zip(own[:2], english[:2], strict=True))
        write(
            work / f"pairs-{language}.jsonl",
            ({"anchor": a, "positive": b} for a, b in found.items()),
        )
    same = [row[:2] for rows in train.values() for row in rows if float(row[2]) >= SAME_MEANING]
    write(work / "paraphrases.jsonl", ({"anchor": a, "positive": b} for a, b in same if a != b))
    queries = [
        {"anchor": own[0], "positive": english[1]}
        for language in LANGUAGES
        for own, english in zip(train[language], train["en"], strict=True)
        if float(own[2]) >= SAME_MEANING
    ]
    write(work / "queries.jsonl", queries)
    make_search(work / "search")


def rows(language: str, split: str) -> list[list[str]]:
    """Read STS-b: two sentences and a score from 0 to 5; row i is the same in every language."""
    path = SHARED / "eval" / f"stsb-{language}-{split}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def write(path: Path, values: Iterable[dict]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def make_model(directory: Path, texts: list[str]) -> None:
    """Write a random network and a tokenizer with the pieces that the texts use most."""
    source = SHARED / "xlm-roberta" / "tokenizer.json"
    fields = json.loads(source.read_text(encoding="utf-8"))
    ids = Tokenizer.from_file(source).encode(texts)
    counts = collections.Counter(token for row in ids for token in row)
    specials, mask = 4, len(fields["model"]["vocab"]) - 1
    kept = sorted(token for token, _ in counts.most_common(PIECES) if specials <= token < mask)
    vocab = fields["model"]["vocab"]
    fields["model"]["vocab"] = [*vocab[:specials], *(vocab[token] for token in kept), vocab[mask]]
    fields["added_tokens"][-1]["id"] = len(kept) + specials
    config = Config(
        vocab_size=len(fields["model"]["vocab"]),
        intermediate_size=4 * SIZE["hidden_size"],
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        max_position_embeddings=514,
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
        matryoshka_dimensions=(32, 64, 128, 256),
        truncate_dim=None,
        **SIZE,
    )
    encoder = Encoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    save_native(directory, config, nnx.state(encoder))
    text = json.dumps(fields, ensure_ascii=False)
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")


def make_search(directory: Path) -> None:
    """Write a search task from STS-b (dev): find the English sentence of like meaning."""
    (directory / "qrels").mkdir(parents=True)
    english = rows("en", "dev")
    corpus = {text: f"d{i}" for i, text in enumerate(dict.fromkeys(row[1] for row in english))}
    write(
        directory / "corpus.jsonl",
        ({"_id": name, "title": "", "text": text} for text, name in corpus.items()),
    )
    queries, qrels = {}, []
    for language in LANGUAGES:
        for own, other in zip(rows(language, "dev"), english, strict=True):
            if float(other[2]) >= SAME_MEANING:
                query = queries.setdefault(own[0], f"q{len(queries)}")
                qrels.append(f"{query}\t{corpus[other[1]]}\t1\n")
    write(
        directory / "queries.jsonl", ({"_id": name, "text": text} for text, name in queries.items())
    )
    with (directory / "qrels" / "test.tsv").open("w", encoding="utf-8") as file:
        file.writelines(["query-id\tcorpus-id\tscore\n", *dict.fromkeys(qrels)])


if __name__ == "__main__":
    main()
