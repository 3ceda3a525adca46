"""OpenAI's batch format: requests, those that are wrong, and answers."""

import base64
import io
import json

import numpy as np
import pytest

from jina_jax.bulk.openai_batch import (
    BadRequest,
    BatchRequest,
    Rules,
    read_batch,
    write_bad,
    write_batch,
)
from jina_jax.bulk.openai_file import answer_file

RULES = Rules(dim=4, tasks=("text-matching", "separation"), task="separation")


def line(custom_id="a", method="POST", url="/v1/embeddings", body=None, **more):
    body = {"model": "m", "input": "x"} | (body or {})
    return json.dumps({"custom_id": custom_id, "method": method, "url": url, "body": body} | more)


def test_requests():
    body = {"input": ["x", ""], "dimensions": 2, "encoding_format": "base64"}
    lines = [(0, line()), (70, " "), (80, line("b", body=body | {"task": "text-matching"}))]
    requests, bad = read_batch(lines, RULES, set())
    assert not bad
    assert requests == [
        BatchRequest(0, "a", ("x",), "m", "separation", 4, "float"),
        BatchRequest(80, "b", ("x", ""), "m", "text-matching", 2, "base64"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "GET"}, "method: expected 'POST', got 'GET'"),
        ({"url": "/v1/chat/completions"}, "url: expected '/v1/embeddings', got '/v1/chat"),
        ({"priority": 1}, "'priority': unknown field; expected custom_id, method, url, body"),
        ({"custom_id": 7}, "custom_id: expected a text, got int"),
        ({"custom_id": ""}, "custom_id: expected a text, got an empty one"),
        ({"body": {"input": []}}, "body.input: expected 1 to 2,048 texts, got 0"),
        ({"body": {"input": ["x"] * 2049}}, "body.input: expected 1 to 2,048 texts, got 2,049"),
        ({"body": {"input": [5, 6]}}, "body.input: expected a text or a list of texts, got token"),
        ({"body": {"input": [[5, 6]]}}, "got token ids"),
        ({"body": {"input": ["x", None]}}, "body.input[1]: expected a text, got none"),
        ({"body": {"input": None}}, "body.input: expected a text, got none"),
        ({"body": {"input": "\ud800"}}, "body.input: expected Unicode text, got the lone surr"),
        ({"body": {"model": None}}, "body.model: expected a text, got none"),
        ({"body": {"dimensions": 5}}, "body.dimensions=5: expected an integer from 1 to 4"),
        ({"body": {"dimensions": True}}, "body.dimensions=True: expected an integer"),
        ({"body": {"encoding_format": "int8"}}, "body.encoding_format: expected 'float' or"),
        ({"body": {"encoding_format": []}}, "body.encoding_format: expected 'float' or"),
        ({"body": {"task": "sts"}}, "body.task: expected one of 'text-matching', 'separation'"),
        (
            {"body": {"prompt": "p"}},
            "'body.prompt': unknown field; expected body.input, body.model",
        ),
        ({"body": {"user": 3}}, "body.user: expected a text, got int"),
    ],
)
def test_a_wrong_request_is_an_error_of_its_own(wrong, message):
    requests, bad = read_batch([(0, line(**wrong)), (9, line("b"))], RULES, set())
    assert [request.custom_id for request in requests] == ["b"]
    assert [own.row for own in bad] == [0]
    assert message in bad[0].message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"custom_id": "a"', "not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"custom_id": "a", "custom_id": "b"}', "expected each field once"),
        ('{"x": NaN}', "NaN is no JSON value"),
    ],
)
def test_lines_that_are_no_requests(text, message):
    requests, bad = read_batch([(3, text)], RULES, set())
    assert not requests
    assert bad[0][:3] == (3, None, "invalid_json_line")
    assert message in bad[0].message


def test_a_body_that_is_none():
    wrong = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": None})
    assert read_batch([(0, wrong)], RULES, set())[1][0].message == (
        "body: expected a JSON object, got none"
    )


def test_models():
    rules = Rules(dim=4, models=("jina-embeddings-v3",))
    requests, bad = read_batch(
        [(0, line()), (1, line("b", body={"model": "jina-embeddings-v3"}))], rules, set()
    )
    assert [request.model for request in requests] == ["jina-embeddings-v3"]
    assert bad[0].code == "model_not_found"
    assert bad[0].message == "body.model: expected one of 'jina-embeddings-v3', got 'm'"


def test_the_second_of_a_custom_id_is_an_error():
    lines = [(0, line()), (1, line()), (2, line("b")), (3, line("c"))]
    requests, bad = read_batch(lines, RULES, {"b"})
    assert [request.row for request in requests] == [0, 3]
    assert [(own.row, own.custom_id, own.code) for own in bad] == [
        (1, "a", "duplicate_custom_id"),
        (2, "b", "duplicate_custom_id"),
    ]
    assert bad[0].message == "custom_id: expected each once, got 'a' again"


