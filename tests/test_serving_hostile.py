"""Bad input, load and strangers: what harms a request must not harm another, nor the server."""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import itertools
import json
import threading
import time
import weakref

import msgspec
import numpy as np
import pytest
from devices import Device, texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Wire, client_of, is_error, load, metric, serve

from jina_jax.runtime.requests import Preparation
from jina_jax.serving import Server, bodies, http
from jina_jax.serving.errors import ApiError
from jina_jax.serving.lanes import Lanes, Unit
from jina_jax.serving.metrics import Metrics
from jina_jax.serving.settings import Settings
from jina_jax.serving.state import Phase, State
from jina_jax.serving.watching import Watcher

SAME = {"rtol": 0, "atol": 2e-6}
TEXT = {"input": "a text"}
POSTS = {
    "/v1/embeddings": bodies.EmbeddingsBody,
    "/embeddings": bodies.EmbeddingsBody,
    "/v1/classify": bodies.ClassifyBody,
    "/": bodies.EmbedBody,
    "/embed": bodies.EmbedBody,
    "/embed_all": bodies.EmbedBody,
    "/tokenize": bodies.TokenizeBody,
    "/decode": bodies.DecodeBody,
}


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


@pytest.fixture
def device(model, monkeypatch):
    found = Device(monkeypatch, model.engine)
    yield found
    found.gate.set()


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def started(directory, patched):
    """A server of a model of its own, whose device computes at once."""
    own = load(directory)
    Device(patched, own.engine)
    with serve(own, max_body=1 << 20) as found:
        yield found


@pytest.fixture(scope="module")
def server(started):
    return started[0]


@pytest.fixture(scope="module")
def client(started):
    return started[1]


def lives(client):
    reply = client.post("/v1/embeddings", json=TEXT)
    return reply.status_code == 200 and client.get("/ready").status_code == 200


def refused(reply, status, *words):
    assert reply.status_code == status, reply.text
    assert is_error(reply), reply.text
    detail = reply.json()["detail"]
    assert all(word in detail for word in words), detail


# ---------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"input": NaN}',
        b'{"input": "a", "dimensions": 1e400}',
        b'{"input": "\\ud800", "dimensions": NaN}',
        b'{"input": "a"} more',
        b"[" * 100_000,
        b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"input": "\\ud800", "user": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
        '{"input": "a"}'.encode("utf-16"),
        b"\xef\xbb\xbf" + b'{"input": "a"}',
        b'{"input": "\xff\xfe"}',
        b'{"input": "\xed\xa0\x80"}',
        b'{"input": "\\ud800 and \xff"}',
    ],
    ids=range(15),
)
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_what_is_not_json_in_utf8_is_refused(client, path, body):
    reply = client.post(path, content=body)
    refused(reply, 400)
    assert reply.json()["code"] == "INPUT_INVALID_JSON"
    assert lives(client)


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", b"1e5"])
def test_what_is_no_object_is_refused(client, body):
    refused(client.post("/v1/embeddings", content=body), 422, "object")


WRONG = (
    None,
    True,
    1,
    -1,
    1.5,
    2**70,
    "",
    "unknown",
    [],
    [1],
    [[1]],
    [[[]]],
    ["a", 1],
    {},
    {"a": 1},
)
VALID = {
    bodies.EmbeddingsBody: {"input": "a"},
    bodies.ClassifyBody: {"input": "a", "labels": ["b"]},
    bodies.EmbedBody: {"inputs": "a"},
    bodies.TokenizeBody: {"inputs": "a"},
    bodies.DecodeBody: {"ids": [5]},
}


@pytest.mark.parametrize("path", sorted(POSTS))
def test_values_of_another_type_are_refused_by_the_name_of_their_field(client, path):
    kind = POSTS[path]
    for name in kind.__struct_fields__:
        refusals = 0
        for value in WRONG:
            body = VALID[kind] | {name: value}
            reply = client.post(path, json=body)
            assert reply.status_code in (200, 400, 422), (body, reply.text)
            if reply.status_code != 200:
                assert is_error(reply)
                param = reply.json()["error"]["param"]
                assert param.startswith(name), (body, reply.text)
                refusals += 1
            with contextlib.suppress(msgspec.ValidationError):
                msgspec.convert(body, kind)
                continue
            assert reply.status_code == 422, body
        assert refusals >= 5, name
    for name in VALID[kind]:
        without = {own: value for own, value in VALID[kind].items() if own != name}
        refused(client.post(path, json=without), 422, name, "required")


def test_lists_of_texts_have_bounds(client):
    refused(client.post("/v1/embeddings", json={"input": []}), 422, "empty list")
    refused(client.post("/v1/embeddings", json={"input": ["a"] * 2049}), 400, "2048", "2049")
    reply = client.post("/v1/embeddings", json={"input": ["a"] * 2048})
    assert len(reply.json()["data"]) == 2048
    refused(client.post("/v1/classify", json={"input": ["a"] * 513, "labels": ["b"]}), 400, "512")


