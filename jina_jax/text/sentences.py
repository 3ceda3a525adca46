"""Sentence boundaries in any script: text → spans of characters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import regex

from jina_jax.checks import check_integer
from jina_jax.text.spans import Span, check_text

_SOFT = ".!?…․﹒．"  # marks that end a sentence only where white space follows
_ASKING = "!?;\u037e"  # those that end it before a word in lower case, too
# "၊" is a comma, although Unicode has it among the marks that end sentences.
_MARK = rf"[\p{{Sentence_Terminal}}{_SOFT}--[၊]]"
_CLOSE = r"\p{Pe}\p{Pf}\p{M}\p{Cf}\"'"  # belongs to the mark before it (UAX #29, SB5 and SB9)
_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
_GREEK_QUESTION = r"(?<=\p{Greek}{2}) [;\u037E]"
# In chats: emoji, smileys and laughter behind a mark, which belong to its sentence.
_SMILE = r"""(?:
    [\p{Extended_Pictographic}--[©®™]] [\p{Emoji_Modifier}\uFE0F\u200D]*
  | \p{Regional_Indicator}{2} | [:;=]-?[()DP]++(?!\w) | [xX]D+(?!\w) | [wｗ]{2,}+(?!\w)
  | [ㅋㅎㅠㅜ]+ | [（(]笑[）)] | 笑(?![いうえおっわ\p{Han}])
)"""
_END = regex.compile(
    rf"""(?: (?P<always>
        (?<={_CJK}) [.!?]+ (?={_CJK})
      | {_MARK}* (?: [{_MARK}--[{_SOFT}]] | ．(?!\p{{Nd}}|\p{{Latin}}) ) [{_MARK}{_CLOSE}]*
    )
    | (?P<marks> (?: [{_SOFT}] | {_GREEK_QUESTION} ) (?:
        [{_SOFT}{_CLOSE}\p{{Pi}}]  # German and Danish close with “ and «
      | [\ \xa0\u202f]»(?!\w)  # French
      | \ \.(?![\p{{L}}\p{{N}}])  # ". . ."
    )* ) ) (?P<smile> (?: \s?{_SMILE} (?!{_MARK}) )* )
    """,
    regex.VERBOSE | regex.VERSION1,
)
# Titles and words that others follow, as patterns, and those that a number follows.
_BEFORE_WORDS = r"""
Dr Dra Hr Mr Mrs Ms Nr Prof prof Sr Sra St Mt Gen Sen Gov Lt Col Capt Sgt Sig sig Dott dott Dhr
dhr Mevr mevr św डॉ डा ডা ড vs cf approx Vgl vgl bzw evtl ggf inkl incl Bijv bijv np např Esim esim
ul ул [Ee]\.\s?g [Ii]\.\s?e [Dd]\.\s?h [Tt]\.\s?ex [Ff]\.\s?eks [Pp]\.\s?ej [Тт]\.\s?е
"""
_BEFORE_NUMBERS = (
    "[Cc]a [Kk]l [Nn][o°º] [Pp]{1,2} [Ff]ig [Aa]bb [Aa]rt [Vv]ol [Tt]ab [Cc]h [Kk]ap [Рр]ис [Сс]т"
)


def _any_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


# A full stop that ends no sentence although a capital follows: after initials, the words above and
# numbers that may be ordinals (German "3. Oktober") or the numbers of list items.
_ABBREVIATED = regex.compile(
    rf"""(?<= (?<![\p{{L}}\p{{M}}\p{{N}}'’]) (?:
        \p{{Lu}} | [\p{{L}}&&[\p{{Greek}}\p{{Arabic}}\p{{Hebrew}}]]
      | {_any_of(_BEFORE_WORDS)} ) )\.
      | (?<= (?<![\p{{L}}\p{{M}}\p{{N}}'’]) {_any_of(_BEFORE_NUMBERS)} )\.(?=\s?\p{{N}})
      | (?<= (?<![\p{{L}}\p{{M}}\p{{N}}'’]) \p{{Ll}} )\.(?=\s?\p{{L}}\.)
      | (?<=^\p{{Ll}})\.  # a list item
      | (?<= (?<![\p{{L}}\p{{M}}\p{{N}}\p{{Sc}}.,:]) (?:[1-9]|[12][0-9]|3[01]) )\.
    """,
    regex.VERBOSE | regex.VERSION1,
)
_LOWER = r"[\p{Ll}--\p{Georgian}]"  # Georgian has no capitals at the start of sentences
# Japanese: the quote is part of a larger sentence.
_QUOTED = regex.compile(r"(?<=[」』])(?:と|って)")
# A word in lower case follows; names such as iPad and addresses may begin a sentence, and Dutch
# ones begin with "'s Avonds".
_LOWER_CASE_NEXT = regex.compile(
    rf"""[^\p{{L}}{_MARK}]*+
    (?! \p{{Ll}}{{1,3}}\p{{Lu}} | \p{{Ll}}+:// | www\. | (?<=['’])[nst]\s\p{{Lu}} ) {_LOWER}""",
    regex.VERBOSE | regex.VERSION1,
)
# Abbreviations are shorter, but for a few German ones.
_LONG_WORD = regex.compile(r"(?<=\p{L}{7}) (?<! \b(?:ein|aus)schl) \.", regex.VERBOSE)
# A line of someone who writes no capitals, behind a time and a speaker's name, in which fewer words
# are abbreviations.
_LOWER_CASE_LINE = regex.compile(
    r"\P{L}{0,40} (?:\p{L}[^:]{0,40}:\s)? \P{L}{0,40} (?!\p{Ll}{1,3}\p{Lu}) \p{Ll}", regex.VERBOSE
)
_WORD = regex.compile(r"(?<=(?:\p{L}\p{M}*){4}) (?<! \b(?:ein|aus)schl) \.", regex.VERBOSE)
# The time of a subtitle (SRT, WebVTT), which is part of the text below it, as is its number above.
_CUE_TIME = regex.compile(r"\s*(?:\d+:)?\d+:\d+[.,]\d+\s+-->")
# All but white space and characters that the tokenizer may drop or join to others: these never make
# a chunk of their own.
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{Cf}\p{M}▁\uFFFD]")


def chunk_by_sentences(text: str, sentences: int = 1) -> list[Span]:
    """Cut a text into chunks of whole sentences.

    A sentence ends at a line break, and behind a mark of any script (Unicode's Sentence_Terminal,
    "…" and the Greek ";") with its closing quotes and brackets, and emoji. Behind ``.``, ``!``,
    ``?`` and "…" white space must follow; a full stop or "…" ends nothing if the next word is in
    lower case, unless that is a name such as iPad or an address, or a full stop follows a word of
    seven letters or more (four in a line that begins in lower case, as in chats), as abbreviations
    are shorter. Nor does it after an initial, a title or another word that something follows
    ("Dr.", "e.g.") or a small number ("3. Oktober"), nor does any mark within quotes or brackets if
    the next word is in lower case. Other abbreviations before a capital do end a sentence. Scripts
    without marks (Thai) are cut at line breaks alone. The number and time of a subtitle are part of
    the line below them.

    The rule is measured beside other libraries on public sentences and on chats, transcripts and
    subtitles in 32 languages: benchmarks/RESULTS.md, tests/parity/test_parity_sentences.py.

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
    elif _VISIBLE.search(text, start):  # the time of a subtitle, and no line below it
        spans.append(_stripped(text, start, len(text)))
    return spans


def _cuts(text: str) -> Iterator[int]:
    """Yield the ends of sentences and lines in order; an index can be repeated."""
    begin = 0
    lines = text.splitlines(keepends=True)
    for line, following in zip_longest(lines, lines[1:], fillvalue=""):
        for match in _END.finditer(line):
            if _ends_sentence(line, match):
                yield begin + match.end()
        begin += len(line)
        if not (_CUE_TIME.match(line) or (line.strip().isdecimal() and _CUE_TIME.match(following))):
            yield begin


def _ends_sentence(line: str, match: regex.Match[str]) -> bool:
    """Return whether a sentence ends behind a mark of a line."""
    marks, end = match["marks"], match.end()
    if match["always"] or end == len(line):
        return not _QUOTED.match(line, end)
    if not line[end].isspace() or (
        marks in (".", ".)") and _ABBREVIATED.match(line, match.start())
    ):
        return False
    if match["smile"] or not _LOWER_CASE_NEXT.match(line, end):
        return True
    if marks == ".":
        word = _WORD if _LOWER_CASE_LINE.match(line) else _LONG_WORD
        return bool(word.match(line, match.start()))
    return any(mark in marks for mark in _ASKING) and not marks.strip(_SOFT + _ASKING)


def _stripped(text: str, start: int, stop: int) -> Span:
    """Return a span without the white space at its ends."""
    piece = text[start:stop]
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())
