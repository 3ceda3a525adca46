"""Gradients against PyTorch autograd, on transformers' model with PEFT's adapters."""

import itertools

import jax
import numpy as np
import pytest
from foreign import FOLDERS
from published import SMALL, TASKS, write_published
from theirs import PARITY, load_transformers

from jina_jax.convert import open_checkpoint, write_checkpoint
from jina_jax.convert.layouts import adapted_modules, bindings
from jina_jax.convert.unstacking import peft_keys
from jina_jax.nn.parameters import to_checkpoint
from jina_jax.nn.protocol import REFERENCE
from jina_jax.training.losses import info_nce, triplet_info_nce
from jina_jax.training.micro_batches import Packing, pack
from jina_jax.training.parameters import load_network
from jina_jax.training.step import Encoding, text_objective

pytestmark = PARITY
RELATIVE = 1e-4
TAU = 0.05
ROWS, NEGATIVES = 6, 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("gradients")
    checkpoint = open_checkpoint(write_published(directory / "published", SMALL))
    write_checkpoint(checkpoint, directory / "transformers", "transformers")
    return directory


def texts(columns: int) -> list[list[int]]:
    """Draw the token ids of ROWS rows, of many lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 60, ROWS * columns)
    return [[0, *rng.integers(4, SMALL["vocab"], n).tolist(), 2] for n in lengths]


def our_gradients(directory, tasks, train, columns, loss, micro_batch_tokens):
    checkpoint = open_checkpoint(directory / "published")
    network, trained, frozen = load_network(checkpoint, tasks, train, dtype="float32")
    objective = text_objective(Encoding(network, REFERENCE), loss, columns)
    task_ids = [min(i % columns, len(tasks) - 1) for i in range(ROWS * columns)]
    micro_batches = pack(texts(columns), task_ids, Packing(micro_batch_tokens, (64, 128)), 1)
    value, gradients = jax.jit(jax.value_and_grad(objective))(
        trained, frozen, micro_batches, {}, jax.random.key(0)
    )
    return float(value), to_checkpoint(gradients)


def embed(model, ids):
    """Encode texts in PyTorch, one at a time, without padding: (n, D)."""
    import torch

    rows = [model(input_ids=torch.tensor([row])).last_hidden_state[0].mean(0) for row in ids]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def cross_entropies(queries, documents):
    import torch

    logits = queries @ documents.T / TAU
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(queries)))


def adapted(directory, folder):
    from peft import PeftModel

    base = load_transformers(directory / "transformers")
    model = PeftModel.from_pretrained(base, directory / "transformers" / folder, is_trainable=True)
    return model.eval()


def assert_close(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    scale = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= RELATIVE * scale, name


@pytest.mark.parametrize("micro_batch_tokens", [100_000, 128])
def test_gradients_of_the_retrieval_pair(directory, micro_batch_tokens):
    import torch

    columns = 2 + NEGATIVES
    ours, gradients = our_gradients(
        directory,
        TASKS[:2],
        "adapters",
        columns,
        lambda q, p, n: triplet_info_nce(q, p, n, temperature=TAU),
        micro_batch_tokens,
    )
    query_model, passage_model = (adapted(directory, folder) for folder in FOLDERS[:2])
    ids = texts(columns)
    queries = embed(query_model, ids[::columns])
    passages = embed(passage_model, [row for i, row in enumerate(ids) if i % columns])
    passages = passages.reshape(ROWS, columns - 1, -1)
    positives = passages[:, 0]
    documents = torch.cat([positives, passages[:, 1:].flatten(0, 1)])
    loss = cross_entropies(queries, documents) + cross_entropies(positives, queries)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    models = (query_model, passage_model)
    theirs = [dict(model.named_parameters()) for model in models]
    checked = 0
    checkpoint = open_checkpoint(directory / "published")
    modules = adapted_modules("transformers", checkpoint.config)
    for path, task in itertools.product(modules.keys() - {"pooler"}, range(2)):
        keys = zip(*(peft_keys(path, name) for name in modules[path]), strict=True)
        found_a, found_b = (
            [theirs[task][_parameter(key)].grad.numpy() for key in own] for own in keys
        )
        # Ours is shared by query, key and value, which each have a copy in PEFT.
        assert_close(gradients[f"{path}.lora_a"][task], np.sum(found_a, axis=0).T, f"{path} {task}")
        assert_close(gradients[f"{path}.lora_b"][task], np.concatenate(found_b).T, f"{path} {task}")
        checked += 2
    assert checked == 2 * (len(gradients) - 2)
    assert not gradients["pooler.lora_a"].any()  # which embeddings do not use


def _parameter(key: str) -> str:
    """Name a parameter of a PeftModel as it is in memory: "….lora_A.default.weight"."""
    for name in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"):
        key = key.replace(f".{name}.weight", f".{name}.default.weight")
        if key.endswith(f".{name}"):
            key = f"{key}.default"
    return key


def test_gradients_of_the_whole_network(directory):
    ours, gradients = our_gradients(
        directory, (), "all", 2, lambda q, p: info_nce(q, p, temperature=TAU), 128
    )
    model = load_transformers(directory / "transformers")
    ids = texts(2)
    queries, documents = embed(model, ids[::2]), embed(model, ids[1::2])
    loss = cross_entropies(queries, documents) + cross_entropies(documents, queries)
    loss.backward()
    assert ours == pytest.approx(loss.item(), rel=1e-5)
    theirs = dict(model.named_parameters())
    config = open_checkpoint(directory / "published").config.only(())
    checked = 0
    for binding in bindings("transformers", config, stacked=False):
        if binding.path.startswith("pooler"):
            continue
        for key, mine in zip(binding.keys, binding.split(gradients[binding.path]), strict=True):
            assert_close(mine, theirs[key].grad.numpy(), key)
        checked += 1
    assert checked == len(gradients) - 2