@pytest.mark.parametrize("fields", [{}, {"late_chunking": True}, {"task": "separation"}])
def test_an_empty_text_is_a_text(client, fields):
    for empty in ("", [""], ["", "a"]):
        reply = client.post("/v1/embeddings", json={"input": empty, **fields})
        assert reply.status_code == 200 or fields.get("late_chunking"), reply.text
        assert reply.status_code in (200, 422)
    assert lives(client)


def test_20000_tokens_are_refused(client):
    long = {"input": ["a", "ab" * 10_000]}
    refused(client.post("/v1/embeddings", json=long), 400, "input[1]", "128", "20003")
    refused(client.post("/embed", json={"inputs": long["input"]}), 400, "inputs[1]")
    assert client.post("/v1/embeddings", json=long | {"truncate": True}).status_code == 200


@pytest.mark.parametrize("dim", [0, -1, 65, 2**70])
def test_dimensions_that_do_not_exist(client, dim):
    refused(client.post("/v1/embeddings", json=TEXT | {"dimensions": dim}), 422, "from 1 to 64")
    refused(client.post("/embed_all", json={"inputs": "a", "dimensions": dim}), 422, "from 1 to 64")


@pytest.mark.parametrize(
    "task", ["unknown", "none", "retrieval.Query", "", ["unknown"], [None, None]]
)
def test_tasks_that_do_not_exist(client, task):
    reply = client.post("/v1/embeddings", json=TEXT | {"task": task})
    refused(reply, 422, "task")
    assert reply.json()["error"]["param"] == "task"


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]], ["a", [1]]])
def test_token_ids_of_another_vocabulary_are_refused(client, ids):
    reply = client.post("/v1/embeddings", json={"input": ids})
    refused(reply, 422, "check_embedding_ctx_length=False")


def test_of_equal_keys_the_last_one_counts(client):
    body = b'{"input": 5, "dimensions": 3, "input": "a text", "dimensions": 4}'
    reply = client.post("/v1/embeddings", content=body)
    expected = client.post("/v1/embeddings", json=TEXT | {"dimensions": 4})
    assert reply.json() == expected.json()


def test_lone_surrogates_are_replaced_and_counted(client):
    before = metric(client, "jina_jax_replaced_surrogates_total")
    body = b'{"input": ["a \\ud800", "\\udfff\\ud800", "\\ud83d\\ude00"], "\\ud800": 1}'
    reply = client.post("/v1/embeddings", content=body)
    assert reply.status_code == 200
    expected = client.post("/v1/embeddings", json={"input": ["a �", "��", "😀"]})
    assert reply.json()["data"] == expected.json()["data"]
    assert metric(client, "jina_jax_replaced_surrogates_total") == before + 1


LONG = "x" * 500_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (TEXT | {"model": LONG}, "model"),
        (TEXT | {"task": [LONG]}, "task"),
        (TEXT | {"task": LONG}, "task"),
        (TEXT | {"embedding_type": LONG}, "embedding_type"),
        (TEXT | {"prompt_name": LONG}, "prompt_name"),
        ({"input": "a", "labels": {LONG: []}}, "labels"),
    ],
)
def test_errors_are_short_whatever_came(client, body, field):
    reply = client.post("/v1/classify" if "labels" in body else "/v1/embeddings", json=body)
    assert reply.status_code in (400, 422)
    assert is_error(reply)
    assert reply.json()["error"]["param"].startswith(field)
    assert len(reply.content) < 5 * 2100  # the message, its copies, and the field


def test_what_is_not_used_is_not_kept_while_texts_wait(client):
    body = bodies.read(
        json.dumps({"input": "a", "user": LONG}).encode(), POSTS["/embeddings"], strict=True
    )
    assert LONG not in msgspec.structs.asdict(body.body).values()
    reply = client.post("/v1/embeddings", json=TEXT | {LONG: 1, "b": 2})
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "x" * 100 + ", b"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity", "x"])
def test_compressed_bodies_are_refused(client, encoding):
    reply = client.post(
        "/v1/embeddings", content=b"\x1f\x8b", headers={"content-encoding": encoding}
    )
    refused(reply, 415, "content-encoding")


def test_bodies_that_are_too_large(server, client):
    body = json.dumps({"input": "a" * (1 << 20)}).encode()
    refused(client.post("/v1/embeddings", content=body), 413, str(1 << 20))

    with Wire(server) as wire:  # is not asked for what it announces
        wire.send("POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n")
        assert wire.reply().status == 413

    def parts():
        yield from [b" " * 1000] * 1100

    with Wire(server) as wire:
        wire.send("POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for part in parts():
                wire.send(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        reply = wire.reply()
        assert reply.status == 413
        assert is_error(reply)
    assert lives(client)


def test_requests_of_too_many_tokens_are_refused(model, device):
    with serve(model, max_request_tokens=100) as (_, client):
        refused(client.post("/v1/embeddings", json={"input": "a" * 400}), 413, "100 tokens")
        refused(client.post("/v1/embeddings", json={"input": ["a"] * 51}), 413, "100 tokens")
        for path in ("/embed", "/embed_all", "/tokenize"):
            refused(client.post(path, json={"inputs": "a" * 400}), 413, "100 tokens")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["separation", "float", "base64", "windows", "tiny", "text", "Right"]),
    lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=5), own, max_size=3),
    max_leaves=6,
)