VECTORS = np.array([[3, 4, 1e-7, 12], [0, 0.1, 0, 0]], np.float32)
REQUEST = BatchRequest(0, 'a"é', ("x", "y"), "m", None, 2, "float")


def test_answers():
    written = write_batch(REQUEST, VECTORS, 11)
    assert written.endswith(b"}\n")
    assert written.count(b"\n") == 1
    answer = json.loads(written)
    assert list(answer) == ["id", "custom_id", "response", "error"]
    assert answer["id"].startswith("batch_req_")
    assert answer["custom_id"] == 'a"é'
    assert answer["error"] is None
    response = answer["response"]
    assert response["status_code"] == 200
    assert response["request_id"].startswith("req_")
    assert response["body"] == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.6, 0.8]},
            {"object": "embedding", "index": 1, "embedding": [0, 1]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    }
    assert write_batch(REQUEST, VECTORS, 11) == written


def test_decimals_give_the_same_floats_back():
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4000, np.uint32).view(np.float32)
    vectors = bits[np.isfinite(bits)][None]
    request = REQUEST._replace(texts=("x",), dim=vectors.shape[1])
    answer = json.loads(write_batch(request, vectors, 1, normalize=False))
    read = np.array(answer["response"]["body"]["data"][0]["embedding"], np.float32)
    assert read.tobytes() == vectors.tobytes()


def test_base64():
    request = REQUEST._replace(encoding_format="base64", dim=4)
    answer = json.loads(write_batch(request, VECTORS, 11, normalize=False))
    found = [own["embedding"] for own in answer["response"]["body"]["data"]]
    read = [np.frombuffer(base64.b64decode(own), "<f4") for own in found]
    np.testing.assert_array_equal(read, VECTORS)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (VECTORS[:1], r"expected \(2, at least 2\), got \(1, 4\)"),
        (VECTORS[:, :1], r"got \(2, 1\)"),
        (VECTORS * np.float32(np.nan), "not finite"),
    ],
)
def test_vectors_that_are_no_answer(vectors, message):
    with pytest.raises(ValueError, match=message):
        write_batch(REQUEST, vectors, 1)


def test_answers_to_requests_that_are_no_unicode_and_very_long():
    wrong = [(0, line(**{"\ud800": 1})), (1, line("b", url="x" * 1000)), (2, line("\ud800"))]
    _, bad = read_batch(wrong, RULES, set())
    answers = [json.loads(write_bad(own)) for own in bad]
    assert [own["custom_id"] for own in answers] == ["a", "b", None]
    assert "'\\ud800': unknown field" in answers[0]["error"]["message"]
    assert len(answers[1]["error"]["message"]) < 200


def test_answers_to_wrong_requests():
    answer = json.loads(write_bad(BadRequest(5, None, "invalid_json_line", "not valid JSON")))
    assert answer.pop("id").startswith("batch_req_")
    error = {"code": "invalid_json_line", "message": "not valid JSON"}
    assert answer == {"custom_id": None, "response": None, "error": error}


def test_a_file_is_answered(model, tmp_path):
    texts = ["one text", "another", "a third one", "x" * 400]
    lines = [
        line("a", body={"input": texts[0], "task": "classification", "dimensions": 8}),
        "{",
        line("b", body={"input": texts[1:3], "encoding_format": "base64"}),
        line("a"),
        line("c", body={"input": texts[3]}),
    ]
    source = b"".join(own.encode() + b"\n" for own in lines) + b"\xff\n"
    output, errors = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    rules = Rules(64, tuple(model.config.lora_adaptations))
    found = answer_file(model, io.BytesIO(source), output, errors, rules)
    assert found == (2, 4)
    one, two = map(json.loads, output.read_text().splitlines())
    assert [one["custom_id"], two["custom_id"]] == ["a", "b"]
    vector = one["response"]["body"]["data"][0]["embedding"]
    expected = model.encode(texts[0], task="classification", normalize_embeddings=False)[:8]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    data = [own["embedding"] for own in two["response"]["body"]["data"]]
    vectors = np.stack([np.frombuffer(base64.b64decode(own), "<f4") for own in data])
    np.testing.assert_allclose(vectors, model.encode(texts[1:3]), atol=1e-6)
    codes = {json.loads(own)["error"]["code"] for own in errors.read_text().splitlines()}
    assert codes == {"invalid_json_line", "duplicate_custom_id", "context_length_exceeded"}
    with pytest.raises(FileExistsError, match="exists already"):
        answer_file(model, io.BytesIO(source), output, errors, rules)
