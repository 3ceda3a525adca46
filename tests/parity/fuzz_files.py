"""Fuzz of config and module files: equal vectors, or an error that names the field.

python tests/parity/fuzz_files.py [MUTATIONS] [SEED]

Each mutation changes one field of one JSON file of a checkpoint that sentence-transformers and
transformers wrote: another value, another type, a field that is gone, or one that was not there.
What our library loads is compared with sentence-transformers; what it refuses must name the field.
Fields of precision (dtype, torch_dtype) are left
alone: weights have a dtype of their own here. With rotary positions a text has at most
``max_position_embeddings - pad_token_id - 1`` tokens here, as with absolute ones, and up to two
more there: these texts are cut with a warning, and only the others are compared.
"""

from __future__ import annotations

import collections
import copy
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402

SWITCHES = {
    "is_decoder": True,
    "is_encoder_decoder": True,
    "add_cross_attention": True,
    "pruned_heads": {"0": [1]},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "chunk_size_feed_forward": 2,
    "output_hidden_states": True,
    "return_dict": False,
    "position_embedding_type": "absolute",
    "emb_pooler": "cls",
    "transformers_weights": "other.safetensors",
    "configuration_files": ["config.4.0.0.json"],
    "tokenizer_class": "BertTokenizer",
    "truncate_dim": 4,
    "default_prompt": "x",
    "normalize": False,
    "num_labels": 1,
    "problem_type": "regression",
}
# Of tokenizer_config.json: tokens that transformers adds to those of tokenizer.json.
TOKENS = {
    "additional_special_tokens": ["sea"],
    "extra_special_tokens": {"x": "hello"},
    "added_tokens_decoder": {"8": {"content": "world", "special": False}},
    "tokenizer_class": "BertTokenizer",
    "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 5, 16, 17, -1, 10**6, 0.0, 0.5, 1e-12, -0.1),
    *("", "mean", "cls", "max", "lasttoken", "weightedmean", "query", "document", "relu", "gelu"),
    *("gelu_new", "dot", "euclidean", "cosine", "torch.nn.modules.activation.Tanh"),
    *("torch.nn.modules.linear.Identity", "torch.nn.modules.activation.ReLU", "1_Pooling"),
    *(
        "text_query",
        "",
        "2_Dense",
        "..",
        "<s>",
        "<mask>",
        12,
        40,
        64,
        66,
        1e-5,
        0.1,
        20000.0,
        10000.0,
    ),
    *(
        "last_hidden_state",
        "forward",
        "sentence_embedding",
        "token_embeddings",
        "more",
        "manhattan",
    ),
    *("sentence_transformers.models.Dropout", "sentence_transformers.models.CNN"),
    *("sentence_transformers.models.Normalize", "SparseEncoder", "left", "<pad>", "</s>"),
    *([], [1], ["mean"], ["mean", "cls"], {}, {"a": 1}, {"query": "q "}, {"query": None}),
]
UNTOUCHED = {"dtype", "torch_dtype", "transformers_version", "auto_map", "architectures"}


class Mutation(NamedTuple):
    """A change of one file: the keys that lead to the field, and what is there now."""

    base: str
    file: str
    keys: tuple[str | int, ...]
    what: str
    value: Any


class Outcome(NamedTuple):
    """What a mutation led to: a kind, and details for one that must not be."""

    kind: str
    detail: str = ""


BAD = ("different vectors", "another error", "field not named")


def write_bases(root: Path) -> dict[str, Path]:
    """Let both libraries write the checkpoints that are changed."""
    from sbert import encoder_files, write_sbert

    encoder = encoder_files(root / "encoder")
    prompts = {"prompts": {"query": "query: ", "more": "m: "}, "default_prompt_name": "query"}
    dense = {"dense": [(8, "Tanh", True)], "pooling": {"include_prompt": False}}
    rotary = encoder_files(root / "jina", "JinaEmbeddingsV3")
    bert = encoder_files(root / "small", "Bert")
    return {
        "transformers": encoder,
        "rotary": write_sbert(root / "rotary", rotary, **prompts),
        "plain": write_sbert(root / "plain", encoder, **prompts, max_seq_length=40),
        "dense": write_sbert(root / "dense", encoder, **dense, **prompts, truncate_dim=6),
        "bert": write_sbert(root / "bert", bert, **prompts),
        "cls": write_sbert(root / "cls", encoder, pooling={"pooling_mode": "cls"}),
    }


