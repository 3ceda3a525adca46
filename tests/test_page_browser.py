"""The server's pages in Chromium: what they show, by keyboard, at 360 px, in the dark."""

import shutil
import subprocess
import threading

import numpy as np
import pytest

from jina_jax import JinaEmbeddings, serving

api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium"),
]

NARROW = {"width": 360, "height": 740}
KEY = "secret"
PASSAGE, QUERY = "retrieval.passage", "retrieval.query"
LONG = "x" * 3000


@pytest.fixture(scope="module")
def model():
    return JinaEmbeddings.from_pretrained("tiny", dtype="float32")


@pytest.fixture(scope="module")
def server(model):
    with serving.run(model, warmup_length=32, served_names=("tiny",)) as server:
        yield server


@pytest.fixture
def visit(open_page, server):
    def visit(path="/", *, own=None, **options):
        return open_page(f"{(own or server).url}{path}", **options)

    visit.messages = open_page.messages
    return visit


@pytest.fixture
def page(visit):
    """The page with its example, embedded and searched."""
    page = visit()
    page.wait_for_selector("#found li")
    return page


def texts_of(page):
    return page.input_value("#texts").split("\n")


def wait_until(page, expression):
    """Wait for a condition. Playwright's own way evaluates strings, which the policy forbids."""
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"not within 10 seconds: {expression}")


def embed(page, texts):
    page.evaluate("shown = null")
    page.fill("#texts", "\n".join(texts))
    page.click("#embed")
    wait_until(page, "shown !== null")
    page.wait_for_load_state("networkidle")


def similarity(page):
    return float(page.inner_text("#heat-value").partition(":")[0])


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_example_is_embedded(page, model):
    texts = texts_of(page)
    assert len(texts) == 12
    assert page.inner_text("#n") == "12"
    ids = model.tokenizer.encode([model.config.prompt(PASSAGE) + text for text in texts])
    tokens = sum(map(len, ids))
    assert int(page.inner_text("#tokens")) == tokens
    assert page.inner_text("#d") == "192"
    assert page.inner_text("#ms").endswith(" ms")


def test_heat_map_has_the_cosines(page, model):
    vectors = model.encode(texts_of(page), task=PASSAGE)
    expected = vectors @ vectors.T
    np.testing.assert_allclose(page.evaluate("shown.similarities"), expected, atol=1e-5)
    page.focus("#heat")
    assert similarity(page) == 1
    press(page, "ArrowRight", "ArrowRight", "ArrowDown")
    assert similarity(page) == pytest.approx(expected[1, 2], abs=6e-4)
    assert "2 Der Zug" in page.inner_text("#heat-value")
    assert "3 El tren" in page.inner_text("#heat-value")
    press(page, *["ArrowDown"] * 20)
    assert similarity(page) == pytest.approx(expected[11, 2], abs=6e-4)


def test_heat_map_is_painted_and_answers_the_pointer(page):
    sizes = page.evaluate("heatSizes()")

    y, step = sizes["top"] + 3.15 * sizes["cell"], sizes["cell"]
    xs = [sizes["left"] + (own + 0.15) * step for own in (5, 9)]
    script = """([xs, y]) => {
      const canvas = document.getElementById("heat");
      const row = canvas.getContext("2d").getImageData(0, y, canvas.width, 1).data;
      return xs.map(x => [...row.slice(4 * Math.round(x), 4 * Math.round(x) + 3)]);
    }"""
    near, far = page.evaluate(script, [xs, round(y)])
    assert sum(far) - sum(near) > 200  # in the light, dark cells are similar
    page.hover("#heat", position={"x": xs[0], "y": y})
    value = page.evaluate("shown.similarities[3][5]")
    assert similarity(page) == pytest.approx(value, abs=6e-4)


def test_table_has_the_values(page):
    page.click("#values summary")
    page.wait_for_selector("#table tbody td")
    rows = page.eval_on_selector_all(
        "#table tbody tr",
        "rows => rows.map(r => [...r.querySelectorAll('td')].map(c => c.innerText))",
    )
    found = np.array(rows, float)
    np.testing.assert_allclose(found, page.evaluate("shown.similarities"), atol=6e-3)


