"""docs/files.md has the tables of the code."""

import runpy
from pathlib import Path

import pytest

from jina_jax.config import ConfigError
from jina_jax.convert.peft_config import check_peft_config

DOCS = Path(__file__).parents[1] / "docs"
MAKE = runpy.run_path(str(DOCS / "make_files.py"))


def test_page_is_that_of_the_code():
    page = (DOCS / "files.md").read_text(encoding="utf-8")
    assert page == MAKE["page"](), "run python docs/make_files.py"


def test_words_are_about_fields_of_the_code():
    assert MAKE["unknown_words"]() == set()


@pytest.mark.parametrize("name", MAKE["PEFT_REFUSED"])
def test_named_fields_of_peft_are_refused(name):
    with pytest.raises(ConfigError, match=rf"{name}=True: not supported"):
        check_peft_config(Path("adapter_config.json"), {name: True})
