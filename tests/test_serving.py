"""The routes of a server: fields, defaults and replies, as clients of three APIs read them."""

import base64
import dataclasses
import gc
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from serving import load, metric, serve
from tiny import write_tiny

from jina_jax.config import Dense
from jina_jax.serving import Server, bodies
from jina_jax.serving.openapi import describe
from jina_jax.serving.settings import Settings
from jina_jax.serving.state import Phase

TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
TEXTS = ["a query", "", "another text"]
SAME = {"rtol": 0, "atol": 2e-6}
WIDTH = 64


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


@pytest.fixture(scope="module")
def started(model):
    with serve(model) as found:
        yield found


@pytest.fixture(scope="module")
def server(started):
    return started[0]


@pytest.fixture(scope="module")
def client(started):
    return started[1]


def embed(client, **fields):
    reply = client.post("/v1/embeddings", json={"input": TEXTS, **fields})
    assert reply.status_code == 200, reply.text
    return reply.json()


def vectors(client, **fields):
    data = embed(client, **fields)["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    assert {row["object"] for row in data} == {"embedding"}
    return np.array([row["embedding"] for row in data], np.float32)


def refused(reply, status, *words):
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert body["detail"] == body["error"]["message"]
    assert all(word in body["detail"] for word in words), body["detail"]
    return body


# ---------------------------------------------------------------- /v1/embeddings


def test_defaults_are_those_of_jina(client, model):
    reply = embed(client)
    expected = model.encode(TEXTS, normalize_embeddings=True)
    found = np.array([row["embedding"] for row in reply["data"]], np.float32)
    np.testing.assert_allclose(found, expected, **SAME)
    tokens = sum(map(len, model.tokenize(TEXTS)))
    assert reply["usage"] == {"total_tokens": tokens, "prompt_tokens": tokens}
    assert (reply["model"], reply["object"]) == ("tiny", "list")


@pytest.mark.parametrize("given", ["a query", {"text": "a query"}, [{"text": "a query"}]])
def test_an_input_is_a_text_an_object_or_a_list_of_these(client, given, model):
    expected = model.encode(["a query"])
    np.testing.assert_allclose(vectors(client, input=given), expected, **SAME)


@pytest.mark.parametrize("task", [None, *TASKS])
def test_tasks(client, model, task):
    found = embed(client, task=task, input=["ab"])
    expected, info = model.encode(["ab"], task=task, return_info=True)
    np.testing.assert_allclose([found["data"][0]["embedding"]], expected, **SAME)
    assert found["usage"]["total_tokens"] == info.tokens.sum()  # the prompt's included


def test_a_list_of_tasks_names_one_per_text(client, model):
    tasks = ["separation", None, "text-matching"]
    expected = model.encode(TEXTS, task=tasks)
    np.testing.assert_allclose(vectors(client, task=tasks), expected, **SAME)
    reply = client.post("/v1/embeddings", json={"input": TEXTS, "task": tasks[:2]})
    refused(reply, 422, "task", "3 texts", "2")


@pytest.mark.parametrize("name", ["tiny/", "other/", "jinaai/tiny/", "jina-ai/other/"])
def test_a_task_in_the_name_of_the_model(client, model, name):
    found = embed(client, model=f"{name}separation")
    assert found["model"] == f"{name}separation"
    expected = model.encode(TEXTS, task="separation")
    np.testing.assert_allclose([row["embedding"] for row in found["data"]], expected, **SAME)


def test_a_task_that_differs_from_that_of_the_name_is_refused(client):
    fields = {"input": "a", "model": "tiny/separation", "task": "classification"}
    body = refused(client.post("/v1/embeddings", json=fields), 422, "separation", "classification")
    assert body["error"]["param"] == "task"
    embed(client, model="tiny/separation", task="separation")


def test_the_name_of_a_prompt_is_a_task_if_it_is_one_of_its_names(client, model):
    expected = model.encode(TEXTS, task="text-matching")
    np.testing.assert_allclose(vectors(client, prompt_name="text-matching"), expected, **SAME)
    reply = client.post("/v1/embeddings", json={"input": "a", "prompt_name": "unknown"})
    refused(reply, 422, "prompt_name", "unknown")


def test_another_model_is_refused(client):
    reply = client.post("/v1/embeddings", json={"input": "a", "model": "gpt"})
    assert refused(reply, 400, "gpt", "tiny")["code"] == "INPUT_MODEL_NOT_FOUND"


def test_null_is_absence(client):
    nothing = dict.fromkeys(set(bodies.EmbeddingsBody.__struct_fields__) - {"input"})
    assert embed(client, **nothing)["data"] == embed(client)["data"]


@pytest.mark.parametrize("dim", [1, 7, WIDTH])
def test_dimensions_and_normalized(client, model, dim):
    whole = model.encode(TEXTS, normalize_embeddings=False)[:, :dim]
    found = vectors(client, dimensions=dim, normalized=False)
    np.testing.assert_allclose(found, whole, **SAME)
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(client, dimensions=dim), unit, **SAME)