def test_map_has_the_principal_components(page, model):
    vectors = model.encode(texts_of(page), task=PASSAGE).astype(np.float64)
    centred = vectors - vectors.mean(0)
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)
    found = np.array(page.evaluate("shown.vectors.map(place)"))
    np.testing.assert_allclose(np.abs(found), np.abs(centred @ axes[:2].T), atol=2e-3)
    share = (scales[:2] ** 2).sum() / (scales**2).sum()
    assert f"{round(100 * share)} %" in page.inner_text("#share")


def test_labels_of_the_map_do_not_overlap(page):
    boxes = page.eval_on_selector_all(
        "#map text",
        "all => all.map(t => t.getBoundingClientRect()).map(b => [b.x, b.y, b.right, b.bottom])",
    )
    assert len(boxes) >= 8
    for number, (x, y, right, bottom) in enumerate(boxes):
        for left, top, end, base in boxes[:number]:
            assert min(right, end) <= max(x, left) + 1 or min(bottom, base) <= max(y, top) + 4


def test_search_ranks_passages_by_the_query_adapter(page, model):
    texts = texts_of(page)
    page.fill("#query", "pet on furniture")
    press(page, "Enter")
    wait_until(page, "shown.query?.text === 'pet on furniture'")
    scores = model.encode(texts, task=PASSAGE) @ model.encode("pet on furniture", task=QUERY)
    order = np.argsort(-scores)[:10]
    found = page.eval_on_selector_all(
        "#found li", "all => all.map(row => [row.children[1].innerText, row.children[3].innerText])"
    )
    assert [text for _, text in found] == [texts[i] for i in order]
    np.testing.assert_allclose([float(own) for own, _ in found], scores[order], atol=6e-4)
    assert "sofa" in found[0][1] or "divan" in found[0][1] or "диван" in found[0][1]


def test_dimension_cuts_as_the_server_does(page, model):
    page.focus("#dim")
    press(page, "ArrowLeft", "ArrowLeft")
    assert page.inner_text("#dim-value") == page.inner_text("#d") == "64"
    vectors = model.encode(texts_of(page), task=PASSAGE, truncate_dim=64)
    np.testing.assert_allclose(page.evaluate("shown.similarities"), vectors @ vectors.T, atol=1e-5)
    assert '"dimensions": 64' in page.inner_text("#code")


def test_queries_and_passages_are_one_request(page, model):
    page.select_option("#task", "mixed")
    embed(page, ["? delayed railway", "Der Zug hat Verspätung.", "The cat's on the sofa."])
    tasks = [QUERY, PASSAGE, PASSAGE]
    texts = ["delayed railway", "Der Zug hat Verspätung.", "The cat's on the sofa."]
    vectors = model.encode(texts, task=tasks)
    np.testing.assert_allclose(page.evaluate("shown.similarities"), vectors @ vectors.T, atol=1e-5)
    assert page.locator("#found li").count() == 2  # no queries


@pytest.mark.parametrize("task", [PASSAGE, "mixed", ""])
def test_code_does_what_is_on_the_screen(page, capsys, task):
    pytest.importorskip("requests")
    page.select_option("#task", task)
    embed(page, ["? It's 5 o'clock \\ \"now\"", "$HOME `ls` END", "猫が\u2028眠る", "three"])
    expected = np.array(page.evaluate("shown.vectors.map(own => [...own])"))
    page.check("[value=python]")
    names = {}
    exec(page.text_content("#code"), names)
    np.testing.assert_allclose(names["vectors"], expected, atol=1e-6)
    ranked = page.eval_on_selector_all(
        "#found li", "all => all.map(row => row.children[1].innerText)"
    )
    printed = capsys.readouterr().out.rstrip().split("\n")  # a text has U+2028
    assert [line.split()[0] for line in printed[-len(ranked) :]] == ranked
    page.check("[value=curl]")
    code = page.text_content("#code")
    done = subprocess.run(["bash", "-c", code], capture_output=True, check=True, text=True)
    first = "[" + done.stdout.replace("}{", "},{") + "]"
    found = page.evaluate("(text) => JSON.parse(text)[0].data.map(own => own.embedding)", first)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_code_for_openai(page):
    pytest.importorskip("openai")
    page.check("[value=openai]")
    names = {}
    exec(page.text_content("#code"), names)
    expected = np.array(page.evaluate("shown.vectors.map(own => [...own])"))
    np.testing.assert_allclose(names["vectors"], expected, atol=1e-6)