@st.composite
def requests(draw):
    """Any bytes, any JSON, or a body that is nearly right, for any route."""
    path = draw(st.sampled_from(sorted(POSTS)))
    kind = POSTS[path]
    nearly = st.fixed_dictionaries({}, optional=dict.fromkeys(kind.__struct_fields__, json_values))
    form = draw(st.sampled_from(("bytes", "json", "nearly", "valid")))
    if form == "bytes":
        return path, draw(st.binary(max_size=50))
    if form == "json":
        return path, json.dumps(draw(json_values)).encode()
    return path, json.dumps((VALID[kind] if form == "valid" else {}) | draw(nearly)).encode()


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.too_slow])
@given(requests())
def test_any_body_gets_a_vector_or_an_error_in_the_one_form(client, request_of):
    path, body = request_of
    reply = client.post(path, content=body)
    assert reply.status_code < 500, reply.text
    assert reply.status_code == 200 or is_error(reply)
    if reply.status_code == 200:
        reply.json()


def test_the_server_lives_after_all_of_this(client):
    assert lives(client)
    assert metric(client, "jina_jax_waiting_tokens") == 0


# ---------------------------------------------------------------- connections


@pytest.fixture(scope="module")
def hasty(directory, patched):
    """A server that does not wait for slow clients."""
    own = load(directory)
    Device(patched, own.engine)
    with serve(own, read_timeout=0.3) as found:
        yield found


@pytest.mark.parametrize("sent", [b"", b"POST /v1", b"POST / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n"])
def test_slow_heads(hasty, sent):
    with Wire(hasty[0], 5) as wire:
        wire.send(sent)
        assert wire.is_closed()
    assert lives(hasty[1])


@pytest.mark.parametrize("rest", [b"", b"\r\n", b"GET /live HT", b"\r"])
def test_slow_heads_after_a_reply(hasty, rest):
    with Wire(hasty[0], 5) as wire:
        wire.post("/v1/embeddings", json.dumps(TEXT).encode())
        assert wire.reply().status == 200
        if rest:
            wire.send(rest)
            assert wire.is_closed()
        else:  # idle connections are kept for longer
            time.sleep(0.5)
            wire.post("/v1/embeddings", json.dumps(TEXT).encode())
            assert wire.reply().status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize(("path", "status"), [("/v1/embeddings", 408), ("/unknown", 404)])
def test_slow_bodies(hasty, framing, path, status):
    with Wire(hasty[0], 5) as wire:
        wire.send(f"POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n")
        wire.send(b"5\r\n" if "chunked" in framing else b'{"inp')
        reply = wire.reply()
        assert reply.status == status
        assert is_error(reply)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):  # a byte now and then does not keep the connection
                wire.send(b"a")
                time.sleep(0.05)
        assert wire.is_closed()
    assert lives(hasty[1])


def test_slow_readers(hasty):
    server, client = hasty
    body = json.dumps({"inputs": ["a" * 100] * 2000, "truncate": True}).encode()
    with Wire(server, 5) as wire:
        wire.socket.setsockopt(1, 8, 4096)  # SO_RCVBUF
        wire.post("/embed_all", body)
        wire.socket.recv(100)
        deadline = time.monotonic() + 10
        while server._uvicorn.server_state.tasks and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not server._uvicorn.server_state.tasks
        assert lives(client)
    assert metric(client, "jina_jax_waiting_tokens") == 0


def test_pipelined_requests_are_answered_in_their_order(server, client):
    with Wire(server) as wire:
        dims = (3, 1, 2)
        for dim in dims:
            wire.post("/v1/embeddings", json.dumps(TEXT | {"dimensions": dim}).encode())
        found = [wire.reply().json["data"][0]["embedding"] for _ in dims]
    assert [len(own) for own in found] == list(dims)


def test_no_more_is_read_from_a_connection_while_many_requests_wait_on_it(model, device):
    def body(dim):
        return json.dumps(TEXT | {"dimensions": dim}).encode()

    with serve(model) as (server, _), Wire(server) as wire:
        device.steps.clear()
        device.gate.clear()
        wire.post("/v1/embeddings", body(1))
        until(lambda: len(device.steps) > 0)
        (connection,) = server._uvicorn.server_state.connections
        until(lambda: connection.cycle.message_event._waiters)  # it is watched, and read, once
        for dim in range(2, 61):
            wire.post("/v1/embeddings", body(dim))
            time.sleep(0.005)
        until(lambda: len(connection.pipeline) >= 16)
        assert len(connection.pipeline) < 30
        device.gate.set()
        found = [wire.reply().json["data"][0]["embedding"] for _ in range(60)]
        assert [len(own) for own in found] == list(range(1, 61))
        assert not connection._cycles


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_others_have_their_turns_between_the_pieces_of_a_reply(version):
    order = []

    def pieces():
        for _ in range(3):
            order.append("piece")
            yield b"a"

    async def other():
        while True:
            order.append("turn")
            await asyncio.sleep(0)

    async def send(message):
        pass

    async def reply():
        task = asyncio.create_task(other())
        await http.Reply(200, {}, pieces()).send({"http_version": version}, send)
        task.cancel()

    asyncio.run(reply())
    assert order.count("piece") == 3
    assert ("piece", "piece") not in itertools.pairwise(order)