@pytest.mark.parametrize("name", ["embedding_type", "encoding_type", "encoding_format"])
def test_base64(client, name):
    rows = embed(client, **{name: "base64"})["data"]
    found = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in rows]
    np.testing.assert_array_equal(np.array(found), vectors(client))


@pytest.mark.parametrize("dim", [5, WIDTH])
def test_bits(client, dim):
    expected = np.packbits(vectors(client, dimensions=dim) > 0, axis=1)
    found = embed(client, dimensions=dim, embedding_type=["ubinary", "binary", "float"])["data"]
    one = embed(client, dimensions=dim, encoding_type="binary")["data"]
    for row, alone, bits in zip(found, one, expected, strict=True):
        assert row["embedding"].keys() == {"ubinary", "binary", "float"}
        assert row["embedding"]["ubinary"] == bits.tolist()
        assert row["embedding"]["binary"] == alone["embedding"]
        back = (np.array(alone["embedding"]) + 128).astype(np.uint8)  # as llama-index reads it
        np.testing.assert_array_equal(back, bits)


def test_types_of_embeddings_that_differ_are_refused(client):
    fields = {"input": "a", "embedding_type": "float", "encoding_type": "base64"}
    refused(client.post("/v1/embeddings", json=fields), 422, "encoding_type", "float", "base64")
    fields = {"input": "a", "embedding_type": []}
    refused(client.post("/v1/embeddings", json=fields), 422, "embedding_type", "empty list")


def test_late_chunking_is_that_of_the_joined_text(client, model):
    texts = ["first part", "a second", "third"]
    starts = [0, 11, 20]
    spans = [(at, at + len(text)) for at, text in zip(starts, texts, strict=True)]
    expected = model.encode_chunks(" ".join(texts), spans, task="retrieval.passage").embeddings
    found = embed(client, input=texts, late_chunking=True, task="retrieval.passage")
    np.testing.assert_allclose([row["embedding"] for row in found["data"]], expected, **SAME)
    apart = vectors(client, input=texts, task="retrieval.passage")
    assert np.abs(apart - expected).max() > 0.01


def test_long_texts(client, model):
    long = "many words of one text " * 12
    fields = {"input": ["short", long]}
    body = refused(
        client.post("/v1/embeddings", json=fields), 400, "input[1]", "128", "truncate=true"
    )
    assert body["code"] == "INPUT_TOO_LONG"
    for own in ({"truncate": True}, {"long_text": "truncate"}):
        reply = client.post("/v1/embeddings", json=fields | own)
        assert reply.headers["x-truncated"] == "1"
        assert reply.json()["usage"]["total_tokens"] == 128 + len(model.tokenize("short"))
    with pytest.warns(UserWarning, match="cut off"):
        expected = model.encode(fields["input"])
    found = vectors(client, **fields, truncate=True)
    np.testing.assert_allclose(found, expected, **SAME)
    reply = client.post("/v1/embeddings", json=fields | {"long_text": "windows"})
    assert "x-truncated" not in reply.headers
    found = [row["embedding"] for row in reply.json()["data"]]
    expected = model.encode(fields["input"], long_text="windows")
    np.testing.assert_allclose(found, expected, **SAME)