def test_keyboard_alone_is_enough(page):
    order = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(22):
        press(page, "Tab")
        name = page.evaluate("document.activeElement.id || document.activeElement.name")
        style = "getComputedStyle(document.activeElement).outlineStyle"
        if name and name != "file":  # of which the button beside it has the outline
            assert page.evaluate(style) == "solid", name
        order.append(name)
    expected = [
        "texts",
        "file",
        "example",
        "task",
        "dim",
        "embed",
        "heat",
        "map",
        "query",
        "copy",
        "language",
        "code",
    ]
    assert [own for own in order if own in expected][: len(expected)] == expected
    page.focus("#texts")
    press(page, "Control+a")
    page.keyboard.type("One cat.\nTwo cats.")
    press(page, "Control+Enter")
    wait_until(page, "shown.texts.length === 2")
    page.focus("#map")
    press(page, "ArrowRight")
    assert page.get_attribute("#map", "aria-activedescendant") == "point-1"
    page.evaluate("redraw()")  # as for a search that ends, or another width
    assert page.get_attribute("#map", "aria-activedescendant") == "point-1"
    assert page.inner_text("#map-value") == "2 Two cats."


def test_changed_texts_are_reported(page):
    page.fill("#texts", "Other")
    assert page.inner_text("#count") == "1 text, changed: press Embed"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_telephone_needs_no_horizontal_scrolling(visit, path, scheme):
    page = visit(path, viewport=NARROW, color_scheme=scheme)
    if path == "/":
        page.wait_for_selector("#found li")
        embed(page, [LONG, "x"])
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(own) for own in background[4:-1].split(",")]
    assert (max(channels) < 60) == (scheme == "dark")


@pytest.mark.parametrize("viewport", [NARROW, {"width": 1280, "height": 900}])
def test_nothing_moves(browser, server, viewport):
    context = browser.new_context(viewport=viewport)
    page = context.new_page()
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver(list => { for (const own of list.getEntries())"
        " moved += own.value; }).observe({type: 'layout-shift', buffered: true})"
    )
    page.goto(server.url)
    page.wait_for_selector("#found li")
    page.wait_for_timeout(300)
    assert page.evaluate("moved") < 0.01
    context.close()


def test_nothing_is_animated_where_motion_is_reduced(visit):
    page = visit(reduced_motion="reduce")
    page.wait_for_selector("#map g")
    durations = page.evaluate(
        "[...document.querySelectorAll('*')].map(own => getComputedStyle(own))"
        ".map(own => [own.transitionDuration, own.animationName].join())"
    )
    assert set(durations) == {"0s,none"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_axe_finds_no_serious_fault(visit, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(path, color_scheme=scheme)
    if path == "/":
        page.wait_for_selector("#found li")
        page.click("#values summary")
        page.evaluate("document.getElementById('key-row').hidden = false")
    found = axe.Axe().run(page).response["violations"]
    assert [own["id"] for own in found if own["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", b"\xef\xbb\xbfone\r\n\r\n two \n", ["one", "two"]),
        ("a.csv", b'id,Text\n1,"a, ""b""\nc"\n2,d\n', ['a, "b" c', "d"]),
        ("b.csv", b"eins\nzwei,x\n", ["eins", "zwei"]),
        ("a.jsonl", b'"one"\n{"id": 1, "text": "two"}\n', ["one", "two"]),
        ("200.txt", b"one\n" * 250, ["one"] * 250),
    ],
)
def test_files_are_read(page, name, content, texts):
    page.set_input_files("#file", {"name": name, "mimeType": "text/plain", "buffer": content})
    wait_until(page, f"document.getElementById('say').textContent.startsWith('{name}')")
    assert [own.strip() for own in texts_of(page)] == texts
    assert f": {len(texts)} texts" in page.inner_text("#say")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pdf", b"x", "a.pdf: expected .txt, .csv or .jsonl"),
        ("a.txt", b"\xff", "a.txt: expected UTF-8"),
        ("a.txt", b"\n", "a.txt: no texts"),
        ("a.csv", b'a"b,c\n', 'a.csv: expected CSV, got "a\\"b,c\\n"'),
        ("a.jsonl", b'"x"\n{', "a.jsonl: line 2: expected JSON"),
        ("a.jsonl", b'{"id": 1}', "a.jsonl: line 1: expected a string, or an object with one of"),
    ],
)
def test_files_are_refused(page, name, content, message):
    before = page.input_value("#texts")
    page.set_input_files("#file", {"name": name, "mimeType": "text/plain", "buffer": content})
    page.wait_for_selector("#say.bad")
    assert page.inner_text("#say").startswith(message)
    assert page.input_value("#texts") == before


