"""Read parallel text from unpacked Debian packages.

    python recipes/tiny/texts.py files work

``files`` has one directory per package (``fetch.py``). Writes into ``work``:

    parallel.jsonl  {"en": …, "source": …, "de": …, …}: an English text and its translations
    pages.jsonl     {"page": …, "held_out": …, "texts": {"de": {"title", "headings", "paragraphs"}}}
    glosses.jsonl   {"anchor": words, "positive": gloss, "examples": […], "label": …} from WordNet

A twelfth of the help pages is held out for the search evaluation: parallel.jsonl has none of their
texts of more than 20 characters, even if another page or a catalogue repeats it.
"""

from __future__ import annotations

import collections
import gzip
import hashlib
import html
import re
import struct
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

from common import write_rows

# The languages of jina-embeddings-v3 by ISO 639-1, with the names that packages use.
LANGUAGES = {
    "ar": ("ar", "ara"),
    "bn": ("bn", "bn_BD", "bn_IN", "ben"),
    "da": ("da", "dan"),
    "de": ("de", "deu"),
    "el": ("el", "ell"),
    "es": ("es", "spa"),
    "fi": ("fi", "fin"),
    "fr": ("fr", "fra"),
    "hi": ("hi", "hi_IN", "hin"),
    "id": ("id", "ind"),
    "it": ("it", "ita"),
    "ja": ("ja", "jpn"),
    "ka": ("ka", "kat"),
    "ko": ("ko", "kor"),
    "lv": ("lv", "lav"),
    "nl": ("nl", "nld"),
    "no": ("nb", "no", "nb_NO", "nor"),
    "pl": ("pl", "pol"),
    "pt": ("pt_BR", "pt", "pt_PT", "por", "pt-BR"),
    "ro": ("ro", "ron"),
    "ru": ("ru", "rus"),
    "sk": ("sk", "slk"),
    "sv": ("sv", "sv_SE", "swe"),
    "th": ("th", "th_TH", "tha"),
    "tr": ("tr", "tr_TR", "tur"),
    "uk": ("uk", "uk_UA", "ukr"),
    "ur": ("ur", "ur_PK", "urd"),
    "vi": ("vi", "vi_VN", "vie"),
    "zh": ("zh_CN", "zh", "zh-CN", "zh_Hans", "zho"),
}
CODES = {name: code for code, names in LANGUAGES.items() for name in names}
LONGEST = 400  # most characters of a text
HELD_OUT = 12  # one page in so many

_TAG = re.compile(r"<[^<>]{1,200}>")
_PLACE = re.compile(r"%(?:\d+\$)?[-+ #0]*[\d.*]*(?:h|l|ll|z)?[a-zA-Z]|%\d|\{\w*\}|\$\{?\w+\}?")
_ACCELERATOR = re.compile(r"[_&~](?=\w)")
_ASIAN_ACCELERATOR = re.compile(r"\s*\([_&~]?[_&~]\w\)")
# In dictionaries: numbers of meanings, word classes, fields, sounds.
_NOTE = re.compile(r"^\s*\d+\.\s*|\([^)]*\)|\[[^]]*\]|<[^>]*>|/[^/]+/|\s\S+\.,\s*$")
_WORD = re.compile(r"[^\W\d_]{2,}")
_CODE_LIKE = re.compile(
    r"^\S*[_/.=<>\\]\S*$|^[A-Z_0-9]+$|^\S*[a-z][A-Z]\S*$|https?:|@\w+\.|\\n|\{\{"
)

Pair = tuple[str, str, str]  # English, language, text


def main() -> None:
    files, work = Path(sys.argv[1]), Path(sys.argv[2])
    work.mkdir(exist_ok=True)
    pages = list(help_pages(files))
    held_out = set()
    for page in pages:
        if page["held_out"]:
            for version in page["texts"].values():
                held_out.update(version["paragraphs"].values())
    write_rows(work / "pages.jsonl", pages)
    catalogues = sorted(path for path in files.rglob("*.mo") if language_of(path))
    groups: dict[str, dict[str, str]] = {}
    kept = {text for text in held_out if len(text) > 20}

    def add(pairs: Iterable[Pair], source: str) -> None:
        for english, code, text in pairs:
            if english in kept or text in kept:
                continue
            group = groups.setdefault(english, {"en": english, "source": source})
            group.setdefault(code, text)

    add(stamps(files), "stamps")
    add(annotations(files), "cldr")
    add(help_pairs(pages), "help")
    add(dictionaries(files), "dictionary")
    with ProcessPoolExecutor() as pool:
        for path, pairs in zip(
            catalogues, pool.map(catalogue, catalogues, chunksize=64), strict=True
        ):
            add(pairs, path.relative_to(files).parts[0])
    write_rows(work / "parallel.jsonl", (groups[english] for english in sorted(groups, key=digest)))
    glosses = sorted(wordnet(files), key=lambda row: digest(row["positive"]))
    write_rows(work / "glosses.jsonl", glosses)
    counts = collections.Counter(key for group in groups.values() for key in group)
    del counts["source"]
    print(" ".join(f"{code} {count}" for code, count in counts.most_common()))
    print(collections.Counter(group["source"] for group in groups.values()).most_common(40))


