"""Bulk jobs with models of other layouts: their vectors are those of ``encode``."""

import json
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign import save, write, xlm_roberta_config, xlm_roberta_tensors
from tiny import write_tiny

from jina_jax.bulk import job
from jina_jax.bulk.stores import Store
from jina_jax.bulk.verify import verify

SIZE = {"vocab": 120, "width": 16, "layers": 1, "heads": 2, "inner": 32, "positions": 66}
TEXTS = ["hello world", "the sea", "of 40 characters and more, " * 2, "cut " * 40, "a"]
KINDS = ("Transformer", "Pooling", "Dense")
DENSE = {
    "modules.json": [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(KINDS, ("", "1_Pooling", "2_Dense"), strict=True))
    ],
    "2_Dense/config.json": {"in_features": 16, "out_features": 8, "bias": True},
    "config_sentence_transformers.json": {
        "prompts": {"query": "query: "},
        "default_prompt_name": "query",
    },
}


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))


@pytest.fixture(params=["plain", "dense", "classifier"])
def directory(request, tmp_path):
    """XLM-R with mean pooling: alone, with a map behind the mean, with a head that is not used."""
    root = write_tiny(tmp_path / "model")
    tensors = xlm_roberta_tensors(SIZE, pooler=False)
    if request.param == "classifier":
        head = {"classifier.out_proj.bias": np.zeros(1, np.float32)}
        tensors = {**{f"roberta.{key}": value for key, value in tensors.items()}, **head}
    write(root, xlm_roberta_config(SIZE), tensors)
    put(root, {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True}})
    if request.param == "dense":
        put(root, DENSE)
        shapes, draw = {"weight": (8, 16), "bias": 8}, np.random.default_rng(0).standard_normal
        weights = {f"linear.{name}": draw(own).astype(np.float32) for name, own in shapes.items()}
        save(root / "2_Dense" / "model.safetensors", weights)
    return root


def computed(model, directory, tmp_path, **options):
    """Return the numbers of rows and the vectors of a job, whose output is verified."""
    source, store = tmp_path / "a.parquet", Store(str(tmp_path / "-".join(["out", *options])))
    pq.write_table(pa.table({"id": list(range(len(TEXTS))), "body": TEXTS}), source)
    settings = job.resolve(directory, text=["body"], id="id", **options)
    plan = job.plan([str(source)], store, settings, directory, name="m")
    job.work(model, plan, store, [0])
    assert verify(store, model, sample=3) == []
    table = pq.read_table(f"{store.url}/{plan.name(0)}.parquet")
    return table["id"].to_numpy(), np.array(table["embedding"].to_pylist(), np.float32)


def test_vectors_are_those_of_encode(directory, tmp_path):
    """Cut, whole and by chunk, with the prompt that is the model's default."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is a classifier")
        model = job.load(directory, job.resolve(directory, text=["body"]))
    with pytest.warns(UserWarning, match="cut"):
        whole = model.encode(TEXTS)
    _, found = computed(model, directory, tmp_path)
    np.testing.assert_allclose(found, whole, atol=2e-6)
    with pytest.warns(UserWarning, match="cut"):
        few = model.encode(TEXTS, truncate_dim=4, normalize_embeddings=False)
    _, found = computed(model, directory, tmp_path, truncate_dim=4, normalize=False)
    np.testing.assert_allclose(found, few, atol=2e-6)
    ids, found = computed(model, directory, tmp_path, chunks=9)
    chunks = model.encode_chunks(TEXTS[2], 9).embeddings
    assert len(chunks) > 2
    np.testing.assert_allclose(found[ids == 2], chunks, atol=2e-6)