def test_many_texts_are_drawn_up_to_the_bound(page):
    embed(page, [f"Page {number}" for number in range(203)])
    assert page.inner_text("#n") == "203"
    assert "The first 200 of 203 texts." in page.inner_text("#heat-value")
    assert page.locator("#map g").count() == 204  # with the query
    page.focus("#heat")
    press(page, "ArrowUp")
    assert page.inner_text("#heat-value").startswith("1.000: 1 Page 0")


@pytest.mark.parametrize("texts", [["one"], ["same", "same"]])
def test_few_texts_are_drawn(page, texts):
    embed(page, texts)
    places = np.array(page.evaluate("shown.vectors.map(place)"))
    np.testing.assert_allclose(places, 0, atol=1e-6)
    assert "NaN" not in page.inner_html("#map") + page.inner_text("main")


def test_errors_are_the_words_of_the_server(page, visit):
    page.fill("#texts", "word " * 9000)
    page.click("#embed")
    page.wait_for_selector("#say.bad")
    assert "input[0]: expected at most 8192 tokens, got 9" in page.inner_text("#say")
    (message,) = visit.messages
    assert "400" in message
    visit.messages.clear()


def test_a_key_is_asked_for_and_in_no_code(model, visit):
    with serving.run(model, warmup_length=32, api_keys=(KEY,)) as own:
        page = visit(own=own)
        page.wait_for_selector("#key-row:not([hidden])")
        assert "authorization: missing" in page.inner_text("#say")
        page.fill("#key", KEY)
        page.click("#embed")
        page.wait_for_selector("#found li")
        for language in ("curl", "python", "openai"):
            page.check(f"[value={language}]")
            code = page.inner_text("#code")
            assert "API_KEY" in code
            assert KEY not in code
        assert (
            page.evaluate("document.cookie + localStorage.length + sessionStorage.length") == "00"
        )
    assert {"401" in message for message in visit.messages} == {True}
    visit.messages.clear()


def test_the_page_waits_for_the_model(model, visit):
    loaded = threading.Event()

    def load():
        loaded.wait()
        return model

    own = serving.Server(load, serving.Settings(warmup_length=32), "127.0.0.1", 0)
    thread = threading.Thread(target=own.run)
    thread.start()
    try:
        page = visit(own=own)
        page.wait_for_selector("#say.bad")
        assert page.inner_text("#say") == "the model is being loaded"
        loaded.set()
        page.wait_for_selector("#found li")
        assert page.inner_text("#say") == "Embedded 12 texts."
    finally:
        loaded.set()
        own.stop()
        thread.join()
    assert {"503" in message for message in visit.messages} == {True}
    visit.messages.clear()


def test_docs_have_all_routes(visit, server):
    page = visit("/docs")
    page.wait_for_selector("#routes[aria-busy=false]")
    found = page.evaluate("fetch('/openapi.json').then(reply => reply.json())")
    text = page.inner_text("main")
    for path, methods in found["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in text
    for name, field in found["components"]["schemas"]["EmbeddingsBody"]["properties"].items():
        assert name in text
        assert field["description"] in text
    for name in found["components"]["schemas"]["Error"]["properties"]:
        assert name in page.inner_text("#errors")
    assert "429" in page.inner_text("#statuses")
    assert server.url in page.inner_text("#clients")
    assert "{MODEL}" not in text


def test_commands_of_the_docs_run(visit):
    page = visit("/docs")
    page.wait_for_selector("#routes[aria-busy=false]")
    commands = page.eval_on_selector_all(
        "#start pre, #routes pre", "all => all.map(p => p.innerText)"
    )
    assert len(commands) == 12
    for command in commands:
        command = command.replace("curl ", "curl --fail --silent --show-error ", 1)
        subprocess.run(["bash", "-c", command], check=True, capture_output=True)
