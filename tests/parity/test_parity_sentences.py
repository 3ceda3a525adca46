"""Boundaries of sentences, in public sentences joined to paragraphs, beside those of pysbd.

The sentences are those of Tatoeba and of the STS benchmark, one per line; those that the line says
to be several (a mark and white space inside) are left out. F1 is over the ends inside a paragraph.
``pytest -n 0 -s -m parity tests/parity/test_parity_sentences.py`` prints the table; pysbd
(``pip install pysbd``) is compared where it is installed.
"""

import csv
import importlib.util
import re
import warnings
from pathlib import Path

import pytest

from jina_jax.text.sentences import chunk_by_sentences

pytestmark = pytest.mark.parity

# Language → its file in ../shared/eval.
TATOEBA = {"bn": "ben", "el": "ell", "fi": "fin", "fr": "fra", "ja": "jpn", "ko": "kor"}
TATOEBA |= {"nl": "nld", "es": "spa", "uk": "ukr", "vi": "vie"}
STS = ("de", "en", "it", "pl", "pt", "ru", "zh")
UNSPACED = ("ja", "zh")
LEAST = 0.99
_SEVERAL = re.compile(r"[.!?…。！？।;·][\"'»”’)]*\s|[。！？].")
_ENDED = re.compile(r"[.!?…。！？।][\"'»”’」』)]*$")


def sentences(folder: Path, language: str) -> list[str]:
    """Return up to 800 sentences of a language that end with a mark."""
    if language in TATOEBA:
        (path,) = folder.glob(f"tatoeba.*-eng.{TATOEBA[language]}")
        found = path.read_text(encoding="utf-8").splitlines()
    else:
        with (folder / f"stsb-{language}-dev.csv").open(encoding="utf-8", newline="") as file:
            found = [row[0] for row in csv.reader(file)]
    found = [text.strip() for text in found]
    good = [text for text in found if _ENDED.search(text) and not _SEVERAL.search(text)]
    return list(dict.fromkeys(good))[:800]


def paragraphs(found: list[str], language: str, size: int = 8) -> list[tuple[str, set[int]]]:
    """Join sentences, ``size`` at a time; return texts with the ends inside them."""
    glue = "" if language in UNSPACED else " "
    result = []
    for start in range(0, len(found) - size + 1, size):
        text, ends = "", set()
        for sentence in found[start : start + size]:
            text += (glue if text else "") + sentence
            ends.add(len(text))
        result.append((text, ends - {len(text)}))
    return result


def f1(cut, given: list[tuple[str, set[int]]]) -> float:
    right = wrong = missed = 0
    for text, ends in given:
        found = set(cut(text)) - {len(text)}
        right, wrong = right + len(found & ends), wrong + len(found - ends)
        missed += len(ends - found)
    return 2 * right / (2 * right + wrong + missed)


def ours(text: str) -> list[int]:
    return [end for _, end in chunk_by_sentences(text)]


def pysbd_cut(language: str):
    """Return pysbd's ends as a function; None if it is not here or has not the language."""
    if importlib.util.find_spec("pysbd") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pysbd

        try:
            segmenter = pysbd.Segmenter(language=language, clean=False, char_span=True)
        except ValueError:
            return None
    return lambda text: [
        span.start + len(text[span.start : span.end].rstrip()) for span in segmenter.segment(text)
    ]


@pytest.mark.parametrize("language", [*TATOEBA, *STS])
def test_ends_of_sentences(shared, language):
    given = paragraphs(sentences(shared / "eval", language), language)
    assert len(given) >= 10
    found, theirs = f1(ours, given), pysbd_cut(language)
    other = "" if theirs is None else f"{f1(theirs, given):.3f}"
    print(f"{language}  {len(given):>4} paragraphs  F1 {found:.3f}  pysbd {other}")
    assert found >= LEAST
