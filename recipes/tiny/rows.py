"""Choose what is distilled: English texts for the teacher, and rows for the student.

    python recipes/tiny/rows.py work

reads what ``texts.py`` wrote and the STS-b train splits beside the repository, and writes

    english.jsonl  {"text": …}: what the teacher encodes
    rows.jsonl     {"text": …, "row": i}: a text in any language that translates (or is) line i
                   of english.jsonl
    pairs.jsonl    {"anchor": …, "positive": …}: some rows again, beside the English text itself
    sample.jsonl   {"language": …, "text": …}: texts of each language, to choose a vocabulary by

A translation is taught the teacher's vector of the English text, so that all languages meet in one
space and the teacher reads each meaning once (arXiv 2004.09813).
"""

from __future__ import annotations

import csv
import json
import os
import random
import sys
from collections import defaultdict
from pathlib import Path

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[3] / "shared"))
STS = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru", "zh")
RARE = {"bn", "hi", "ka", "lv", "th", "ur"}
MOST_ROWS = {"dictionary": 20_000, "general": 30_000, "text": 36_000, "stsb": 12_000}  # a language
# Stories, places, animals, everyday things; all others are mostly about computers.
GENERAL = ("wesnoth", "widelands", "freeciv", "stamps", "cldr", "gbrainy", "kgeography", "kstars")
MOST_GLOSSES = 30_000
MOST_SAMPLED = 6_000  # of a kind, in each language
MOST_PAIRS = 800_000
SHARES = ((1, 0.6), (3, 0.3), (1000, 0.6))  # of the catalogues' texts up to so many words


def main() -> None:
    work, rng = Path(sys.argv[1]), random.Random(0)
    rows: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    english: dict[str, int] = {}
    for line in (work / "parallel.jsonl").open(encoding="utf-8"):
        group = json.loads(line)
        first, source = group.pop("en"), group.pop("source")
        if not keep(first, source, group, rng):
            continue
        english.setdefault(first, len(english))
        kind = source if source in MOST_ROWS else "text"
        if source.startswith(GENERAL):
            kind = "general"
        for code, text in group.items():
            rows[code, kind].append((text, first))
    for line in (work / "glosses.jsonl").open(encoding="utf-8"):
        gloss = json.loads(line)
        for example in gloss["examples"]:
            english.setdefault(example, len(english))
        if len(rows["en", "gloss"]) < MOST_GLOSSES:
            rows["en", "gloss"].append((gloss["positive"], ""))
            english.setdefault(gloss["positive"], len(english))
    first_rows = stsb("en")
    for pair in first_rows:
        for text in pair:
            english.setdefault(text, len(english))
    for code in STS:
        found = {}
        for own, other in zip(stsb(code), first_rows, strict=True):
            found |= dict(zip(own, other, strict=True))
        rows[code, "stsb"] = list(found.items())
    with (work / "english.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in english)
    chosen = list(english.items())
    for (code, kind), found in sorted(rows.items()):
        if kind == "gloss":
            continue
        rng.shuffle(found)
        chosen += [(text, english[first]) for text, first in found[: MOST_ROWS[kind]]]
        print(code, kind, len(found), min(len(found), MOST_ROWS[kind]))
    rng.shuffle(chosen)
    with (work / "rows.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(
            json.dumps({"text": text, "row": row}, ensure_ascii=False) + "\n"
            for text, row in chosen
        )
    texts = list(english)
    pairs = [
        {"anchor": text, "positive": texts[row]}
        for text, row in chosen
        if text != texts[row] and len(texts[row].split()) > 2
    ]
    with (work / "pairs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs[:MOST_PAIRS])
    rows["en", "text"] = [(text, text) for text in english]
    rng.shuffle(rows["en", "text"])
    with (work / "sample.jsonl").open("w", encoding="utf-8") as file:
        for (code, _), found in sorted(rows.items()):
            most = MOST_SAMPLED * (3 if code == "en" else 1)
            for text, _ in found[:most]:
                row = {"language": code, "text": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(english):,} English texts, {len(chosen):,} rows")


def keep(text: str, source: str, group: dict[str, str], rng: random.Random) -> bool:
    """Choose texts: natural ones, and more of those in languages that have few."""
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
