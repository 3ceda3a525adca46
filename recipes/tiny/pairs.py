"""Make the adapters' data, and the search evaluation of the retrieval pair.

python recipes/tiny/pairs.py work

retrieval.jsonl       a heading, in any language, and the section below it, in the same language
                      or in English; words and their WordNet gloss; sentences and translations
labelled-*.jsonl      Banking77 (train); WordNet glosses by field; help by program
banking-*.jsonl       Banking77 (train): fifty of its intents (seen), and the others (unseen)
banking/              five folds of Banking77 (train): train-K.jsonl, test-K.jsonl
glosses-test.jsonl    glosses excluded from the adapters' training files
search/               BEIR's form: headings of held-out help pages in nineteen languages, and
                      the English sections below them
search-en/            the same with English headings
"""

from __future__ import annotations

import csv
import random
import sys
from collections import Counter
from pathlib import Path

from common import FOLDS, SHARED, read_rows, read_searches, write_rows
from texts import digest

SECTION = (80, 600)  # characters
UNSEEN = 27  # of 77 intents of Banking77
MOST = {"help": 24_000, "glosses": 12_000, "translations": 8_000}


def main() -> None:
    work, rng = Path(sys.argv[1]), random.Random(0)
    pages = list(read_rows(work / "pages.jsonl"))
    common = Counter(
        heading for page in pages for heading, _ in sections(page["texts"].get("en")).values()
    )
    generic = {heading for heading, count in common.items() if count > 2}
    glosses = list(read_rows(work / "glosses.jsonl"))
    write_search(work, pages, generic)
    held_out = read_searches(work)
    write_retrieval(work, pages, generic, glosses, held_out, rng)
    write_labelled(work, pages, glosses, random.Random(0))


def sections(version: dict | None) -> dict[str, tuple[str, str]]:
    """Return sections by the name of their heading, which all languages share."""
    found = {}
    if version is None:
        return found
    key, heading, body = "title", version["title"], []
    for name, text in version["paragraphs"].items():
        if name in version["headings"]:
            if len(" ".join(body)) >= SECTION[0]:
                found[key] = heading, " ".join(body)[: SECTION[1]]
            key, heading, body = name, text, []
        else:
            body.append(text)
    if len(" ".join(body)) >= SECTION[0]:
        found[key] = heading, " ".join(body)[: SECTION[1]]
    return found


def write_retrieval(work, pages, generic, glosses, held_out, rng) -> None:
    rows: dict[str, list[tuple[str, str]]] = {"help": [], "glosses": [], "translations": []}
    for page in pages:
        if page["held_out"]:
            continue
        english = sections(page["texts"].get("en"))
        english = {k: v for k, v in english.items() if v[0] not in generic}
        for version in page["texts"].values():
            own = sections(version)
            for key in english:  # not in a set's order, which differs between processes
                if key in own:
                    rows["help"].append((own[key][0], rng.choice((own, english))[key][1]))
    for gloss in glosses[len(glosses) // 10 :]:
        rows["glosses"].append((gloss["anchor"], gloss["positive"]))
    for group in read_rows(work / "parallel.jsonl"):
        first, source = group.pop("en"), group.pop("source")
        if len(first.split()) > 6 and source.startswith(("wesnoth", "widelands", "freeciv")):
            rows["translations"].append((rng.choice(sorted(group.values())), first))
    chosen = []
    for kind, found in rows.items():
        found = [pair for pair in found if held_out.isdisjoint(pair)]
        rng.shuffle(found)
        chosen += found[: MOST[kind]]
        print("retrieval", kind, len(found), min(len(found), MOST[kind]))
    rng.shuffle(chosen)
    write_rows(work / "retrieval.jsonl", ({"anchor": a, "positive": b} for a, b in chosen))


def write_search(work, pages, generic) -> None:
    held_out = [
        {code: sections(version) for code, version in page["texts"].items()}
        for page in pages
        if page["held_out"]
    ]
    languages = {code for versions in held_out for code in versions}
    for name, codes in (("search", languages - {"en"}), ("search-en", {"en"})):
        corpus, queries, qrels = {}, {}, []
        for versions in held_out:
            for key, (heading, body) in versions.get("en", {}).items():
                if heading in generic or body in corpus:
                    continue
                corpus[body] = f"d{len(corpus)}"
                for code, own in versions.items():
                    if code in codes and key in own:
                        query = queries.setdefault(own[key][0], f"q{len(queries)}")
                        qrels.append(f"{query}\t{corpus[body]}\t1\n")
        directory = work / name
        (directory / "qrels").mkdir(parents=True, exist_ok=True)
        documents = ({"_id": i, "title": "", "text": text} for text, i in corpus.items())
        write_rows(directory / "corpus.jsonl", documents)
        write_rows(directory / "queries.jsonl", ({"_id": i, "text": t} for t, i in queries.items()))
        lines = ["query-id\tcorpus-id\tscore\n", *dict.fromkeys(qrels)]
        (directory / "qrels" / "test.tsv").write_text("".join(lines), encoding="utf-8")
        print(name, len(queries), "queries", len(corpus), "documents")


def write_labelled(work, pages, glosses, rng) -> None:
    with (SHARED / "eval" / "banking77-train.csv").open(encoding="utf-8", newline="") as file:
        banking = [{"text": r["text"], "label": r["category"]} for r in csv.DictReader(file)]
    write_rows(work / "labelled-banking.jsonl", banking)
    # Separation is measured on intents outside its training data.
    intents = sorted({row["label"] for row in banking})
    unseen = set(rng.sample(intents, UNSEEN))
    for name, wanted in (("seen", set(intents) - unseen), ("unseen", unseen)):
        own = [row for row in banking if row["label"] in wanted]
        write_rows(work / f"banking-{name}.jsonl", own)
    (work / "banking").mkdir(exist_ok=True)
    order = list(range(len(banking)))
    rng.shuffle(order)
    for fold in range(FOLDS):
        test = [banking[i] for i in sorted(order[fold::FOLDS])]
        train = [banking[i] for k in range(FOLDS) if k != fold for i in sorted(order[k::FOLDS])]
        write_rows(work / "banking" / f"train-{fold}.jsonl", train)
        write_rows(work / "banking" / f"test-{fold}.jsonl", test)
    fields = [{"text": g["positive"], "label": f"field {g['label']}"} for g in glosses]
    held = len(fields) // 10
    write_rows(work / "glosses-test.jsonl", fields[:4000])
    write_rows(work / "labelled-glosses.jsonl", fields[held : held + 40_000])
    programs = []
    for page in pages:
        for code, version in page["texts"].items():
            for heading, body in sections(version).values():
                row = {"text": f"{heading}. {body[:200]}", "label": page["page"].split("/")[0]}
                if row["label"] != "shared":
                    programs.append((page["held_out"], digest(code + row["text"]), row))
    programs.sort(key=lambda row: row[1])
    write_rows(
        work / "labelled-help.jsonl", [row for held, _, row in programs if not held][:30_000]
    )
    write_rows(work / "help-test.jsonl", [row for held, _, row in programs if held][:3_000])


if __name__ == "__main__":
    main()
