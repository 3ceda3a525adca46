"""The tokenizer compared with ``tokenizers``, token for token and offset for offset."""

import csv
import json
import random
import re
import sys
import threading
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_fixtures import added, dialects, metaspace, replace, sequence, train, write

from jina_jax.text import tokenizer_json, unigram
from jina_jax.text.normalizer import Charsmap
from jina_jax.text.tokenizer import Tokenizer, check_texts

DIALECTS = (
    *("words", "spaces", "stripped", "first", "first word", "whole", "bytes", "added"),
    *("real words", "real spaces"),
)
EXAMPLES = 100  # per dialect; the slow run has 200 times as many
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

ADVERSARIAL = (
    *("", " ", "  ", "▁", "▁▁", "\n", "\0", "a", "\u0301", "\u200d", "\ufeff", "\u00ad"),
    *("=" * 55, "-" * 101, "x" * 50, "n" * 37, "<" * 33, "*~" * 30, "hahaha" * 20, "…" * 40),
    *("ª" + "n" * 51, "ｍｍｋｓ＜" + "n" * 35, "171..0" + "＜" * 32, "k" * 53),
    *("a b", " a", "a ", "  a  b  ", "a\tb", "a\r\nb", "\r\n", "e\r\n\u0301", "a\u3000b\u2003c"),
    *("a\x1cb\x1db\x1eb\x1fb", "a\x85b\u1680b\u2028b\u2029b\u202fb\u205fb\u180eb", " \u0301a"),
    *("▁a", "a▁b", " ▁ a▁▁b ▁", "a▁", "<s>", "</s>a", "a <mask> b", "a<mask>b", "a\t\u3000<mask>"),
    *(
        "<mask><mask>",
        "<<s>>",
        "<s",
        "<S>",
        "＜s＞",
        "＜／s＞",
        "＜mask＞ a",
        "<unk>",
        "<unk><unk>",
        "＜unk＞＜unk＞",
        "＜unk＞😀",
    ),
    *(
        "😀<unk>😀",
        "a<pad>",
        "<mask>\u0301",
        "😀",
        "😀😀",
        "a😀b",
        "👨\u200d👩\u200d👧",
        "❤\ufe0f1\ufe0f\u20e3",
    ),
    *(
        "🇩🇪🇫",
        "👍🏽",
        "©\u200d©",
        "™\u200d",
        "e\u0301",
        "e\u0301\u0302",
        "a\u030a\u0301n\u0303",
        "ª\u0301b",
    ),
    *("ﬁn ﬃ ﷺ ½ Ⅷ ① ㍿ ℌ ™", "\u1112\u1161\u11ab\u1100\u1173\u11af", "가\u0301각\u11a8", "กำ น้ำ"),
    *(
        "Tiê\u0301ng Viê\u0323t",
        "שָׁלוֹם",
        "مُحَمَّد",
        "\u0600١٢",
        "\u06dda",
        "\u08e2\u0301",
        "\U000110bda",
    ),
    *(
        "क्षि",
        "\xa0\u094d\u0937",
        "ª\u094d\u0915",
        "\u0915\u094d\u200d\u0937\u0301",
        "ড\u09bc্ড",
        "\u202eabc",
    ),
    *(
        "人人生而自由" * 40,
        "すべての人間は、" * 30,
        "模型😀模型",
        "　全角　空白　",
        "ｆｕｌｌ　ｗｉｄｔｈ",
    ),
    *("\x01\x07a\x7f\x9fb", "\x00a\x00", "\U000e0001\U000f0000\U0010ffff", "\U0001d400\U0002f800"),
)

