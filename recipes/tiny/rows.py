"""Choose the texts of distillation: English ones for the teacher, and rows for the student.

    python recipes/tiny/rows.py work

reads the output of ``texts.py`` and the STS-b train splits beside the repository, and writes

    english.jsonl  {"text": …}: the texts that the teacher encodes
    rows.jsonl     {"text": …, "row": i}: a text in any language that translates (or is) line i
                   of english.jsonl, some with a prompt
    pairs.jsonl    {"anchor": …, "positive": …}: some of the rows with the English text itself
    sample.jsonl   {"language": …, "text": …}: texts of each language, for choosing a vocabulary

The target of a translation is the teacher's vector of the English text, so that all languages share
one space and the teacher encodes each meaning once (arXiv 2004.09813).
"""

from __future__ import annotations

import csv
import random
import sys
from collections import defaultdict
from pathlib import Path

from common import SHARED, STS_LANGUAGES, TASKS, read_rows, read_searches, write_rows

RARE = {"bn", "hi", "ka", "lv", "th", "ur"}
# Most rows of each kind per language.
MOST_ROWS = {"dictionary": 20_000, "general": 30_000, "text": 36_000, "stsb": 12_000}
# Stories, places, animals, everyday things; most other texts are about computers.
GENERAL = ("wesnoth", "widelands", "freeciv", "stamps", "cldr", "gbrainy", "kgeography", "kstars")
MOST_GLOSSES = 30_000
MOST_SAMPLED = 6_000  # per kind and language
MOST_PAIRS = 800_000
PROMPTED = 0.15  # share of rows with a prompt of the retrieval pair: no change of meaning
SHARES = ((1, 0.6), (3, 0.3), (1000, 0.6))  # shares of the catalogues' texts, by most words


def main() -> None:
    work, rng = Path(sys.argv[1]), random.Random(0)
    rows: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    english: dict[str, int] = {}
    for group in read_rows(work / "parallel.jsonl"):
        first, source = group.pop("en"), group.pop("source")
        if not keep(first, source, group, rng):
            continue
        english.setdefault(first, len(english))
        kind = source if source in MOST_ROWS else "text"
        if source.startswith(GENERAL):
            kind = "general"
        for code, text in group.items():
            rows[code, kind].append((text, first))
    glosses = []
    for gloss in read_rows(work / "glosses.jsonl"):
        for example in gloss["examples"]:
            english.setdefault(example, len(english))
        if len(glosses) < MOST_GLOSSES:
            glosses.append(gloss["positive"])
            english.setdefault(gloss["positive"], len(english))
    first_rows = stsb("en")
    for pair in first_rows:
        for text in pair:
            english.setdefault(text, len(english))
    for code in STS_LANGUAGES:
        if code == "en":
            continue
        found = {}
        for own, other in zip(stsb(code), first_rows, strict=True):
            found |= dict(zip(own, other, strict=True))
        rows[code, "stsb"] = list(found.items())
    write_rows(work / "english.jsonl", ({"text": text} for text in english))
    chosen = list(english.items())
    for (code, kind), found in sorted(rows.items()):
        rng.shuffle(found)
        chosen += [(text, english[first]) for text, first in found[: MOST_ROWS[kind]]]
        print(code, kind, len(found), min(len(found), MOST_ROWS[kind]))
    texts, held_out = list(english), read_searches(work)
    chosen = [(text, row) for text, row in chosen if held_out.isdisjoint((text, texts[row]))]
    rng.shuffle(chosen)
    prompts = [*filter(None, TASKS.values())]
    prompted = (
        {"text": (rng.choice(prompts) if rng.random() < PROMPTED else "") + text, "row": row}
        for text, row in chosen
    )
    write_rows(work / "rows.jsonl", prompted)
    pairs = [
        {"anchor": text, "positive": texts[row]}
        for text, row in chosen
        if text != texts[row] and len(texts[row].split()) > 2
    ]
    write_rows(work / "pairs.jsonl", pairs[:MOST_PAIRS])
    rows["en", "gloss"] = [(text, text) for text in glosses]
    rows["en", "text"] = [(text, text) for text in english]
    rng.shuffle(rows["en", "text"])
    sample = [
        {"language": code, "text": text}
        for (code, _), found in sorted(rows.items())
        for text, _ in found[: MOST_SAMPLED * (3 if code == "en" else 1)]
    ]
    write_rows(work / "sample.jsonl", sample)
    print(f"{len(english):,} English texts, {len(chosen):,} rows")


def keep(text: str, source: str, group: dict[str, str], rng: random.Random) -> bool:
    """Choose texts: natural ones, and more of those in languages with few texts."""
    words = len(text.split())
    rare = len(RARE & set(group))
    if any(mark in text for mark in "%#{}$@"):
        return False
    if source == "dictionary":
        sentence = words > 3 and text[-1] in ".!?"
        return rng.random() < (1 if rare or len(group) > 1 else 0.8 if sentence else 0.05)
    if source.startswith(GENERAL):
        return True
    share = next(share for most, share in SHARES if words <= most)
    if source == "iso-codes":
        share = 0.1
    return rng.random() < share * (0.6 + 0.25 * rare)


def stsb(code: str) -> list[list[str]]:
    """Read the sentences of STS-b's train split; row i is the same in every language."""
    path = SHARED / "eval" / f"stsb-{code}-train.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [row[:2] for row in csv.reader(file)]


if __name__ == "__main__":
    main()
