"""The server's pages: what is served, how they are written, and OpenAPI, of which /docs is made."""

import re
from html.parser import HTMLParser
from importlib import resources

import msgspec
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from jina_jax.serving import Settings, bodies, errors, openapi
from jina_jax.serving.app import make_app
from jina_jax.serving.state import State

PAGES = {"/": "page.html", "/docs": "docs.html"}
CONTROLS = ("input", "select", "textarea", "button", "canvas", "svg", "pre")
VOID = ("input", "meta", "link", "br")
KINDS = (
    bodies.EmbeddingsBody,
    bodies.ClassifyBody,
    bodies.EmbedBody,
    bodies.TokenizeBody,
    bodies.DecodeBody,
)


class Elements(HTMLParser):
    """Reads a page: elements with their attributes, texts, and the elements around them."""

    def __init__(self, text: str):
        super().__init__()
        self.all: list[dict] = []
        self._open: list[dict] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", "around": list(self._open), **dict(attrs)}
        self.all.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    @property
    def ids(self):
        return [own["id"] for own in self.all if "id" in own]

    def script(self):
        return next(own["text"] for own in self.all if own["tag"] == "script")


def source(name):
    return resources.files("jina_jax.serving").joinpath(name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client():
    with TestClient(make_app(State(Settings()))) as client:
        yield client


@pytest.fixture(params=PAGES.values())
def elements(request):
    return Elements(source(request.param))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_served_before_the_model_and_may_reach_this_host_only(client, path):
    reply = client.get(path)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert reply.headers["x-content-type-options"] == "nosniff"
    rules = dict(own.split(" ", 1) for own in reply.headers["content-security-policy"].split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'unsafe-inline'",
        "style-src": "'unsafe-inline'",
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert reply.text == source(PAGES[path])


def test_pages_are_small():
    assert sum(len(source(name).encode()) for name in PAGES.values()) < 60_000


@pytest.mark.parametrize("name", PAGES.values())
def test_nothing_comes_from_another_host(name, elements):
    text = source(name)
    assert not re.search(r"https?:|@import|url\(|[\"'(]//", text)
    for own in elements.all:
        assert "src" not in own
        assert re.match(r"/|#|data:,$", own.get("href", "/")), own["href"]


def test_pages_have_the_same_colours():
    first, second = (re.search(r"^:root.*?^\* \{", source(n), re.M | re.S) for n in PAGES.values())
    assert first
    assert second
    assert first[0] == second[0]


def test_controls_have_labels(elements):
    labels = {own["for"] for own in elements.all if own["tag"] == "label" and "for" in own}
    controls = [own for own in elements.all if own["tag"] in CONTROLS]
    for own in controls:
        is_inside = any(around["tag"] == "label" for around in own["around"])
        is_named = own.get("aria-label") or own.get("id") in labels or is_inside
        if own["tag"] == "button":
            is_named = own["text"].strip()
        if own["tag"] == "pre" and "tabindex" not in own:
            continue
        assert is_named, own
    assert labels <= set(elements.ids)


def test_elements_that_are_named_exist(elements):
    ids = elements.ids
    assert len(set(ids)) == len(ids)
    named = set(re.findall(r'\$\("([\w-]+)"\)', elements.script()))
    for own in elements.all:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            named |= set(own.get(name, "").split())
        if own.get("href", "").startswith("#"):
            named.add(own["href"][1:])
    assert named <= set(ids)


def test_pages_say_their_language_and_fit_narrow_screens(elements):
    assert elements.all[0]["tag"] == "html"
    assert elements.all[0]["lang"] == "en"
    assert any(own.get("content") == "width=device-width, initial-scale=1" for own in elements.all)


def test_docs_name_the_bounds_of_a_server():
    text, own = source("docs.html"), Settings()
    for option, value in (
        ("max-inputs", own.max_inputs),
        ("max-body-mb", own.max_body >> 20),
        ("max-reading-mb", own.max_reading >> 20),
        ("max-reply-mb", own.max_reply >> 20),
        ("max-request-tokens", f"{own.max_request_tokens:,}"),
        ("max-queue-tokens", f"{own.max_queue_tokens:,}"),
        ("timeout", f"{own.timeout:g}"),
        ("read-timeout", f"{own.read_timeout:g}"),
    ):
        assert f"<code>--{option}</code> {value}<" in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind):
    _, schemas = msgspec.json.schema_components([kind])
    for name, field in schemas[kind.__name__]["properties"].items():
        assert field["description"].endswith("."), name


def test_examples_are_bodies():
    posts = [own["post"] for own in openapi.describe(Settings())["paths"].values() if "post" in own]
    kinds = {own.__name__: own for own in KINDS}
    assert len(posts) == 6
    for own in posts:
        content = own["requestBody"]["content"]["application/json"]
        kind = kinds[content["schema"]["$ref"].rpartition("/")[2]]
        bodies.read(msgspec.json.encode(content["example"]), kind, strict=True)


def test_described_routes_exist(client):
    served = {
        (own.path, method)
        for own in client.app.routes
        if isinstance(own, Route)
        for method in own.methods or ()
    }
    found = client.get("/openapi.json").json()
    described = {(path, m.upper()) for path, own in found["paths"].items() for m in own}
    assert described < served
    aliases = {"/", "/docs", "/openapi.json", "/embeddings", "/ping", "/health"}
    assert {path for path, _ in served - described} == aliases | {"/v1/models/{name:path}"} | {
        path
        for path, method in described
        if method == "GET"  # HEAD
    }


def test_all_status_codes_are_described():
    found = openapi.describe(Settings())
    post = found["paths"]["/v1/embeddings"]["post"]
    assert set(post["responses"]) == {"200", *map(str, errors._KINDS)}


def test_the_error_of_openapi_has_the_fields_of_errors():
    schema = openapi.describe(Settings())["components"]["schemas"]["Error"]
    body = errors.invalid("task", "unknown").body("id")
    assert set(schema["properties"]) == set(body)
    assert set(schema["properties"]["error"]["properties"]) == set(body["error"])