# Characters on which the steps interfere with one another; some are short texts.
ALPHABETS = (
    list("  \t\n\r▁\u00a0\u3000\u2003\u2028\u0085\u1680\x1c\x1f"),
    list("=-.*xn<"),
    list("aeno\u0301\u0302\u0308\u0327\u030a"),
    list("\u1100\u1112\u1161\u1175\u11a8\u11ab가각ㄱ"),
    list("\u0627\u0644\u0653\u064e\u0651\u0600\u06dd\u05d0\u05b8\u200f\u202e"),
    list("\u0915\u0937\u094d\u093f\u09a1\u09cd\u09bc\u200c\u200d"),
    list("👨👩\u200d\ufe0f\u20e31🇩🇪🏽©"),
    list("\0\x01\x1b\x7f\u200b\ufeff\u00ad\u0085"),
    [*SPECIALS, " <mask>", "<mask> ", "<e>", "<e>>", "rights", "＜", "＞", "<", ">", "s", "/"],
    list("ﬁ½㍿ℌª™Ⅷ…ﷺ¨´\u0344\u037e\u212bǄx"),
    list("人生而自由すべての間は모든간태"),
    list("humanbeigsдиюวมनुষ"),
)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The fields of tokenizer.json for a small vocabulary."""
    return train(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """A cache folder outside the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("JINA_JAX_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def real(request):
    """The fields of tokenizer.json for XLM-R's vocabulary."""
    path = request.getfixturevalue("shared") / "xlm-roberta" / "tokenizer.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def make_pair(request, tmp_path_factory):
    """A function from the name of a dialect to our tokenizer and that of the library."""
    folder = tmp_path_factory.mktemp("dialects")

    @cache
    def pair(name):
        size, _, dialect = name.rpartition("real ")
        fields = request.getfixturevalue("real" if size or "real" in name else "small")
        path = write(folder / f"{name}.json", dialects(fields)[dialect])
        return Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))

    return pair


@pytest.fixture(params=DIALECTS)
def both(request, make_pair):
    return make_pair(request.param)


@pytest.fixture
def real_tokenizer(make_pair):
    return make_pair("real words")[0]


def assert_same(both, text):
    ours, theirs = both
    expected = theirs.encode(text)
    assert ours.encode([text]) == [expected.ids]
    assert ours.encode_with_offsets(text) == (expected.ids, expected.offsets)


def texts():
    """Any text, and texts of characters on which the steps interfere with one another.

    Without unassigned characters: the next version of Unicode, which `regex` may know before
    `tokenizers`, can make letters and marks of them.
    """
    letters = st.one_of(*map(st.sampled_from, ALPHABETS))
    runs = st.builds(lambda letter, n: letter * n, letters, st.integers(1, 70))
    words = st.one_of(*(st.lists(st.sampled_from(a), max_size=8).map("".join) for a in ALPHABETS))
    anything = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=12)
    return st.one_of(anything, st.lists(st.one_of(words, runs, anything), max_size=6).map("".join))


# ---------------------------------------------------------------- against the library


@pytest.mark.parametrize("text", ADVERSARIAL, ids=lambda text: ascii(text[:20]))
def test_adversarial_texts(both, text):
    assert_same(both, text)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts())
def test_any_text(both, text):
    assert_same(both, text)


@pytest.mark.slow
@settings(max_examples=EXAMPLES * 200, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts())
def test_any_text_at_length(both, text):
    assert_same(both, text)


def test_long_text_without_spaces(make_pair):
    both = make_pair("real words")
    random_ = random.Random(0)
    assert_same(both, "".join(random_.choice("人生而自由模型的了大学北京") for _ in range(8000)))
    assert_same(both, "".join(random_.choice("abcde") for _ in range(100_000)))
    assert_same(both, "=" * 20_000)


def test_white_space_is_that_of_unicode(make_pair):
    """Every character between two letters: split there or not, removed or not."""
    ours, theirs = make_pair("words")
    chars = [chr(code) for code in range(0x3400) if code not in range(0xD800, 0xE000)]
    between = [f"a{char}b" for char in chars]
    expected = [encoding.ids for encoding in theirs.encode_batch(between)]
    assert ours.encode(between) == expected


@pytest.mark.parametrize("around", ["ª{}", "{}ª", "ª{}\u0301", "e{}", "\xa0{}क"])
def test_grapheme_clusters_agree_for_every_code_point(small, make_pair, around):
    _, theirs = make_pair("words")
    charsmap = Charsmap.from_base64(small["normalizer"]["precompiled_charsmap"])
    # Planes 4 to 13 have no characters yet, 15 and 16 never will.
    planes = (range(1, 0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))
    codes = [code for plane in planes for code in plane]
    different = []
    for start in range(0, len(codes), 4096):
        chunk = [around.format(chr(code)) for code in codes[start : start + 4096]]
        joined = "\n\x01x".join(chunk)
        if charsmap.apply(joined) != theirs.normalizer.normalize_str(joined):
            different += [
                text
                for text in chunk
                if charsmap.apply(text) != theirs.normalizer.normalize_str(text)
            ]
    unassigned = [text for text in different if "Cn" in map(unicodedata.category, text)]
    assert different == unassigned  # in Python; ``regex`` and ``tokenizers`` may have newer marks