def mutate(base: str, directory: Path, rng: random.Random) -> tuple[Mutation, Any]:
    """Draw a mutation; return it, and the changed content of its file."""
    from jina_jax.convert import st_fields

    files = sorted(p for p in directory.rglob("*.json") if p.name != "tokenizer.json")
    file = rng.choice(files)
    content = json.loads(file.read_text())
    known = {
        "config.json": SWITCHES if file.parent == directory else st_fields.POOLING,
        "sentence_bert_config.json": st_fields.TRANSFORMER,
        "config_sentence_transformers.json": st_fields.SENTENCE_TRANSFORMERS,
        "tokenizer_config.json": {**st_fields.TOKENIZER, **TOKENS},
    }.get(file.name, {})
    places = [keys for keys in _places(content) if not UNTOUCHED & set(keys)]
    name = str(file.relative_to(directory))
    kind = rng.choice(["value", "value", "value", "gone", "new"])
    if kind == "new" and known and isinstance(content, dict):
        field = rng.choice(sorted(known))
        value = {**SWITCHES, **TOKENS}.get(field) or rng.choice(VALUES)
        content[field] = value
        return Mutation(base, name, (field,), kind, value), content
    if kind == "gone":
        keys = rng.choice(places)
        parent = _parent(content, keys)
        value = parent.pop(keys[-1])
        return Mutation(base, name, keys, kind, value), content
    keys = rng.choice(places)
    value = copy.deepcopy(rng.choice(VALUES))
    _parent(content, keys)[keys[-1]] = value
    return Mutation(base, name, keys, "value", value), content


def _places(content: Any, keys: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = []
    for key, value in items:
        found.append((*keys, key))
        if isinstance(value, dict | list) and value:
            found += _places(value, (*keys, key))
    return found


def _parent(content: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys[:-1]:
        content = content[key]
    return content


class Fuzz:
    """Runs mutations; models of equal config and weights are encoded once."""

    def __init__(self, root: Path):
        self.root = root
        self.bases = write_bases(root)
        self._vectors: dict[Any, tuple[np.ndarray, np.ndarray]] = {}

    def run(self, rng: random.Random) -> tuple[Mutation, Outcome]:
        """Draw a mutation and compare both libraries on it."""
        base = rng.choice(sorted(self.bases))
        mutation, content = mutate(base, self.bases[base], rng)
        directory = Path(tempfile.mkdtemp(dir=self.root))
        shutil.copytree(self.bases[base], directory, dirs_exist_ok=True)
        (directory / mutation.file).write_text(json.dumps(content))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return mutation, self._compare(mutation, directory)
        finally:
            shutil.rmtree(directory)

    def _compare(self, mutation: Mutation, directory: Path) -> Outcome:
        from sbert import theirs, unit

        try:
            found, dropped = self._ours(mutation.base, directory)
        except (ValueError, OSError) as error:
            return _refusal(mutation, str(error))
        except Exception:
            return Outcome("another error", traceback.format_exc())
        try:
            expected = unit(theirs(directory, _texts()))
        except Exception as error:
            return Outcome("only theirs refuses", f"{type(error).__name__}: {error}"[:200])
        if found.shape != expected.shape:
            return Outcome("different vectors", f"{found.shape} and {expected.shape}")
        if (expected == 0).all() or not np.isfinite(expected).all():
            return Outcome("only theirs refuses", "no vectors")
        differences = np.abs(found - expected).max(axis=-1)
        if (differences < 1e-5).all():
            return Outcome("equal")
        if mutation.base == "rotary" and (differences[dropped == 0] < 1e-5).all():
            return Outcome("equal, long texts cut with a warning")
        return Outcome("different vectors", str(differences.max()))

    def _ours(self, base: str, directory: Path) -> tuple[np.ndarray, np.ndarray]:
        from jina_jax import JinaEmbeddings
        from jina_jax.convert import open_checkpoint

        config = open_checkpoint(directory).config
        model = JinaEmbeddings.from_pretrained(directory)
        key = (base if base in ("dense", "rotary", "bert") else "", config)
        if key not in self._vectors:
            vectors, info = model.encode(_texts(), return_info=True)
            self._vectors[key] = vectors, info.dropped
        return self._vectors[key]


def _texts() -> list[str]:
    from sbert import TEXTS

    return [*TEXTS, "The train to the sea is late again today because of snow. " * 2]


def _refusal(mutation: Mutation, message: str) -> Outcome:
    names = [key for key in mutation.keys if isinstance(key, str)]
    named = any(name in message for name in names) or Path(mutation.file).name in message
    return Outcome("refused by name") if named else Outcome("field not named", message)


def main(count: int, seed: int) -> int:
    """Run mutations, print what they led to; return 1 if one led to what must not be."""
    rng, counts, bad = random.Random(seed), collections.Counter(), 0
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as root:
            fuzz = Fuzz(Path(root))
            for _ in range(count):
                mutation, outcome = fuzz.run(rng)
                counts[outcome.kind] += 1
                if outcome.kind in BAD:
                    bad += 1
                    print(f"{outcome.kind}: {mutation}\n  {outcome.detail}", flush=True)
    finally:
        logging.disable(logging.NOTSET)
    print(f"{count} mutations, seed {seed}: {dict(counts.most_common())}")
    return 1 if bad else 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers + [2000, 0][len(numbers) :])))