def test_late_chunking_of_too_much_is_refused_unless_in_windows(client, model):
    texts = ["many words of one text"] * 12
    fields = {"input": texts, "late_chunking": True}
    refused(client.post("/v1/embeddings", json=fields), 400, "128", "windows")
    found = vectors(client, **fields, long_text="windows")
    spans = [(23 * i, 23 * i + 22) for i in range(12)]
    expected = model.encode_chunks(" ".join(texts), spans, task=None).embeddings
    np.testing.assert_allclose(found, expected, **SAME)


def test_fields_that_are_not_known_are_named_or_refused(model, client):
    reply = client.post("/v1/embeddings", json={"input": "a", "höhe": 1, "user": "me", "b\r\n": 2})
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "h\\xf6he, b"
    with serve(model, strict=True) as (_, strict):
        reply = strict.post("/v1/embeddings", json={"input": "a", "hight": 1})
        refused(reply, 422, "hight", "dimensions")


def test_ids_of_requests_are_echoed(client):
    given = {"x-request-id": "mine-1", "traceparent": "00-ab-cd-01"}
    for reply in (
        client.post("/v1/embeddings", json={"input": "a"}, headers=given),
        client.post("/v1/embeddings", content=b"{", headers=given),
    ):
        assert reply.headers["x-request-id"] == "mine-1"
        assert reply.headers["traceparent"] == "00-ab-cd-01"
    assert reply.json()["request_id"] == "mine-1"
    ids = [client.post("/embed", json={"inputs": "a"}).headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_large_replies_come_in_pieces(client, model):
    texts = [f"text {i}" for i in range(1200)]
    reply = client.post("/v1/embeddings", json={"input": texts})
    assert reply.headers["transfer-encoding"] == "chunked"
    rows = reply.json()["data"]
    assert [row["index"] for row in rows] == list(range(1200))
    found = [row["embedding"] for row in rows]
    np.testing.assert_allclose(found, model.encode(texts), **SAME)


# ---------------------------------------------------------------- TEI's routes


@pytest.mark.parametrize("path", ["/", "/embed"])
def test_embed(client, model, path):
    def found(**fields):
        reply = client.post(path, json={"inputs": TEXTS, **fields})
        assert reply.status_code == 200, reply.text
        return np.array(reply.json(), np.float32)

    np.testing.assert_allclose(found(), model.encode(TEXTS, normalize_embeddings=True), **SAME)
    expected = model.encode(TEXTS, task="separation", normalize_embeddings=False)
    for fields in ({"task": "separation"}, {"prompt_name": "separation"}):
        np.testing.assert_allclose(found(normalize=False, **fields), expected, **SAME)
    assert found(inputs="a", dimensions=5).shape == (1, 5)
    reply = client.post(path, json={"inputs": "a", "truncation_direction": "Left"})
    refused(reply, 422, "truncation_direction")


def test_vectors_of_tokens(client, model):
    expected = model.encode(TEXTS, output_value="token_embeddings")
    found = client.post("/embed_all", json={"inputs": TEXTS}).json()
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, **SAME)
    found = client.post("/embed_all", json={"inputs": TEXTS, "dimensions": 5}).json()
    np.testing.assert_allclose(found[2], expected[2][:, :5], **SAME)
    for fields in ({"dimensions": 0}, {"dimensions": 65}, {"normalize": True}):
        refused(client.post("/embed_all", json={"inputs": "a", **fields}), 422, *fields)


def test_tokenize_and_decode(client, model):
    (rows,) = client.post("/tokenize", json={"inputs": "a bc"}).json()
    assert [row["id"] for row in rows] == model.tokenize("a bc")
    assert rows[0]["special"]
    assert rows[-1]["special"]
    assert [(row["text"], row["start"], row["stop"]) for row in rows[-3:-1]] == [
        ("b", 2, 3),
        ("c", 3, 4),
    ]
    assert rows[0]["start"] is None
    fields = {"inputs": "a bc", "add_special_tokens": False}
    assert client.post("/tokenize", json=fields).json() == [rows[1:-1]]
    ids = [row["id"] for row in rows]
    assert client.post("/decode", json={"ids": [ids, ids]}).json() == ["a bc", "a bc"]
    for given, field in (([5, 120], "ids"), ([[5], [-1]], "ids[1]"), ([5, [6]], "ids")):
        body = refused(client.post("/decode", json={"ids": given}), 422, field, "expected")
        assert body["error"]["param"] == field


