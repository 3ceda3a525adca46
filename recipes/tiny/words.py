"""Everyday words in random order for the teacher, which catalogues lack.

    python recipes/tiny/words.py WORK

words.jsonl     {"text": …, "lower": …, "language": …}: two to eight words of one language in
                random order, as the student reads them, and in lower case for the teacher

A row of one word teaches little; in rows of several, the pieces of each word are distinguished from
the rest. Words are drawn by their frequency in films, books, news and the web (wordfreq), for Thai
in the Thai National Corpus (pythainlp), and for Georgian, which neither has, in the catalogues. All
are in lower case there: some are given a capital, with one meaning for both forms.
"""

from __future__ import annotations

import collections
import sys
from pathlib import Path

import numpy as np
import wordfreq
from common import read_rows, write_rows
from pythainlp.corpus import tnc
from texts import LANGUAGES

ROWS = 16_000  # per language
ROWS_ENGLISH = 32_000  # the other side of every pair
MOST_WORDS = 30_000
POWER = 0.8  # exponent of the frequency: 0.6 and 0.8 were compared
LENGTHS = (2, 9)  # words, the last exclusive: 4 to 12 taught the same in 1.5 times the time
CAPITALS = 0.25  # share of words; German writes every noun with one
CAPITALS_GERMAN = 0.5
UNSPACED = {"ja", "th", "zh"}


def main() -> None:
    work, rng = Path(sys.argv[1]), np.random.default_rng(0)
    georgian = collections.Counter(
        word.lower()
        for group in read_rows(work / "parallel.jsonl")
        for word in group.get("ka", "").split()
    )
    rows = []
    for code in ("en", *LANGUAGES):
        if code == "ka":
            found = georgian
        elif code == "th":
            found = dict(tnc.word_freqs())
        else:
            found = wordfreq.get_frequency_dict("nb" if code == "no" else code)
        found = {word: n for word, n in found.items() if not any(c.isdigit() for c in word)}
        words = sorted(found, key=lambda word: (-found[word], word))[:MOST_WORDS]
        weights = np.array([found[word] for word in words]) ** POWER
        lengths = rng.integers(*LENGTHS, ROWS_ENGLISH if code == "en" else ROWS)
        drawn = rng.choice(len(words), int(lengths.sum()), p=weights / weights.sum())
        space = "" if code in UNSPACED else " "
        for part in np.split(drawn, np.cumsum(lengths)[:-1]):
            text = space.join(spelled(words[i], code) for i in part)
            rows.append({"language": code, "lower": text})
        print(code, len(found), rows[-1]["lower"])
    rng.shuffle(rows)
    for row in rows:
        words = row["lower"].split(" ")
        share = CAPITALS_GERMAN if row["language"] == "de" else CAPITALS
        for i in np.flatnonzero(rng.random(len(words)) < share):
            words[i] = capital(words[i], row["language"])
        row["text"] = " ".join(words)
    write_rows(work / "words.jsonl", rows)
    print(f"{len(rows):,} rows")


def spelled(word: str, code: str) -> str:
    """wordfreq writes every Greek sigma as σ; at the end of a word it is ς."""
    return word[:-1] + "ς" if code == "el" and len(word) > 1 and word.endswith("σ") else word


def capital(word: str, code: str) -> str:
    first = "İ" if code == "tr" and word.startswith("i") else word[:1].title()
    return first + word[1:]


if __name__ == "__main__":
    main()