def test_short_pieces_of_a_reply_are_joined():
    pieces = [b"%d" % (i % 10) * 10_000 for i in range(20)]
    found = list(http._joined(pieces))
    assert [len(own) for own in found] == [70_000, 70_000, 60_000]
    assert b"".join(found) == b"".join(pieces)
    assert list(http._joined([b"a", b"", b"b"])) == [b"ab"]


def test_http_1_0_gets_its_reply_in_one_piece(server, client):
    body = json.dumps({"input": ["a"] * 1500}).encode()
    with Wire(server) as wire:
        wire.post("/v1/embeddings", body, version="1.0")
        reply = wire.reply()
        assert reply.status == 200
        assert "transfer-encoding" not in reply.headers
        assert len(reply.json["data"]) == 1500
        assert wire.is_closed()


def test_methods_and_paths_that_are_not_served(client):
    for method in ("GET", "PUT", "OPTIONS", "DELETE", "HEAD"):
        reply = client.request(method, "/v1/embeddings")
        assert reply.status_code == 405
        assert reply.headers["allow"] == "POST"
        assert method == "HEAD" or is_error(reply)
    assert client.head("/live").status_code == 200
    assert client.head("/live").content == b""
    for path in ("/unknown", "/v1/embeddings/", "/%ff", "/v1/../v1/x", "/v1/embeddings%00"):
        refused(client.post(path, json=TEXT), 404, "no such route")
    assert "embedding" in client.post("/v1/embeddings?a=b", json=TEXT).text


def test_bytes_that_are_not_http(server, client):
    for sent in (
        b"\x16\x03\x01\x02\x00\x01" * 20,
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nA\x00: b\r\n\r\n",
    ):
        with Wire(server) as wire:
            wire.send(sent)
            reply = wire.reply()
            assert reply.status == 400
            assert is_error(reply)
    assert lives(client)


@pytest.mark.parametrize(
    "head", [b"X: " + b"a" * (1 << 20), b"".join(b"X%d: b\r\n" % i for i in range(50_000))]
)
def test_very_long_heads_are_refused(server, client, head):
    with Wire(server) as wire:
        with contextlib.suppress(ConnectionError):
            wire.send(b"GET /live HTTP/1.1\r\nHost: a\r\n" + head)
        with contextlib.suppress(ConnectionError):  # it may be gone with what was not read
            reply = wire.reply()
            assert reply.status == 431
            assert is_error(reply)
        assert wire.is_closed()
    assert lives(client)