@pytest.mark.parametrize("special", [True, False])
def test_many_tokens_come_in_pieces(client, model, special):
    texts = ["a", "", "b c " * 1300, "d"]
    fields = {"inputs": texts, "add_special_tokens": special}
    reply = client.post("/tokenize", json=fields)
    assert reply.headers["transfer-encoding"] == "chunked"
    ids = [[row["id"] for row in rows] for rows in reply.json()]
    assert ids == [own if special else own[1:-1] for own in map(model.tokenize, texts)]
    assert client.post("/decode", json={"ids": ids}).json() == ["a", "", texts[2].strip(), "d"]


def test_info(client, model):
    info = client.get("/info").json()
    assert (info["model_id"], info["dimension"], info["tasks"]) == ("tiny", WIDTH, TASKS)
    assert info["max_input_length"] == model.max_seq_length
    own = Settings()
    assert info["max_client_batch_size"] == own.max_inputs
    bounds = ("body", "reading", "reply", "request_tokens", "queue_tokens")
    for name in (*map("max_{}".format, bounds), "timeout", "read_timeout"):
        assert info[name] == getattr(own, name)


# ---------------------------------------------------------------- other routes


def test_classify_is_the_softmax_of_cosines(client, model):
    labels = ["one label", "two"]
    fields = {"input": TEXTS, "labels": labels}
    reply = client.post("/v1/classify", json=fields).json()
    own = model.encode(TEXTS + labels, task="classification", normalize_embeddings=True)
    weights = np.exp(own[:3] @ own[3:].T)
    expected = weights / weights.sum(axis=1, keepdims=True)
    for row, scores in zip(reply["data"], expected, strict=True):
        assert [one["label"] for one in row["predictions"]] == labels
        np.testing.assert_allclose([one["score"] for one in row["predictions"]], scores, rtol=1e-5)
        assert row["prediction"] == labels[scores.argmax()]
    groups = {"size": labels, "other": ["x"]}
    reply = client.post("/v1/classify", json={"input": "a", "labels": groups}).json()
    assert [own["group"] for own in reply["data"][0]["predictions"]] == ["size", "other"]


@pytest.mark.parametrize(
    ("labels", "status"),
    [
        *(([], 422), ({}, 422), ({"a": []}, 422), (["a", "a"], 400), (["a"] * 513, 400)),
        ({"a": [str(i) for i in range(65)]}, 400),
        ({str(i): ["a"] for i in range(9)}, 400),
    ],
)
def test_labels_that_are_refused(client, labels, status):
    refused(client.post("/v1/classify", json={"input": "a", "labels": labels}), status, "labels")


def test_labels_that_are_too_long_are_named(client):
    fields = {"input": ["a", "b"], "labels": ["c", "d" * 200]}
    refused(client.post("/v1/classify", json=fields), 400, "labels[1]")


def test_models(client):
    found = client.get("/v1/models").json()["data"]
    names = [
        f"{name}{task}" for name in ("tiny", "other") for task in ("", *map("/".__add__, TASKS))
    ]
    assert [row["id"] for row in found] == names
    assert client.get("/v1/models/tiny/separation").json()["id"] == "tiny/separation"
    refused(client.get("/v1/models/gpt"), 404, "gpt")


