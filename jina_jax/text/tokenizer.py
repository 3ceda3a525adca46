"""The tokenizer of a tokenizer.json: token for token equal to the ``tokenizers`` library.

The steps are those of that library: added tokens are cut out of the text; the text between them is
normalised and split into words, and each word is segmented on its own. A word's ids are cached.
"""

from __future__ import annotations

import itertools
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import regex

from jina_jax.checks import check_unicode
from jina_jax.files import damage
from jina_jax.text import tokenizer_json
from jina_jax.text.beside import check_added_tokens
from jina_jax.text.normalizer import WHITE_SPACE, Span
from jina_jax.text.sentencepiece_model import check_siblings
from jina_jax.text.tokenizer_json import AddedToken, TokenizerSpec
from jina_jax.text.unigram import Unigram, Vocabulary

_NOT_WHITE_SPACE = re.compile(f"[^{WHITE_SPACE}]+")
# The word characters of Rust's regex.
_WORD_CHARACTER = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]")

Part = tuple[int | None, int, int]  # token id or None for plain text, start, end

_loaded: weakref.WeakValueDictionary[str, Tokenizer] = weakref.WeakValueDictionary()


class Tokenizer:
    """A Unigram tokenizer read from tokenizer.json.

    The file's ``padding`` and the length in ``truncation`` are ignored: texts are never cut or
    padded. Threads may share one tokenizer.

    Attributes:
      vocab_size: number of ids, added tokens included.
      bos_id, eos_id, pad_id, mask_id: ids of the added tokens <s>, </s>, <pad> and <mask>;
        mask_id is None if the file has no <mask>.
      unk_id: id of the unknown token.
    """

    def __init__(self, spec: TokenizerSpec, vocabulary: Vocabulary):
        """Build a tokenizer from the parts of a file; ``from_file`` reads them."""
        ids = {token.content: token.id for token in spec.added}
        self.vocab_size = max(len(vocabulary.scores), *(i + 1 for i in ids.values()))
        self.bos_id, self.eos_id, self.pad_id = ids["<s>"], ids["</s>"], ids["<pad>"]
        self.mask_id = ids.get("<mask>")
        self.unk_id = spec.unk_id
        self._spec = spec
        self._metaspace = spec.metaspace
        self._unigram = Unigram(vocabulary, spec.unk_id, spec.byte_fallback)
        self._added = {token.id: token.content for token in spec.added}
        self._special_ids = frozenset(token.id for token in spec.added if token.special)
        self._special = _alternatives(token.content for token in spec.added if token.special)
        self._raw = _Matcher([(t.content, t) for t in spec.added if not t.normalized])
        self._normalized = _Matcher(
            [(self._normalize(t.content), t) for t in spec.added if t.normalized]
        )

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load a tokenizer; equal files share one object while it is in use.

        Args:
          path: of tokenizer.json, or of a SentencePiece model, "….model"; files of transformers
            beside it must not add tokens to it.

        Raises:
          OSError: if the file cannot be read.
          ValueError: if it is malformed or unsupported; the message names the file and the field.
        """
        path = Path(path)
        if found := damage(path):
            raise ValueError(f"{path}: {found}")
        if not path.exists():
            raise FileNotFoundError(f"{path}: missing; {_expected_tokenizer(path)}")
        if path.suffix == ".model":
            check_siblings(path)
        content = path.read_bytes()
        key = tokenizer_json.digest(content)
        tokenizer = _loaded.get(key)
        if tokenizer is None:
            tokenizer = _loaded[key] = cls(*tokenizer_json.read(path, content))
        if path.suffix != ".model":
            check_added_tokens(path, tokenizer._spec.added)
        return tokenizer

    def encode(
        self, texts: Iterable[str], *, split_special_tokens: bool = False
    ) -> list[list[int]]:
        """Return the ids of each text, with the template's tokens around them, never truncated.

        Args:
          texts: a sequence of texts; a single str is an error.
          split_special_tokens: whether special tokens (<s>, </s>, <mask>, …) in a text are
            segmented like other text, so that no text can have the id of one. (``tokenizers``
            with ``encode_special_tokens`` still finds it in the vocabulary.) Unknown characters
            are encoded as the unknown token all the same.

        Raises:
          ValueError: as in ``check_texts``.
        """
        prefix, suffix = self._spec.prefix, self._spec.suffix
        return [
            [*prefix, *self._ids(text, split_special_tokens), *suffix]
            for text in check_texts(texts)
        ]

    def encode_with_offsets(
        self, text: str, *, split_special_tokens: bool = False
    ) -> tuple[list[int], list[Span]]:
        """Return the ids of one text and, for each, the span of its characters in the text.

        The offsets are those of ``tokenizers``: the template's tokens have (0, 0); a word's mark
        has those of its first character; a character that normalisation adds has those of the
        previous one, and a removed character is counted with the last one kept before it. Offsets
        never decrease; several tokens can share a span.

        Args:
          text: one text.
          split_special_tokens: as in ``encode``, whose ids these are.

        Raises:
          ValueError: if the text is not a str, or has a lone surrogate.
        """
        check_texts([text])
        spec = self._spec
        tokens = [(token_id, (0, 0)) for token_id in spec.prefix]
        tokens += self._tokens(text, split_special_tokens)
        tokens += [(token_id, (0, 0)) for token_id in spec.suffix]
        return [token_id for token_id, _ in tokens], [span for _, span in tokens]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, normalised, as ``tokenizers``' Metaspace decoder does.

        Args:
          ids: of one text, each below ``vocab_size``.
          skip_special_tokens: whether <s>, </s>, <pad> and the like are left out.
        """
        mark = self._metaspace.replacement
        kept = [own for own in ids if not (skip_special_tokens and self.is_special(own))]
        text = "".join(map(self.piece, kept))
        if self._metaspace.prepend != "never":
            text = text.removeprefix(mark)
        return text.replace(mark, " ")

    def piece(self, token_id: int) -> str:
        """Return the piece of the vocabulary, or the added token, of an id."""
        return self._added.get(token_id) or self._unigram.piece(token_id)

    def is_special(self, token_id: int) -> bool:
        """Return whether an id is that of a special token."""
        return token_id in self._special_ids

    @property
    def template_sizes(self) -> tuple[int, int]:
        """Numbers of tokens that are put in front of every text, and behind it."""
        return len(self._spec.prefix), len(self._spec.suffix)

    def _ids(self, text: str, split_special: bool) -> list[int]:
        """Return the ids of a text without the template's tokens."""
        if self._metaspace.prepend == "first":  # only offsets show which word is the first
            return [token_id for token_id, _ in self._tokens(text, split_special)]
        ids: list[int] = []
        for raw_id, start, end in self._raw.split(text, split_special):
            if raw_id is not None:
                ids.append(raw_id)
                continue
            plain = self._normalize(text[start:end])
            for token_id, start, end in self._normalized.split(plain, split_special):
                if token_id is None:
                    ids += self._plain_ids(plain[start:end], split_special)
                else:
                    ids.append(token_id)
        return ids

    def _plain_ids(self, text: str, split_special: bool) -> Iterator[int]:
        """Return the ids of a normalised text without added tokens."""
        words = self._words(text)
        if split_special and self._special.search(text):
            return (piece[0] for word in words for piece in self._segment(word, True))
        return itertools.chain.from_iterable(map(self._unigram.ids.__getitem__, words))

    def _words(self, text: str) -> list[str]:
        """Split a normalised text into words, unless ``prepend`` is first."""
        mark = self._metaspace.replacement
        if not self._spec.split_white_space:
            return self._mark(text, False)
        chunks = _NOT_WHITE_SPACE.findall(text)
        if self._metaspace.prepend == "always" and mark not in text:
            return [mark + chunk for chunk in chunks]
        return [word for chunk in chunks for word in self._mark(chunk, False)]

    def _mark(self, chunk: str, is_first: bool) -> list[str]:
        """Replace spaces by marks, prepend one if required, and split in front of each mark."""
        mark, prepend = self._metaspace.replacement, self._metaspace.prepend
        chunk = chunk.replace(" ", mark)
        if not chunk.startswith(mark) and (
            prepend == "always" or (prepend == "first" and is_first)
        ):
            chunk = mark + chunk
        words = chunk.replace(mark, " " + mark).split(" ") if self._metaspace.split else [chunk]
        return [word for word in words if word]

    def _normalize(self, text: str) -> str:
        for normalizer in self._spec.normalizers:
            text = normalizer.apply(text)
        return text

    def _segment(self, word: str, split_special: bool) -> list[tuple[int, int, int]]:
        """Return the pieces of a word, as (id, start, end)."""
        banned = self._special_ids if split_special and self._special.search(word) else ()
        return self._unigram.segment(word, banned)

    def _tokens(self, text: str, split_special: bool) -> Iterator[tuple[int, Span]]:
        """Yield the id and the offsets of each token of a text, without the template's tokens."""
        for raw_id, start, end in self._raw.split(text, split_special):
            if raw_id is not None:
                yield raw_id, (start, end)
                continue
            plain, spans = text[start:end], [(at, at + 1) for at in range(start, end)]
            for normalizer in self._spec.normalizers:
                plain, spans = normalizer.align(plain, spans)
            for token_id, start, end in self._normalized.split(plain, split_special):
                if token_id is not None:
                    yield token_id, (spans[start][0], spans[end - 1][1])
                    continue
                for word, word_spans in self._aligned_words(plain[start:end], spans[start:end]):
                    for piece_id, left, right in self._segment(word, split_special):
                        yield piece_id, (word_spans[left][0], word_spans[right - 1][1])

    def _aligned_words(self, text: str, spans: list[Span]) -> Iterator[tuple[str, list[Span]]]:
        """Yield the words of a normalised text with a span for each of their characters."""
        chunks = [(0, len(text))] if text else []
        if self._spec.split_white_space:
            chunks = [match.span() for match in _NOT_WHITE_SPACE.finditer(text)]
        for start, end in chunks:
            words = self._mark(text[start:end], spans[start][0] == 0)
            at = start - (sum(map(len, words)) - (end - start))
            for word in words:  # a prepended mark shares the span of the first character
                yield word, [spans[max(i, start)] for i in range(at, at + len(word))]
                at += len(word)


