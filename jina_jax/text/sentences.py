"""Sentence boundaries in any script: text → spans of characters."""

from __future__ import annotations

from collections.abc import Iterator

import regex

from jina_jax.checks import check_integer
from jina_jax.text.spans import Span, check_text

_SOFT = ".!?…․﹒．"  # marks that end a sentence only where white space follows
_MARK = rf"\p{{Sentence_Terminal}}{_SOFT}"
_CLOSE = r"\p{Pe}\p{Pf}\p{M}\p{Cf}\"'"  # belongs to the mark before it (UAX #29, SB5 and SB9)
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_END = regex.compile(
    rf"""(?P<always>
        (?<={_CJK}) [.!?]+ (?={_CJK})
      | [{_MARK}]* (?: [{_MARK}--[{_SOFT}]] | ．(?!\p{{Nd}}|\p{{Latin}}) ) [{_MARK}{_CLOSE}]*
    )
    | [{_SOFT}] (?:
        [{_SOFT}{_CLOSE}\p{{Pi}}]  # German and Danish close with “ and «
      | [\ \xa0\u202f]»(?!\w)  # French
    )*
    """,
    regex.VERBOSE | regex.VERSION1,
)
# A full stop that ends no sentence although a capital follows: after initials, titles and
# numbers that may be ordinals (German "3. Oktober") or the numbers of list items.
_ABBREVIATED = regex.compile(
    r"""(?<= (?<![\p{L}\p{M}\p{N}'’]) (?:\p{Lu}|Dr|Hr|Mr|Mrs|Ms|Nr|Prof|Sr|Sra|St) )\.
      | (?<= (?<![\p{L}\p{M}\p{N}'’]) \p{Ll} )\.(?=\s?\p{L}\.)
      | (?<= (?<![\p{L}\p{M}\p{N}\p{Sc}.,:]) (?:[1-9]|[12][0-9]|3[01]) )\.
    """,
    regex.VERBOSE,
)
# A word in lower case follows; names such as iPad and addresses may begin a sentence.
_LOWER_CASE_NEXT = regex.compile(
    rf"[^\p{{L}}{_MARK}]*+ (?! \p{{Ll}}{{1,3}}\p{{Lu}} | \p{{Ll}}+:// | www\. ) \p{{Ll}}",
    regex.VERBOSE,
)
# Abbreviations are shorter, but for a few German ones.
_LONG_WORD = regex.compile(r"(?<=\p{L}{7}) (?<! \b(?:ein|aus)schl) \.", regex.VERBOSE)
# All but white space and characters that the tokenizer may drop or join to others: these never make
# a chunk of their own.
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{M}▁\uFFFD]")


def chunk_by_sentences(text: str, sentences: int = 1) -> list[Span]:
    """Cut a text into chunks of whole sentences.

    A sentence ends at a line break, and behind a mark of any script (Unicode's Sentence_Terminal
    and "…") with its closing quotes and brackets. Behind ``.``, ``!``, ``?`` and "…" white space
    must follow; a full stop or "…" ends nothing if the next word is in lower case, unless that is a
    name such as iPad or an address, or a full stop follows a word of seven letters or more, as
    abbreviations are shorter. Nor does it after an initial, a title ("Dr.") or a small number
    ("3. Oktober"), nor does any mark within quotes or brackets if the next word is in lower case.
    Other abbreviations before a capital do end a sentence. Scripts without marks (Thai) are cut at
    line breaks alone.

    On public sentences joined to paragraphs, F1 of the ends is 0.99 or more in 17 languages
    (tests/parity/test_parity_sentences.py).

    Args:
      text: any text.
      sentences: number of sentences per chunk; the last chunk may have fewer.

    Returns:
      Spans of characters in order, with only white space between and around them. The list is empty
      for a text of only white space and characters that the tokenizer may drop or join to others
      (controls, formats, combining marks, U+2581, U+FFFD); elsewhere in a text, such characters
      belong to a neighbouring sentence.

    Raises:
      ValueError: if text is not a str, or sentences is not an integer of at least 1.
    """
    check_text(text)
    sentences = check_integer("sentences", sentences, 1)
    spans = _sentences(text)
    groups = (spans[i : i + sentences] for i in range(0, len(spans), sentences))
    return [(group[0][0], group[-1][1]) for group in groups]


def _sentences(text: str) -> list[Span]:
    """Return the sentences; one without a visible character joins the next one, or the last."""
    spans: list[Span] = []
    start = done = 0
    for cut in _cuts(text):
        if _VISIBLE.search(text, done, cut):
            spans.append(_stripped(text, start, cut))
            start = cut
        done = cut
    if spans and start < len(text):
        spans[-1] = _stripped(text, spans[-1][0], len(text))
    return spans


def _cuts(text: str) -> Iterator[int]:
    """Yield the ends of sentences and lines in order; an index can be repeated."""
    begin = 0
    for line in text.splitlines(keepends=True):
        for match in _END.finditer(line):
            if _ends_sentence(line, match):
                yield begin + match.end()
        begin += len(line)
        yield begin


def _ends_sentence(line: str, match: regex.Match[str]) -> bool:
    """Return whether a sentence ends behind a mark of a line."""
    marks, end = match[0], match.end()
    if match["always"] or end == len(line):
        return True
    if not line[end].isspace() or (marks == "." and _ABBREVIATED.match(line, match.start())):
        return False
    if not _LOWER_CASE_NEXT.match(line, end):
        return True
    if marks == "." and _LONG_WORD.match(line, match.start()):
        return True
    return ("!" in marks or "?" in marks) and not marks.strip(_SOFT)


def _stripped(text: str, start: int, stop: int) -> Span:
    """Return a span without the white space at its ends."""
    piece = text[start:stop]
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())