def test_the_description_has_every_field_of_every_body():
    found = describe(Settings(api_keys=("k",)))
    assert found["openapi"].startswith("3.1.")
    assert {"title", "version"} <= found["info"].keys()
    schemas = found["components"]["schemas"]
    for kind in (bodies.EmbeddingsBody, bodies.ClassifyBody, bodies.EmbedBody, bodies.DecodeBody):
        assert schemas[kind.__name__]["properties"].keys() == set(kind.__struct_fields__)
    assert schemas["EmbeddingsBody"]["required"] == ["input"]
    for path, operations in found["paths"].items():
        assert path.startswith("/")
        for operation in operations.values():
            assert {"200", "500", "503"} <= operation["responses"].keys()
            assert all("description" in own for own in operation["responses"].values())
    for reference in references(found):
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in schemas
    assert found["security"] == [{"key": []}]
    assert "security" not in describe(Settings())


def references(value):
    if isinstance(value, list):
        for own in value:
            yield from references(own)
    elif isinstance(value, dict):
        for name, own in value.items():
            if name == "$ref":
                yield own
            else:
                yield from references(own)


def test_the_description_names_every_route(server, client):
    from jina_jax.serving.app import make_app

    found = set(client.get("/openapi.json").json()["paths"])
    pages = {"/", "/docs", "/openapi.json", "/ping", "/health", "/embeddings"}
    routes = {route.path for route in make_app(server.state).routes}
    assert found == routes - pages - {"/v1/models/{name:path}"}


def test_pages_take_nothing_from_other_hosts(client):
    for path in ("/", "/docs"):
        reply = client.get(path)
        assert reply.status_code == 200
        assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_metrics(client):
    before = {
        name: metric(client, f"jina_jax_{name}_total") for name in ("texts", "tokens", "steps")
    }
    tokens = embed(client)["usage"]["total_tokens"]
    counted = {name: metric(client, f"jina_jax_{name}_total") - was for name, was in before.items()}
    assert counted["texts"] == 3
    assert counted["tokens"] == tokens
    assert counted["steps"] >= 1
    assert metric(client, "jina_jax_ready") == 1
    assert metric(client, "jina_jax_waiting_tokens") == 0
    client.post("/v1/embeddings", content=b"{")
    line = 'jina_jax_requests_total{route="/v1/embeddings",status="400"}'
    assert line in client.get("/metrics").text


# ---------------------------------------------------------------- keys