def test_scores_are_those_that_the_library_reads():
    """Its JSON reader rounds twice; with Python's floats ties are decided differently."""
    spelt = [
        "-10.123456789012345",
        "-3.4635426998138428",
        "-1e-05",
        "-12.5E1",
        "-7",
        "-1.5e-310",
        "-20.3647517",
    ]
    spelt += [repr(-random.Random(i).random() * 10 ** (i % 5 - 2)) for i in range(300)]
    vocab = [["<unk>", 0], *([f"p{i}", number] for i, number in enumerate(spelt))]
    content = json.dumps(
        {"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": False, "vocab": vocab}}
    )
    for number in spelt:
        content = content.replace(f'"{number}"', number)
    theirs = json.loads(tokenizers.Tokenizer.from_str(content).to_str())["model"]["vocab"]
    ours = [tokenizer_json._parsed(number) for number in spelt]
    assert ours == [score for _, score in theirs[1:]]
    assert ours != [float(number) for number in spelt]


# ---------------------------------------------------------------- the real vocabulary


def test_literal_ids(real_tokenizer):
    text = "Jina Embeddings V3 is great for semantic search."
    words = [*(3291, 76, 2775, 372, 59725, 7, 310, 363, 83, 6782, 100, 484, 109109, 33938, 5)]
    assert real_tokenizer.encode([text]) == [[0, *words, 2]]
    assert real_tokenizer.encode(["Hello <mask>!", ""]) == [[0, 35378, 250001, 711, 2], [0, 2]]
    assert (real_tokenizer.bos_id, real_tokenizer.pad_id, real_tokenizer.eos_id) == (0, 1, 2)
    assert (real_tokenizer.unk_id, real_tokenizer.mask_id) == (3, 250001)
    assert real_tokenizer.vocab_size == 250002


def test_trailing_space_is_a_token_in_the_newer_dialect_only(make_pair):
    assert make_pair("real words")[0].encode(["Hello "]) == [[0, 35378, 2]]
    assert make_pair("real spaces")[0].encode(["Hello "]) == [[0, 35378, 6, 2]]


def evaluation_texts(shared: Path) -> list[str]:
    rows = []
    for path in shared.glob("eval/tatoeba*"):
        rows += path.read_text(encoding="utf-8").split("\n")
    for path in shared.glob("eval/*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows += [cell for row in csv.reader(file) for cell in row]
    return sorted(set(rows))


@pytest.mark.parametrize("dialect", ["real words", "real spaces"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_evaluation_data(shared, make_pair, dialect, step):
    ours, theirs = make_pair(dialect)
    texts = evaluation_texts(shared)[::step]
    assert len(texts) > 100_000 / step
    different = []
    for start in range(0, len(texts), 1000):
        chunk = texts[start : start + 1000]
        encodings = theirs.encode_batch(chunk)
        results = zip(chunk, ours.encode(chunk), encodings, strict=True)
        different += [text for text, ids, wanted in results if ids != wanted.ids]
    assert different == []


@pytest.mark.parametrize("dialect", ["real words", "real spaces"])
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 80])
def test_offsets_of_the_evaluation_data(shared, make_pair, dialect, step):
    ours, theirs = make_pair(dialect)
    texts = evaluation_texts(shared)[::step]
    for text, encoding in zip(texts, theirs.encode_batch(texts), strict=True):
        assert ours.encode_with_offsets(text) == (encoding.ids, encoding.offsets)


# ---------------------------------------------------------------- special tokens in a text


def test_special_tokens_in_a_text_can_be_split(real_tokenizer):
    split = real_tokenizer.encode(["a <s></s> <mask>", "＜s＞"], split_special_tokens=True)
    pieces = [_pieces(real_tokenizer, ids[1:-1]) for ids in split]
    assert ["".join(each) for each in pieces] == ["▁a▁<s></s>▁<mask>", "▁<s>"]
    assert real_tokenizer.encode(["＜s＞"]) == [[0, 6, 0, 2]]  # as in the library


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(st.sampled_from([*SPECIALS, "＜", "s", "mask＞", " ", "a", "😀", "<", ">"])))
def test_split_special_tokens_never_become_special(both, parts):
    ours, _ = both
    text = "".join(parts)
    ids, offsets = ours.encode_with_offsets(text, split_special_tokens=True)
    assert ours.encode([text], split_special_tokens=True) == [ids]
    assert not {ours.bos_id, ours.pad_id, ours.eos_id, ours.mask_id} & set(ids[1:-1])
    assert all(start <= end <= len(text) for start, end in offsets)