def digest(text: str) -> bytes:
    """Order texts at random, in the same way on every machine."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def language_of(path: Path) -> str | None:
    """Find the language of a catalogue in its path (…/de/LC_MESSAGES/x.mo)."""
    return CODES.get(path.parts[-3])


def clean(text: str) -> str:
    """Remove markup, keyboard accelerators and line breaks from a message."""
    text = html.unescape(_TAG.sub("", text))
    text = _ASIAN_ACCELERATOR.sub("", text).replace("\\n", " ")
    text = _ACCELERATOR.sub("", text)
    return unicodedata.normalize("NFC", " ".join(text.split())).strip(" :…*•-")


def usable(text: str, shortest: int = 3) -> bool:
    return bool(
        shortest <= len(text) <= LONGEST
        and _WORD.search(text)
        and len(_PLACE.findall(text)) < 2
        and not _CODE_LIKE.search(text)
        and sum(map(str.isalpha, text)) > len(text) / 2
    )


def usable_pair(english: str, text: str, shortest: int = 3) -> bool:
    """Omit pairs that are not translations: equal ones, or of very different lengths."""
    return bool(
        usable(english, shortest)
        and 0 < len(text) <= LONGEST
        and any(map(str.isalpha, text))
        and len(_PLACE.findall(text)) < 2
        and text.casefold() != english.casefold()
        and len(text) < 4 * len(english) + 20
        and len(english) < 6 * len(text) + 20
    )


def catalogue(path: Path) -> list[Pair]:
    """Read a GNU gettext .mo file (the format is in gettext's manual)."""
    code, data = language_of(path), path.read_bytes()
    if code is None or len(data) < 28:
        return []
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    _, count, ids, strings = struct.unpack_from(order + "4I", data, 4)
    encoding, pairs = "utf-8", []
    for row in range(count):
        values = []
        for table in (ids, strings):
            length, start = struct.unpack_from(order + "2I", data, table + 8 * row)
            values.append(data[start : start + length])
        if not values[0]:
            found = re.search(rb"charset=([\w-]+)", values[1])
            encoding = found[1].decode() if found else "utf-8"
            continue
        try:
            english = values[0].rpartition(b"\x04")[2].partition(b"\0")[0].decode("utf-8")
            text = values[1].partition(b"\0")[0].decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
        english, text = clean(english), clean(text)
        if usable_pair(english, text):
            pairs.append((english, code, text))
    return pairs


def stamps(files: Path) -> Iterator[Pair]:
    """Read the captions of Tux Paint's stamps: English first, then lines like de.utf8=…"""
    for path in sorted(files.glob("tuxpaint-stamps-default/**/stamps/**/*.txt")):
        first, *others = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        for line in others:
            name, _, text = line.partition("=")
            code = CODES.get(name.removesuffix(".utf8").strip())
            if code and usable_pair(first.strip(), text.strip()):
                yield first.strip(), code, text.strip()


def annotations(files: Path) -> Iterator[Pair]:
    """Read CLDR: names and keywords of emoji; names of languages and countries."""
    root = files / "unicode-cldr-core"
    english = cldr(root, "en")
    for code in LANGUAGES:
        own = cldr(root, code)
        for key, name in english.items():
            if key in own and usable_pair(name, own[key]):
                yield name, code, own[key]


def cldr(root: Path, code: str) -> dict[tuple[str, ...], str]:
    values = {}
    for folder in ("annotations", "annotationsDerived"):
        for path in root.rglob(f"{folder}/{code}.xml"):
            for node in ElementTree.parse(path).iter("annotation"):
                key = "name" if node.get("type") else "keywords"
                text = (node.text or "").replace(" | ", ", ")
                values[folder, str(node.get("cp")), key] = text
    for path in root.rglob(f"main/{code}.xml"):
        for kind in ("language", "territory"):
            for node in ElementTree.parse(path).iter(kind):
                if node.get("alt") is None and node.text:
                    values[kind, str(node.get("type")), ""] = node.text
    return values


def dictionaries(files: Path) -> Iterator[Pair]:
    """Read FreeDict: headwords and examples with their translations; one side is English."""
    for path in sorted(files.glob("dict-freedict-*/usr/share/dictd/*.dict.dz")):
        first, second = path.name.removesuffix(".dict.dz").split("-")[1:3]
        code = CODES.get(second if first == "eng" else first)
        if code is None or "eng" not in (first, second):
            continue
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        for own, other in dictionary(text):
            english, translated = (own, other) if first == "eng" else (other, own)
            if _WORD.search(english) and usable_pair(english, translated, shortest=1):
                yield english, code, translated


def dictionary(text: str) -> Iterator[tuple[str, str]]:
    """Find headwords with their first translation, and examples (`"…" - …`)."""
    headword = None
    for line in text.splitlines():
        if line[:1].isspace():
            example = re.fullmatch(r'\s+"([^"]+)"\s+- (.+)', line)
            if example:
                yield clean(_NOTE.sub("", example[1])), clean(_NOTE.sub("", example[2]))
            headword = None
        elif headword is None:
            found = re.match(r"(.+?) (?:/.*/|<[^>]*>)", line)
            headword = found and clean(_NOTE.sub("", found[1]))
        else:
            meaning = clean(_NOTE.sub("", line))
            sentence = len(headword.split()) > 3
            yield headword, meaning if sentence else re.split("[,;،、]", meaning)[0].strip()
            headword = None


def help_pages(files: Path) -> Iterator[dict]:
    """Read LibreOffice's help, whose pages and paragraphs have the same name in all languages."""
    pages: dict[str, dict] = {}
    for root in sorted(files.glob("libreoffice-help-*/usr/share/libreoffice/help/*/text")):
        name = root.parent.name
        code = "en" if name == "en-US" else CODES.get(name)
        if code is None:
            continue
        for path in sorted(root.rglob("*.html")):
            key = str(path.relative_to(root))
            content = path.read_text(encoding="utf-8")
            found = {
                identity: (tag, clean(text))
                for tag, identity, text in re.findall(
                    r'<(h\d|p) id="([^"]+)"[^>]*>(.*?)</\1>', content, re.DOTALL
                )
            }
            texts = {k: text for k, (_, text) in found.items() if len(text) > 1}
            titles = [k for k, (tag, text) in found.items() if tag == "h1" and text]
            held_out = int.from_bytes(digest(key)[:4], "big") % HELD_OUT == 0
            page = pages.setdefault(key, {"page": key, "held_out": held_out, "texts": {}})
            if titles and code not in page["texts"]:
                headings = [k for k, (tag, _) in found.items() if tag[0] == "h" and k in texts]
                page["texts"][code] = {
                    "title": found[titles[0]][1],
                    "headings": headings,
                    "paragraphs": texts,
                }
    yield from pages.values()


def help_pairs(pages: Iterable[dict]) -> Iterator[Pair]:
    for page in pages:
        english = page["texts"].get("en")
        if page["held_out"] or english is None:
            continue
        for code, version in page["texts"].items():
            for key, text in version["paragraphs"].items():
                first = english["paragraphs"].get(key)
                if code != "en" and first and usable_pair(first, text):
                    yield first, code, text


def wordnet(files: Path) -> Iterator[dict]:
    """Read WordNet's synsets: words | gloss; "example"; …"""
    for path in sorted(files.glob("wordnet-base/usr/share/wordnet/data.*")):
        for line in path.read_text(encoding="utf-8").splitlines():
            head, mark, gloss = line.partition(" | ")
            if not mark or line.startswith("  "):
                continue
            fields = head.split()
            words = [w.replace("_", " ") for w in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            meaning = gloss.partition('; "')[0].strip()
            examples = [e for e in re.findall(r'"([^"]+)"', gloss) if len(e) > 10]
            if len(meaning) > 10:
                words = [re.sub(r"\(\w+\)$", "", word) for word in words]
                yield {
                    "anchor": ", ".join(words[:3]),
                    "positive": meaning,
                    "examples": examples,
                    "label": int(fields[1]),  # one of 45 lexicographers' files: animals, motion, …
                }


if __name__ == "__main__":
    main()