def test_keys(model):
    with serve(model, api_keys=("first", "zwölf")) as (_, client):

        def status(*values, path="/v1/embeddings"):
            headers = [(b"authorization", value) for value in values]
            reply = client.post(path, json={"input": "a", "inputs": "a"}, headers=headers)
            return reply.status_code, reply.json()["code"] if reply.status_code >= 400 else None

        assert status(b"Bearer first") == status(b"bearer  first") == (200, None)
        assert status("Bearer zwölf".encode()) == (200, None)
        assert status() == (401, "AUTH_MISSING_API_KEY")
        assert status(b"first") == status(b"Basic first") == (401, "AUTH_INVALID_FORMAT")
        for wrong in (b"Bearer firs", b"Bearer", b"Bearer first,zw", b"Bearer \xff"):
            assert status(wrong) == (401, "AUTH_INVALID_API_KEY")
        posts = ("/embeddings", "/v1/classify", "/", "/embed", "/embed_all", "/tokenize", "/decode")
        for path in posts:
            assert status(path=path)[0] == 401
        for path in ("/v1/models", "/v1/models/tiny", "/info", "/metrics"):
            assert client.get(path).status_code == 401
        for path in ("/live", "/ready", "/ping", "/health"):
            assert client.get(path).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch):
    from jina_jax.serving import http

    compared = []
    monkeypatch.setattr(http.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    http.check_key({b"authorization": b"Bearer one"}, ("one", "two"))
    assert compared == [(b"one", b"one"), (b"one", b"two")]  # all of them, also after a match


def test_keys_of_file_and_environment(tmp_path, monkeypatch):
    from jina_jax.cli.serve import _keys

    path = tmp_path / "keys"
    path.write_text("one\n\n two \n", encoding="utf-8")
    assert _keys(path) == ("one", "two")
    monkeypatch.setenv("JINA_JAX_API_KEYS", "three, four,")
    assert _keys(None) == ("three", "four")
    assert _keys(path) == ("three", "four", "one", "two")
    monkeypatch.setenv("JINA_JAX_API_KEYS", " ")
    with pytest.raises(ValueError, match="at least one key"):
        _keys(None)


# ---------------------------------------------------------------- options of the command


def server_of(monkeypatch, *options):
    """Return the arguments of ``jina-jax serve``'s server."""
    from jina_jax.cli.serve import serve as command
    from jina_jax.serving import server

    found = []

    def take(load, settings, *address, **options):
        found.append((settings, options))
        raise SystemExit

    monkeypatch.setattr(server, "Server", take)
    assert CliRunner().invoke(command, options).output == ""
    return found[0]


def settings_of(monkeypatch, *options):
    """Return the settings of ``jina-jax serve``'s server."""
    return server_of(monkeypatch, *options)[0]


def test_the_garbage_collector_passes_over_the_model_in_the_process_of_the_command(monkeypatch):
    _, options = server_of(monkeypatch, "--log-requests")
    assert options["log_requests"]
    before, kept = gc.get_freeze_count(), [[] for _ in range(1000)]
    options["on_loaded"]()
    assert gc.get_freeze_count() >= before + len(kept)


def test_what_is_to_be_done_with_a_loaded_model_is_done_before_it_is_ready(model, monkeypatch):
    done = []
    monkeypatch.setattr(model, "warmup", lambda *_, **__: done.append("warm"))
    server = Server(
        lambda: model,
        Settings(served_names=("tiny",)),
        port=0,
        on_loaded=lambda: done.append(server.state.phase) or server.stop(),
    )
    assert server.run() == 0
    assert done == ["warm", Phase.LOADING]


def test_options_are_settings(monkeypatch, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("key", encoding="utf-8")
    expected = {
        "served_names": (("--served-model-name", "one", "--served-model-name", "2"), ("one", "2")),
        "default_task": (("--default-task", "separation"), "separation"),
        "api_keys": (("--api-key-file", str(keys)), ("key",)),
        "max_inputs": (("--max-inputs", "7"), 7),
        "max_body": (("--max-body-mb", "3"), 3 << 20),
        "max_reading": (("--max-reading-mb", "4"), 4 << 20),
        "max_reply": (("--max-reply-mb", "5"), 5 << 20),
        "max_request_tokens": (("--max-request-tokens", "8"), 8),
        "max_queue_tokens": (("--max-queue-tokens", "9"), 9),
        "timeout": (("--timeout", "1.5"), 1.5),
        "read_timeout": (("--read-timeout", "2.5"), 2.5),
        "drain": (("--drain", "0"), 0.0),
        "max_wait": (("--max-wait-ms", "10"), 0.01),
        "warmup_length": (("--warmup-length", "16"), 16),
        "stall": (("--stall", "6"), 6.0),
        "lazy": (("--lazy",), True),
        "strict": (("--strict",), True),
    }
    assert expected.keys() == {own.name for own in dataclasses.fields(Settings)}
    defaults = settings_of(monkeypatch)
    assert defaults == Settings(served_names=("tiny",))
    for name, (options, value) in expected.items():
        assert settings_of(monkeypatch, *options) == dataclasses.replace(
            defaults, **{name: value}
        ), name


def test_options_and_their_defaults_are_documented():
    from jina_jax.cli.options import model_options
    from jina_jax.cli.serve import serve as command

    path = Path(__file__).parents[1] / "docs" / "serving.md"
    flags = path.read_text(encoding="utf-8").partition("## Flags")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in flags.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`(--[\w-]+)`", row[1])]
    of_models = {
        own for option in model_options(lambda: None).__click_params__ for own in option.opts
    }
    known = {option.opts[0] for option in command.params}
    assert known - of_models == set(named)
    defaults = {row[1].strip(" `"): row[2].strip() for row in rows}
    for option in command.params:
        found = re.search(r"\[default: ([\d.]+)\]", option.help or "")
        if found:
            assert defaults[option.opts[0]] == found[1], option.opts


# ---------------------------------------------------------------- other models and settings


def test_a_default_task(model):
    with serve(model, default_task="separation") as (_, client):
        for fields, task in (({}, "separation"), ({"task": "text-matching"}, "text-matching")):
            expected = model.encode(TEXTS, task=task)
            np.testing.assert_allclose(vectors(client, **fields), expected, **SAME)


def test_what_cannot_be_served_is_an_error_with_its_cause(model):
    with (
        pytest.raises(RuntimeError, match="did not start") as error,
        serve(model, default_task="unknown"),
    ):
        pass
    assert "unknown" in str(error.value.__cause__)


def test_two_servers_in_one_process(model):
    with serve(model) as (one, first), serve(model, served_names=("second",)) as (two, second):
        assert one.port != two.port
        np.testing.assert_array_equal(vectors(first), vectors(second))
        assert metric(first, "jina_jax_texts_total") == 3
        assert second.get("/v1/models").json()["data"][0]["id"] == "second"
        model.encode(TEXTS)  # beside them


def test_a_step_may_wait_for_more_texts(model):
    with serve(model, max_wait=0.2) as (_, client):
        start = time.perf_counter()
        vectors(client, input=["a"])
        assert time.perf_counter() - start >= 0.2


def test_many_vectors_and_dense_modules_are_not_computed_in_the_event_loop(model, monkeypatch):
    from jina_jax.serving import service

    threads, weights = [], np.random.default_rng(0).standard_normal((WIDTH, 8), np.float32)
    maps = (Dense(out_features=8, bias=False, activation="tanh"),)
    dense = dataclasses.replace(model.config, dense=maps, matryoshka_dimensions=(8,))

    def project(vectors):
        threads.append(threading.current_thread().name)
        return np.tanh(vectors @ weights) if model.config.dense else vectors

    monkeypatch.setattr(service, "_MOST_VALUES_IN_LOOP", 2 * WIDTH)
    expected = model.encode(TEXTS, normalize_embeddings=False)
    with serve(model) as (_, client):
        monkeypatch.setattr(model, "project", project)
        for count in (3, 2):
            found = vectors(client, input=TEXTS[:count], normalized=False)
            np.testing.assert_allclose(found, expected[:count], **SAME)
        assert [own == "jina-jax-serve" for own in threads] == [False, True]
        monkeypatch.setattr(model, "config", dense)
        found = vectors(client, input=TEXTS[:1], normalized=False)
        np.testing.assert_allclose(found, np.tanh(expected[:1] @ weights), rtol=0, atol=1e-5)
        assert threads[2] != "jina-jax-serve"


def test_classes_are_not_computed_in_the_event_loop(client, monkeypatch):
    from jina_jax.serving import classify

    threads, row = [], classify._row

    def record(*values):
        threads.append(threading.current_thread().name)
        return row(*values)

    monkeypatch.setattr(classify, "_row", record)
    fields = {"input": TEXTS, "labels": [f"label {i}" for i in range(512)]}
    reply = client.post("/v1/classify", json=fields)
    assert [len(own["predictions"]) for own in reply.json()["data"]] == [512] * 3
    assert len(threads) == 3
    assert "jina-jax-serve" not in threads


def test_a_model_without_adapters_and_with_another_pooler(tmp_path):
    plain = load(write_tiny(tmp_path / "plain", emb_pooler="cls")).merged("separation")
    with serve(plain) as (_, client):
        np.testing.assert_allclose(vectors(client), plain.encode(TEXTS), **SAME)
        fields = {"input": TEXTS, "labels": ["one", "two"]}
        assert client.post("/v1/classify", json=fields).status_code == 200
        for own in ({"late_chunking": True}, {"long_text": "windows"}):
            reply = client.post("/v1/embeddings", json={"input": "a", **own})
            refused(reply, 422, *own, "mean")
        refused(
            client.post("/v1/embeddings", json={"input": "a", "task": "separation"}), 422, "task"
        )


def test_a_mesh(directory):
    from jina_jax import make_mesh

    own = load(directory, mesh=make_mesh(2)).merged("separation")
    with serve(own) as (_, client):
        np.testing.assert_allclose(vectors(client), own.encode(TEXTS), **SAME)