def test_splitting_changes_nothing_else(make_pair):
    ours, _ = make_pair("words")
    texts = [text for text in ADVERSARIAL if "<" not in text and "＜" not in text]
    assert ours.encode(texts, split_special_tokens=True) == ours.encode(texts)


def _pieces(tokenizer, ids):
    return [tokenizer._unigram._processor.id_to_piece(i) for i in ids]


# ---------------------------------------------------------------- segmentation


def test_ties_go_to_the_exact_search(real_tokenizer):
    segmenter = real_tokenizer._unigram
    assert segmenter._certain_ids("▁Hello") == (35378,)
    assert segmenter._certain_ids("▁==========") is None


def test_words_are_cut_between_neighbours_of_no_piece():
    vocabulary = unigram.compile_vocabulary(["<unk>", "ab", "b", "c", "cd"], [0, -1, -2, -3, -4])
    segmenter = unigram.Unigram(vocabulary, 0, False)
    assert segmenter._cut("abcdxab") == ["ab", "cd", "x", "ab"]


def test_unknown_characters_fuse_across_cuts():
    vocabulary = unigram.compile_vocabulary(["<unk>", "a"], [0, -1])
    segmenter = unigram.Unigram(vocabulary, 0, False)
    assert segmenter.ids["axyzaaaaaaaaaaxx"] == (1, 0, *[1] * 10, 0)
    assert segmenter.segment("axyza") == [(1, 0, 1), (0, 1, 4), (1, 4, 5)]


def test_among_equal_segmentations_the_last_piece_that_starts_first_wins():
    vocabulary = unigram.compile_vocabulary(["<unk>", "x", "xx"], [0, -1, -1])
    segmenter = unigram.Unigram(vocabulary, 0, False)
    assert segmenter.ids["xxx"] == (1, 2)


def test_scores_are_added_in_float64():
    """In float32 both segmentations of aba have the same score."""
    pieces, scores = ["<unk>", "a", "b", "ba"], [0, -4096.0, -4096.0, -8192.0002]
    segmenter = unigram.Unigram(unigram.compile_vocabulary(pieces, scores), 0, False)
    assert np.float32(-8192.0002) == np.float32(-8192)
    assert segmenter.ids["aba"] == (1, 2, 1)


def test_cache_is_bounded_and_safe_among_threads(make_pair, monkeypatch):
    ours, theirs = make_pair("words")
    monkeypatch.setattr(unigram, "_MAX_CACHED_WORDS", 16)
    ours._unigram.ids.clear()
    expected = [encoding.ids for encoding in theirs.encode_batch(list(ADVERSARIAL))]
    results = []

    def work():
        for _ in range(5):
            results.append(ours.encode(ADVERSARIAL))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert results == [expected] * 20
    assert len(ours._unigram.ids) <= 16 + len(threads)


# ---------------------------------------------------------------- refusals