def _expected_tokenizer(path: Path) -> str:
    if path.with_name("vocab.txt").exists():
        return "vocab.txt is a WordPiece vocabulary, expected XLM-RoBERTa's"
    return "expected a tokenizer.json or a sentencepiece.bpe.model"


class _Matcher:
    """Find added tokens in a text: the leftmost, and the longest of those that begin there."""

    def __init__(self, tokens: Sequence[tuple[str, AddedToken]]):
        self._tokens = dict(tokens)
        self._pattern = _alternatives(content for content, _ in tokens)

    def split(self, text: str, split_special: bool) -> list[Part]:
        """Cut a text into tokens and the text between them, without empty parts."""
        if not self._pattern.search(text):
            return [(None, 0, len(text))] if text else []
        parts: list[Part] = []
        done = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match[0]]
            if (split_special and token.special) or not _stands_alone(token, text, match.span()):
                continue
            start, end = _with_white_space(token, text, match.span(), done)
            parts += [(None, done, start), (token.id, start, end)]
            done = end
        parts.append((None, done, len(text)))
        return [part for part in parts if part[1] < part[2]]


def _alternatives(contents: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches the longest of some texts, or never without any."""
    longest_first = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _stands_alone(token: AddedToken, text: str, span: Span) -> bool:
    """Return whether no word character is next to a ``single_word`` token."""
    if not token.single_word:
        return True
    around = text[max(span[0] - 1, 0) : span[0]] + text[span[1] : span[1] + 1]
    return not _WORD_CHARACTER.search(around)


def _with_white_space(token: AddedToken, text: str, span: Span, done: int) -> Span:
    """Extend a match by the white space that ``lstrip`` and ``rstrip`` tokens include."""
    start, end = span
    if token.lstrip:
        start = max(len(text[:start].rstrip(WHITE_SPACE)), done)
    if token.rstrip:
        end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
    return start, end


def check_texts(texts: Iterable[str]) -> list[str]:
    """Return texts as a list.

    Raises:
      ValueError: if ``texts`` is a single text, not a collection, one without an order or one of
        several axes, such as a DataFrame, or an element is not a str or has a lone surrogate; the
        message names its index.
    """
    if isinstance(texts, (str, bytes, Mapping, Set)) or not isinstance(texts, Iterable):
        raise _refusal("texts", "a sequence of str", type(texts).__name__)
    if (axes := getattr(texts, "ndim", 1)) != 1:  # a DataFrame's elements are its column names
        raise _refusal("texts", "a sequence of str", f"{type(texts).__name__} of {axes} axes")
    checked = list(texts)
    for at, text in enumerate(checked):
        if not isinstance(text, str):
            raise _refusal(f"texts[{at}]", "str", type(text).__name__)
        if not text.isascii():
            check_unicode(text, f"texts[{at}]")
    return checked


def _refusal(where: str, expected: str, got: str) -> ValueError:
    return ValueError(f"{where}: expected {expected}, got {got}")