def test_an_upgrade_is_not_offered_and_does_no_harm(server):
    body = json.dumps(TEXT).encode()
    with Wire(server) as wire:  # as Java's client asks for HTTP/2
        wire.post("/v1/embeddings", body, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
        assert wire.reply().status == 200


def test_strange_headers(server, client):
    with Wire(server) as wire:
        for value in (b"\xff\xfe", b"a" * 1000, b"", b"\t a \t"):
            wire.send(b"POST /v1/embeddings HTTP/1.1\r\nX-Request-Id: " + value)
            wire.send(b"\r\nTraceparent: \xe9\r\nContent-Length: 14\r\n\r\n" + b'{"input": "a"}')
            reply = wire.reply()
            assert reply.status == 200
            assert 1 <= len(reply.headers["x-request-id"]) <= 128
    assert lives(client)


# ---------------------------------------------------------------- load


def in_threads(count, call):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_concurrent_mixed_requests_get_the_vectors_of_encode(directory):
    own = load(directory)
    words = ["a", "query", "some more words", "", "ÄÖ", "a b c d e f"]
    tasks = [None, "separation", "classification", "text-matching"]
    with serve(own) as (_, client):

        def embed(number):
            given = [words[(number + i) % len(words)] + str(number) for i in range(number % 5 + 1)]
            fields = {"input": given, "task": [tasks[(number + i) % 4] for i in range(len(given))]}
            reply = client.post("/v1/embeddings", json=fields)
            return fields, [row["embedding"] for row in reply.json()["data"]]

        found = in_threads(64, embed)
    for fields, vectors in found:
        expected = own.encode(fields["input"], task=fields["task"])
        np.testing.assert_allclose(vectors, expected, **SAME)


def test_overload_is_refused_with_429_and_what_is_accepted_is_right(model, device):
    given = [f"text number {i}" for i in range(100)]
    with serve(model, max_queue_tokens=60) as (_, client):
        device.gate.clear()

        def embed(number):
            return client.post("/v1/embeddings", json={"input": given[number]})

        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            replies = pool.map(embed, range(100))
            until(lambda: metric(client, "jina_jax_requests_total") >= 90)
            device.gate.set()
            replies = list(replies)
        by_status = {own.status_code for own in replies}
        assert by_status == {200, 429}
        expected = model.encode(given)
        for number, reply in enumerate(replies):
            if reply.status_code == 200:
                found = reply.json()["data"][0]["embedding"]
                np.testing.assert_allclose(found, expected[number], **SAME)
            else:
                assert is_error(reply)
                assert int(reply.headers["retry-after"]) >= 1
                assert reply.json()["error"]["type"] == "rate_limit_error"
        assert metric(client, "jina_jax_waiting_tokens") == 0
        assert lives(client)


def test_a_long_text_is_not_waited_for_while_it_is_tokenised(model, device, monkeypatch):
    began, gate, tokenize = threading.Event(), threading.Event(), Preparation.tokenize

    def slowly(self, requests):
        if any("monster" in own.text for own in requests):
            began.set()
            assert gate.wait(20)
        return tokenize(self, requests)

    monkeypatch.setattr(Preparation, "tokenize", slowly)
    long = "monster " * 2049  # a character more than a block
    chunked = {"input": ["monster " * 256, "b"], "late_chunking": True, "long_text": "windows"}
    with serve(model) as (_, client), concurrent.futures.ThreadPoolExecutor(2) as pool:

        def embed(fields):
            reply = client.post("/v1/embeddings", json=fields)
            assert reply.status_code == 200, reply.text
            return [row["embedding"] for row in reply.json()["data"]]

        for fields in ({"input": ["a", long, "b"], "long_text": "windows"}, chunked):
            began.clear()
            gate.clear()
            found = pool.submit(embed, fields)
            assert began.wait(20)
            for number in range(3):
                embed({"input": ["a", f"text {number}"]})
            assert not found.done()
            gate.set()
            assert len(found.result()) == len(fields["input"])
        expected = model.encode(["a", long, "b"], long_text="windows")
        found = embed({"input": ["a", long, "b"], "long_text": "windows"})
        np.testing.assert_allclose(found, expected, **SAME)


def test_texts_of_clients_that_left_are_not_kept_until_others_are_tokenised():
    lanes, left = Lanes(), Waiting(0)
    lanes.put([(units(left, 5), True, None)])
    left.ended = True
    waiting = weakref.ref(left)
    del left
    lanes.put([(units(Waiting(1), 5), True, None)])
    gc.collect()
    assert waiting() is None


def test_texts_of_clients_that_left_are_dropped_before_packing(model, device):
    with serve(model) as (server, client):
        device.steps.clear()
        device.gate.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            first = pool.submit(client.post, "/v1/embeddings", json={"input": "stays"})
            until(lambda: len(device.steps) == 1)
            with contextlib.ExitStack() as stack:
                for number in range(5):
                    wire = stack.enter_context(Wire(server))
                    wire.post("/v1/embeddings", json.dumps({"input": f"leaves {number}"}).encode())
                until(lambda: server.state.loaded.scheduler.waiting_tokens > 20)
            until(lambda: server.state.metrics.dropped.labels("disconnect")._value.get() == 5)
            device.gate.set()
            assert first.result().status_code == 200
        assert client.post("/v1/embeddings", json={"input": "last"}).status_code == 200
        assert [len(step) for step in device.steps] == [1, 1]
        assert metric(client, "jina_jax_waiting_tokens") == 0


@pytest.fixture
def blocked(model, monkeypatch):
    """An event that texts to tokenise or decode on their own wait for; those that were begun."""
    gate, began = threading.Event(), []
    encode, decode = model.tokenizer.encode_with_offsets, model.tokenizer.decode

    def waits(call, given, **options):
        began.append(given)
        assert gate.wait(20)
        return call(given, **options)

    monkeypatch.setattr(
        model.tokenizer, "encode_with_offsets", functools.partial(waits, encode), raising=False
    )
    monkeypatch.setattr(model.tokenizer, "decode", functools.partial(waits, decode), raising=False)
    yield gate, began
    gate.set()


def test_one_request_may_wait_whatever_its_size_and_is_tried_again_in_a_second_or_later(
    model, device, blocked
):
    gate, began = blocked
    large = {"input": ["a" * 60] * 3, "inputs": "a" * 60}
    with (
        serve(model, max_queue_tokens=10) as (server, client),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        assert client.post("/v1/embeddings", json=large).status_code == 200
        found = pool.submit(client.post, "/tokenize", json=large)
        until(lambda: began)
        for rate, seconds in ((1e9, "1"), (11.0, "2"), (1e-9, "60")):
            server.state.loaded.scheduler._device.tokens_per_second = rate
            reply = client.post("/v1/embeddings", json=TEXT)
            refused(reply, 429, "22 tokens wait")
            assert reply.headers["retry-after"] == seconds
        gate.set()
        assert found.result().status_code == 200


def test_a_job_is_watched_once_and_no_longer_than_it_takes():
    calls = []

    async def receive():
        calls.append("begun")
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            calls.append("cancelled")
            raise

    async def watch():
        watcher, quick, slow = Watcher(60.0, Metrics()), Waiting(0), Waiting(0)
        for job in (quick, slow):
            job.arrival = time.perf_counter()
            watcher.watch(job, receive)
        watcher.forget(quick)
        await asyncio.sleep(0.5)
        assert calls == ["begun"]
        watcher.watch(quick, receive)
        watcher.forget(slow)
        await asyncio.sleep(0.25)
        assert calls.count("cancelled") == 1

    asyncio.run(watch())


@pytest.mark.parametrize("pause", [0, 0.4])  # later, others are awaited to leave, too
@pytest.mark.parametrize("count", [1, 3])
def test_texts_of_pipelined_requests_are_dropped_when_their_client_leaves(
    model, device, pause, count
):
    def body(text):
        return json.dumps({"input": text}).encode()

    with serve(model) as (server, client):
        scheduler, dropped = server.state.loaded.scheduler, server.state.metrics.dropped
        device.steps.clear()
        device.gate.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            stays = pool.submit(client.post, "/v1/embeddings", json={"input": "stays"})
            until(lambda: len(device.steps) == 1)
            before = scheduler.waiting_tokens
            with Wire(server) as wire:
                wire.post("/v1/embeddings", body("first"))
                time.sleep(pause)
                for number in range(count):
                    wire.post("/v1/embeddings", body(f"behind {number}"))
                until(lambda: scheduler.waiting_tokens > before)
            until(lambda: dropped.labels("disconnect")._value.get() == 1)
            assert scheduler.waiting_tokens == before
            device.gate.set()
            assert stays.result().status_code == 200
        assert client.post("/v1/embeddings", json={"input": "last"}).status_code == 200
        assert [len(step) for step in device.steps] == [1, 1]
        until(lambda: not server._uvicorn.server_state.tasks)


def test_texts_to_tokenise_or_decode_wait_within_the_bound_of_all_that_waits(
    model, device, blocked
):
    gate, began = blocked
    with (
        serve(model, max_queue_tokens=60) as (server, client),
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        scheduler = server.state.loaded.scheduler
        first = pool.submit(client.post, "/tokenize", json={"inputs": "a" * 60})
        until(lambda: began)
        second = pool.submit(client.post, "/decode", json={"ids": [5] * 30})
        until(lambda: scheduler.waiting_tokens == 22 + 30)
        for path, body in (
            ("/tokenize", {"inputs": "a" * 60}),
            ("/decode", {"ids": [5] * 20}),
            ("/v1/embeddings", {"input": "a" * 60}),
        ):
            reply = client.post(path, json=body)
            refused(reply, 429, "52 tokens wait")
            assert int(reply.headers["retry-after"]) >= 1
        assert lives(client)  # there is room for a small one
        assert len(began) == 1  # one at a time
        gate.set()
        assert [own.result().status_code for own in (first, second)] == [200, 200]
        assert scheduler.waiting_tokens == 0


def test_texts_to_tokenise_are_dropped_once_their_clients_left(model, device, blocked):
    gate, began = blocked
    with serve(model) as (server, client):
        scheduler = server.state.loaded.scheduler
        with Wire(server) as first, Wire(server) as second:
            for wire in (first, second):
                wire.post("/tokenize", b'{"inputs": "leaves"}')
            until(lambda: began and scheduler.waiting_tokens == 2 * 4)
        until(lambda: server.state.metrics.dropped.labels("disconnect")._value.get() == 2)
        assert scheduler.waiting_tokens == 0
        gate.set()
        assert client.post("/tokenize", json={"inputs": "last"}).status_code == 200
        assert began == ["leaves", "last"]


def test_texts_to_tokenise_that_wait_too_long_are_answered_504(model, device, blocked):
    gate, began = blocked
    with serve(model, timeout=0.3) as (server, client):
        for path, body in (("/tokenize", {"inputs": "late"}), ("/decode", {"ids": [5]})):
            refused(client.post(path, json=body), 504, "0.3 seconds")
        assert metric(client, "jina_jax_dropped_requests_total") == 2
        assert server.state.loaded.scheduler.waiting_tokens == 0
        gate.set()
        assert client.post("/tokenize", json={"inputs": "a"}).status_code == 200
        assert began == ["late", "a"]


def test_tokens_of_texts_have_bounds_of_size_and_number(model, device):
    with serve(model, max_reply=768 * 50, max_request_tokens=200, max_inputs=3) as (_, client):
        refused(client.post("/tokenize", json={"inputs": ["a" * 110] * 2}), 413, "50 tokens")
        assert client.post("/tokenize", json={"inputs": "a" * 110}).status_code == 200
        refused(client.post("/decode", json={"ids": [5] * 201}), 413, "200 tokens")
        refused(client.post("/decode", json={"ids": [[5]] * 4}), 400, "3 lists")
        assert client.post("/decode", json={"ids": [[5] * 60] * 3}).status_code == 200


def test_requests_that_wait_too_long_are_answered_504(model, device):
    with serve(model, timeout=0.3) as (_, client):
        device.gate.clear()
        refused(client.post("/v1/embeddings", json=TEXT), 504, "0.3 seconds")
        assert metric(client, "jina_jax_dropped_requests_total") == 1
        device.gate.set()
        assert lives(client)
        assert metric(client, "jina_jax_waiting_tokens") == 0


def test_a_program_that_is_not_compiled_yet_does_not_keep_others_waiting(
    model, device, monkeypatch
):
    compiled, gate = set(), threading.Event()

    def compile_slowly(programs, threads=1):
        if programs[0].tokens > 32:
            assert gate.wait(20)
        compiled.update(programs)

    with serve(model) as (_, client):
        monkeypatch.setattr(
            model.engine, "is_compiled", lambda own: own.tokens <= 32 or own in compiled
        )
        monkeypatch.setattr(model.engine, "compile", compile_slowly)
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            long = [
                pool.submit(client.post, "/v1/embeddings", json={"input": "long" * size})
                for size in (15, 15, 25)
            ]
            for _ in range(3):
                assert lives(client)
            assert not any(own.done() for own in long)
            gate.set()
            assert [own.result().status_code for own in long] == [200] * 3


# ---------------------------------------------------------------- faults


def test_texts_of_a_step_that_fails_are_tried_one_by_one(model, device):
    given = [f"text {i}" for i in range(9)]
    expected = model.encode(given)
    with serve(model) as (_, client):
        device.steps.clear()

        def rule(step, output):
            if len(step.owners) > 1:
                raise RuntimeError("too much at once")
            return output

        device.rule = rule
        reply = client.post("/v1/embeddings", json={"input": given})
        found = [row["embedding"] for row in reply.json()["data"]]
        np.testing.assert_allclose(found, expected, **SAME)
        assert sum(len(own) for own in device.steps if len(own) == 1) == 9
        assert metric(client, "jina_jax_failed_steps_total") >= 2
        assert client.get("/ready").status_code == 200


def test_other_steps_of_the_same_texts_outlive_one_that_fails(model, device):
    with serve(model, timeout=5) as (_, client):
        calls = iter([True])

        def rule(step, output):
            if next(calls, False):
                raise RuntimeError("once")
            return output

        device.rule = rule
        given = [*"abcdefgh"]  # taken at once, and put into two steps: a row has room for 4
        device.steps.clear()
        reply = client.post("/v1/embeddings", json={"input": given})
        assert reply.status_code == 200, reply.text
        assert [len(own) for own in device.steps] == [4, 1, 1, 1, 1, 4]
        device.rule = lambda step, output: output
        np.testing.assert_allclose(
            [row["embedding"] for row in reply.json()["data"]], model.encode(given), **SAME
        )


def test_a_bad_text_fails_alone(model, device):
    (bad,) = {*model.tokenize("X")} - {*model.tokenize("")} - {*model.tokenize("a")}

    def rule(step, output):
        if (step.batch.input_ids == bad).any():
            raise RuntimeError("a bad text")
        return output

    with serve(model) as (server, client):
        device.rule = rule
        good = [f"t{i}" for i in range(4)]
        device.gate.clear()

        def embed(text):
            return client.post("/v1/embeddings", json={"input": text})

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            replies = [pool.submit(embed, text) for text in [*good, "aX", ["b", "X"]]]
            until(lambda: len(server.state.loaded.scheduler._jobs) == 6)
            device.gate.set()
            *others, one, two = [own.result() for own in replies]
        refused(one, 500, "a bad text")
        refused(two, 500, "a bad text")
        assert {own.status_code for own in others} == {200}
        assert lives(client)
        assert metric(client, "jina_jax_waiting_tokens") == 0


def test_a_vector_that_is_not_finite_fails_its_request_alone(model, device):
    (bad,) = {*model.tokenize("X")} - {*model.tokenize("")} - {*model.tokenize("a")}

    def rule(step, output):
        for row, slot, ids in zip(step.batch.rows, step.batch.slots, texts(step), strict=True):
            if bad in ids:
                output[row, slot, 3] = np.nan
        return output

    with serve(model) as (server, client):
        device.rule = rule
        device.gate.clear()

        def embed(text):
            return client.post("/v1/embeddings", json={"input": ["a", text]})

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            replies = [pool.submit(embed, text) for text in ("b", "X", "c")]
            until(lambda: len(server.state.loaded.scheduler._jobs) == 3)
            device.gate.set()
            first, bad_one, last = [own.result() for own in replies]
        refused(bad_one, 500, "input[1]", "not finite")
        assert (first.status_code, last.status_code) == (200, 200)
        assert lives(client)


def test_errors_beside_the_device_fail_their_requests_alone(model, device, monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault")

    with serve(model, timeout=5) as (server, client):
        scheduler = server.state.loaded.scheduler
        for owner, name in (
            (scheduler._device, "_deliver"),
            (scheduler._device, "_packed"),
            (scheduler, "_tokenize"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, fail)
                refused(client.post("/v1/embeddings", json=TEXT), 500, "a fault")
            assert lives(client)
        assert metric(client, "jina_jax_waiting_tokens") == 0


def test_bodies_together_and_vectors_of_tokens_are_bounded(model, device):
    with serve(model, max_reading=1000, max_reply=64 * 4 * 50) as (server, client):
        with Wire(server) as wire:
            wire.send("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + " " * 899)
            until(lambda: server.state.loaded.reader._bytes == 899)
            reply = client.post("/embed", json={"inputs": "a" * 110})
            refused(reply, 429, "1000 bytes")
            assert reply.headers["retry-after"] == "1"
        until(lambda: server.state.loaded.reader._bytes == 0)
        assert client.post("/embed", json={"inputs": "a" * 110}).status_code == 200
        refused(
            client.post("/embed_all", json={"inputs": ["a" * 110] * 2}), 413, "at most 50 tokens"
        )
        assert client.post("/embed_all", json={"inputs": "a"}).status_code == 200
        assert server.state.loaded.reader._bytes == 0


def test_a_device_that_takes_too_long_is_not_ready_until_it_answers(model, device):
    with serve(model, stall=0.2) as (_, client):
        device.gate.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reply = pool.submit(client.post, "/v1/embeddings", json={"input": "a"})
            until(lambda: client.get("/ready").status_code == 503)
            assert "no result for 0.2 seconds" in client.get("/ready").json()["detail"]
            assert client.get("/live").status_code == 200
            device.gate.set()
            assert reply.result().status_code == 200
        assert client.get("/ready").status_code == 200


def test_a_model_that_is_loaded_too_late_takes_no_requests():
    state = State(Settings())
    state.phase = Phase.DRAINING
    state.become_ready(None)
    assert state.phase is Phase.DRAINING
    with pytest.raises(ApiError, match="ends"):
        state.service()


def test_a_dead_device_ends_the_server(model, device):
    server = Server(lambda: model, Settings(warmup_length=16, served_names=("tiny",)), port=0)
    with concurrent.futures.ThreadPoolExecutor(6) as pool, client_of(server) as client:
        status = pool.submit(server.run)
        until(lambda: server.state.phase is not Phase.LOADING)
        assert lives(client)
        device.gate.clear()

        def embed(number):
            return client.post("/v1/embeddings", json={"input": f"{number}" * 25})

        replies = [pool.submit(embed, number) for number in range(4)]
        until(lambda: len(server.state.loaded.scheduler._jobs) == 4)

        def die(step, output):
            raise RuntimeError("the device is gone")

        device.rule = die
        device.gate.set()
        found = [own.result() for own in replies]
        assert {own.status_code for own in found} <= {500, 503}
        assert 503 in {own.status_code for own in found}
        assert all(is_error(own) for own in found)
        with contextlib.suppress(Exception):
            assert client.get("/ready").status_code == 503
        assert status.result(10) == 1
        assert server.state.phase is Phase.DEAD


# ---------------------------------------------------------------- who is next


class Waiting:
    """A job, as far as lanes know it."""

    def __init__(self, arrival):
        self.arrival, self.ended = arrival, False


def units(job, *sizes):
    return [Unit(job, size, (job.arrival, i)) for i, size in enumerate(sizes)]


def test_small_requests_pass_large_ones_which_get_a_quarter_of_the_steps():
    lanes = Lanes()
    large = Waiting(0)
    lanes.put([(units(large, *[10] * 40), True, None)])
    steps = []
    for number in range(1, 25):
        small = Waiting(number)
        lanes.put([(units(small, 10), False, None)])
        steps.append([unit.job for unit in lanes.take(10)[1]])
    assert [own[0] is large for own in steps] == [False, False, False, True] * 6
    assert lanes.take(10)[1][0].job.arrival == 19  # in the order of arrival, none forgotten


def test_steps_of_small_requests_are_not_filled_up_with_large_ones():
    lanes = Lanes()
    large = Waiting(0)
    lanes.put([(units(large, *[1] * 100), True, None)])
    of_large = []
    for number in range(1, 9):
        lanes.put([(units(Waiting(number), 9), False, None)])
        of_large.append(sum(unit.size for unit in lanes.take(10)[1] if unit.job is large))
    assert of_large == [0, 0, 0, 10, 0, 0, 0, 10]
    assert [unit.job is large for unit in lanes.take(20)[1]] == [False, False]  # what waited


def test_large_requests_take_turns_and_kinds_are_never_mixed():
    lanes = Lanes()
    one, two, other = Waiting(0), Waiting(1), Waiting(2)
    lanes.put([(units(one, 1, 1, 1), True, "a")])
    lanes.put([(units(two, 1, 1, 1), True, "a")])
    lanes.put([(units(other, 1), True, "b")])
    kind, taken = lanes.take(4)
    assert (kind, [unit.job for unit in taken]) == ("a", [one, two, one, two])
    assert [unit.job for unit in lanes.take(4)[1]] == [one, two]
    assert lanes.take(4) == ("b", units(other, 1))
    assert lanes.take(4) == (None, [])


def test_a_unit_above_the_bound_is_taken_alone_and_ended_jobs_are_dropped():
    lanes = Lanes()
    ended, last = Waiting(0), Waiting(1)
    lanes.put([(units(ended, 5, 5), False, None)])
    lanes.put([(units(last, 50, 1), False, None)])
    ended.ended = True
    assert [unit.size for unit in lanes.take(10)[1]] == [50]
    assert [unit.size for unit in lanes.take(10)[1]] == [1]


def test_a_large_request_delays_a_small_one_by_the_steps_in_flight(model, device):
    with serve(model) as (server, client):
        items = server.state.loaded.scheduler._items
        device.steps.clear()
        device.gate.clear()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            large = pool.submit(client.post, "/v1/embeddings", json={"input": ["l" * 25] * 200})
            until(lambda: len(device.steps) == 1)
            small = pool.submit(client.post, "/v1/embeddings", json={"input": "small"})
            until(
                lambda: any(lane for (is_large, _), lane in [*items._lanes.items()] if not is_large)
            )
            device.gate.set()
            assert small.result().status_code == large.result().status_code == 200
        wanted = tuple(model.tokenize("small")[1:-1])
        assert set(device.steps[1]) == {wanted}
        assert sum(map(len, device.steps)) == 201