class Frame(list):
    """A table as of pandas: its elements are the names of its columns."""

    ndim = 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "texts: expected a sequence of str, got str"),
        (b"bytes", "texts: expected a sequence of str, got bytes"),
        (None, "texts: expected a sequence of str, got NoneType"),
        ({"a": 1}, "texts: expected a sequence of str, got dict"),
        ({"a"}, "texts: expected a sequence of str, got set"),
        (np.array("a"), "texts: expected a sequence of str, got ndarray of 0 axes"),
        (np.array([["a"]]), "texts: expected a sequence of str, got ndarray of 2 axes"),
        (Frame(["text"]), "texts: expected a sequence of str, got Frame of 2 axes"),
        ([b"a"], r"texts\[0\]: expected str, got bytes"),
        (["a", None], r"texts\[1\]: expected str, got NoneType"),
        (["a", "b", {}], r"texts\[2\]: expected str, got dict"),
        (["ab", "é\ud800"], r"texts\[1\]: .*lone surrogate U\+D800 at character 1"),
        (["abc\udfff"], r"texts\[0\]: .*lone surrogate U\+DFFF at character 3"),
    ],
)
def test_refuses_other_types_and_surrogates(make_pair, texts, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make_pair("words")[0].encode(texts)


def test_checked_texts_are_a_list():
    assert check_texts(text for text in ("a", "é")) == ["a", "é"]


def test_offsets_refuse_other_types(make_pair):
    with pytest.raises(ValueError, match=r"^texts\[0\]: expected str, got list$"):
        make_pair("words")[0].encode_with_offsets(["a"])


def change(*path, value):
    """A function that returns the fields of a file with one of them changed, None for removed."""

    def changed(fields, path=path):
        copy = list(fields) if isinstance(fields, list) else dict(fields)
        copy[path[0]] = value if len(path) == 1 else changed(fields[path[0]], path[1:])
        return copy

    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("model", value=None), "model: expected an object, got None"),
        (
            change("model", "type", value="BPE"),
            "model.type: expected 'Unigram' .*WordPiece and BPE.*, got 'BPE'",
        ),
        (change("model", "unk_id", value=None), "model.unk_id: expected a value of type int"),
        (change("model", "unk_id", value=10**6), "model.unk_id: expected an id below"),
        (change("model", "unk_id", value=-1), "model.unk_id: expected an id below"),
        (change("model", "byte_fallback", value=1), "model.byte_fallback: expected .* bool, got 1"),
        (change("model", "vocab", value={}), "model.vocab: expected a value of type list"),
        (change("model", "vocab", value=None), "model.vocab: expected a value of type list"),
        (change("model", "vocab", value=[]), "model.vocab: expected at least one piece"),
        (change("model", "vocab", 7, value=["a"]), r"model.vocab\[7\]: expected \[piece, score\]"),
        (change("model", "vocab", 7, value=["a", "-1.5"]), r"model.vocab\[7\]: expected"),
        (
            change("model", "vocab", 7, value=["a", 0.5]),
            "model.vocab: .*at most 0, got 0.5 at id 7",
        ),
        (change("model", "vocab", 7, value=["", -1.5]), "model.vocab: .*id 7 is ''"),
        (change("model", "vocab", 7, value=["<s>", -1.5]), "model.vocab: .*different pieces"),
        (change("normalizer", "type", value="NFKC"), "normalizer.type: .*Strip.*got 'NFKC'"),
        (change("normalizer", "precompiled_charsmap", value=None), "charsmap: .*type str"),
        (change("normalizer", "precompiled_charsmap", value="%"), "charsmap: not a Sentence"),
        (change("normalizer", "precompiled_charsmap", value="AAAA"), "charsmap: not a Sentence"),
        (change("normalizer", value=replace({"Regex": "a|b"}, "")), "pattern: .*a String"),
        (change("normalizer", value=replace({"String": ""}, "")), "normalizer.pattern: "),
        (
            change("normalizer", value=sequence("normalizers", {"type": "Lowercase"})),
            r"normalizer.normalizers\[0\].type: .*got 'Lowercase'",
        ),
        (change("pre_tokenizer", value=None), "pre_tokenizer: expected an object"),
        (change("pre_tokenizer", value={"type": "ByteLevel"}), "pre_tokenizer.type: .*ByteLevel"),
        (change("pre_tokenizer", value=metaspace("last")), "prepend_scheme: .*got 'last'"),
        (
            change("pre_tokenizer", value={**metaspace(), "add_prefix_space": False}),
            "prepend_scheme: .*got 'always'",
        ),
        (
            change("pre_tokenizer", value={**metaspace(), "replacement": "__"}),
            "replacement: expected one character",
        ),
        (change("post_processor", "type", value="BertProcessing"), "post_processor.type: "),
        (change("post_processor", "single", value=[]), "post_processor.single: .*0 sequences"),
        (
            change("post_processor", "special_tokens", "<s>", "ids", value=[10**6]),
            "post_processor: expected an id below .*got 'token id 1000000'",
        ),
        (change("post_processor", "special_tokens", value={}), "special_tokens.<s>: "),
        (
            change(
                "post_processor",
                value={"type": "RobertaProcessing", "cls": ["<s>", 0], "trim_offsets": True},
            ),
            "post_processor.trim_offsets: expected false",
        ),
        (change("added_tokens", value=None), "added_tokens: expected a value of type list"),
        (change("added_tokens", value=[]), "added_tokens: expected '<s>' among them"),
        (change("added_tokens", 0, "id", value=5), r"added_tokens\[0\].id: expected 0, got 5"),
        (change("added_tokens", 4, value=added("new", 9)), r"added_tokens\[4\].id: expected"),
        (change("added_tokens", 1, "lstrip", value=None), r"added_tokens\[1\].lstrip: .*bool"),
        (change("added_tokens", 1, "content", value=""), r"added_tokens\[1\].content: "),
    ],
)
def test_refuses_a_file(small, tmp_path, changed, message):
    path = write(tmp_path / "tokenizer.json", changed(small))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe{}"])
