"""The examples of docs/integrations/frameworks.md print what the page shows."""

import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

PAGE = Path(__file__).parents[2] / "docs" / "integrations" / "frameworks.md"
TEXT = PAGE.read_text(encoding="utf-8")
TEXTS = re.search(r"```python\n(documents = .*?)```", TEXT, re.DOTALL)[1]
EXAMPLES = {
    "LangChain": "langchain_core",
    "LlamaIndex": "llama_index.core",
    "Haystack": "haystack",
    "Chroma": "chromadb",
    "scikit-learn": "sklearn",
}


def test_all_sections_are_run():
    assert re.findall(r"^## (.*)$", TEXT, re.MULTILINE) == list(EXAMPLES)


@pytest.mark.parametrize("title", EXAMPLES)
def test_example(title, capsys, tmp_path, monkeypatch):
    pytest.importorskip(EXAMPLES[title], reason=f"needs {EXAMPLES[title]}")
    monkeypatch.chdir(tmp_path)
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    [(code, shown)] = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", section, re.DOTALL)
    exec(compile(TEXTS + code, f"{PAGE.name}: {title}", "exec"), {})
    assert capsys.readouterr().out == shown