def test_refuses_other_files(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        Tokenizer.from_file(path)


def test_roberta_processing_and_old_metaspace(small, tmp_path, make_pair):
    fields = {
        **small,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
        "post_processor": {
            "type": "RobertaProcessing",
            "cls": ["<s>", 0],
            "sep": ["</s>", 2],
            "trim_offsets": False,
            "add_prefix_space": True,
        },
    }
    path = write(tmp_path / "tokenizer.json", fields)
    both = Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))
    assert_same(both, "all human  beings ")


# ---------------------------------------------------------------- the cache on disk


@pytest.fixture
def fresh(small, tmp_path, monkeypatch):
    """A file that no other test has loaded, with a cache of its own."""
    monkeypatch.setenv("JINA_JAX_CACHE", str(tmp_path / "cache"))
    return write(tmp_path / "tokenizer.json", {**small, "version": str(tmp_path)})


def test_second_load_reads_the_vocabulary_from_the_cache(fresh, monkeypatch):
    ids = Tokenizer.from_file(fresh).encode(ADVERSARIAL)
    monkeypatch.setattr(tokenizer_json, "_vocabulary", None)
    assert Tokenizer.from_file(fresh).encode(ADVERSARIAL) == ids


def test_equal_files_share_a_tokenizer(fresh):
    first = Tokenizer.from_file(fresh)
    assert Tokenizer.from_file(fresh) is first


def flip_a_bit(entry):
    middle = len(entry) // 2
    return entry[:middle] + bytes([entry[middle] ^ 1]) + entry[middle + 1 :]


def change_compression(entry):
    return re.sub(rb"(?s)(PK\x01\x02.{6})..", rb"\1cc", entry)


@pytest.mark.parametrize(
    "damage",
    [lambda entry: b"", lambda entry: b"PK\x03\x04", flip_a_bit, change_compression],
    ids=["empty", "cut", "flipped", "compression"],
)
def test_a_damaged_entry_is_written_again(fresh, tmp_path, damage):
    ids = Tokenizer.from_file(fresh).encode(ADVERSARIAL)
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert Tokenizer.from_file(fresh).encode(ADVERSARIAL) == ids
    assert tokenizer_json._load_entry(entry) is not None
    assert len(entry.read_bytes()) == len(whole)


def test_an_unwritable_cache_is_not_an_error(fresh, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JINA_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert Tokenizer.from_file(fresh).encode(["a"])[0][0] == 0


def test_interrupted_write_leaves_nothing_behind(fresh, tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(tokenizer_json.os, "replace", fail)
    Tokenizer.from_file(fresh)
    assert list((tmp_path / "cache").iterdir()) == []
