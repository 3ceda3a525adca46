"""Sentence boundaries in many scripts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.text.sentences import chunk_by_sentences

INVISIBLE = re.compile(r"[\s\u0301\x00-\x1f\x7f-\x9f\u200b\u200f\ufeff▁\ufffd]*")
PIECES = (
    *("a", "B", "é", "7", "3.14", "e.g.", "Dr.", "你", "の", "है", "م", "ก", "👍", "ﬁ", "\u0301"),
    *(".", "!", "?", "…", "。", "！", "？", "।", "؟", "۔", "．", "“", "”", "«", "»", "(", ")", '"'),
    *(":)", "笑", "」と", "Ελ", ";", "a. ", "1\n", "0:01.0 --> 0:02.0\n", "z.B. ", "🇩🇪", " ."),
    *(" ", "  ", "\n", "\r\n", "\u3000", "\xa0", "\x1c"),
    *("\u200b", "\u200f", "\ufeff", "▁", "\ufffd"),
)
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


def chunks(text: str, sentences: int = 1) -> list[str]:
    return [text[start:stop] for start, stop in chunk_by_sentences(text, sentences)]


SENTENCES = {
    "english": ["Hello world.", "How are you?", "Fine!", "Bye"],
    "numbers": ["Pi is 3.14, not 3.15.", "See jina.ai (v3.0).", "It was $5.", "I am 42.", "Good."],
    "abbreviations": ["Use it, e.g. here, i.e. now, ca. 5 km etc. and so on.", "Next."],
    "initials": ["Dr. Smith met J. R. R. Tolkien of the U.S. Army.", "They spoke."],
    "dots": ["Well... maybe… not.", "Well...", "Maybe!!!", "Really?!"],
    "names in lower case": [
        "iPhone is here.",
        "iPad is not.",
        "macOS is.",
        "www.b.de: see https://a.b.",
    ],
    "long words": ["They blow bubbles.", "a dog runs, einschl. seiner Leine, approx. two miles."],
    "chat": ["hi!", "how are you?", "see you tomorrow… maybe ok!", "привет!", "как дела?", "ok"],
    "chat in lower case": ["i was late.", "it rained.", "no bus. at all!", "the end"],
    "smiles": ["What?! 😂😂", "ok. 👍🏽 :)", "Really? xD", "와? ㅋㅋ", "네.", "Ja! 🇩🇪", "So"],
    "more abbreviations": [
        "Gen. Hill vs. Sen. Ray, e.g. Fig. 3, No. 7, d. h. Zwei, ca. 40 Min.",
        "No.",
        "Il sig. Rossi.",
        "'s Avonds.",
    ],
    "titles": ["وصل د. سامي.", "डॉ. शर्मा आए।", "ডা. রহমান।", "ο κ. Νίκος."],
    "list items": ["1.) One.", "2.) Two.", "See p. 55 on Mt. Fuji."],
    "spaced dots": ["Well . . . maybe. . . so . . .", "Yes . . . .", "No."],
    "greek": ["Τι κάνεις;", "καλά.", "«Πού;»", "Εδώ; 😀", "Α."],
    "georgian": ["მე ვერ მოვალ.", "ხვალ."],
    "burmese": ["မေမေ၊ ဖေဖေ ပါ။", "ပါ။"],
    "quotes": ['"Stop!" he said.', "She said 'No.'", "(It was late.)", "He fell (hard!) and ran."],
    "german": [
        "Am 3. Oktober kam, z. B. um 8, Frau Müller.",
        "„Wer da?“",
        "»Ich!« rief sie.",
        "Aha.",
    ],
    "french": ["« Qui est là ? » dit-il.", "« Moi. »", "Ça va ?", "Oui\u202f!"],
    "spanish": ["¿Qué tal?", "¡Bien!", "Adiós."],
    "russian": ["А. С. Пушкин — поэт.", "Это я.", "«Кто?»", "Он."],
    "arabic": ["هذه جملة.", "هل هذا سؤال؟", "نعم!"],
    "urdu": ["یہ اردو ہے۔", "دوسرا جملہ۔"],
    "hindi": ["यह पहला वाक्य है।", "क्या यह दूसरा है?", "तीसरा॥"],
    "thai": ["สวัสดีครับ ผมชื่อสมชาย วันนี้อากาศดี"],
}
UNSPACED = {
    "chinese": ["我爱你。", "真的吗？！", "是的……大概3.14吧。", "他说：“好。”", "“走！”", "完"],
    "chinese, ascii marks": ["你好!", "我是李明.", "真的?", "那Node.js很好。"],
    "japanese": ["今日は晴れです。", "「行こう！」", "円周率は３．１４です．", "終わり｡"],
    "hindi": ["यह है।", "वह है।"],
    "laughter": [
        "まじで？笑",
        "すごい！😂",
        "了解！（笑）",
        "「急げ！」と言われた。",
        "笑う？",
        "笑うよ",
    ],
    "mixed": ["你好。", "Hello there!再见。", "👍！", "a"],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name):
    for space in (" ", "\n", "  \t", "\u3000"):
        assert chunks(space.join(SENTENCES[name])) == SENTENCES[name]


@pytest.mark.parametrize("name", UNSPACED)
def test_sentences_without_spaces(name):
    assert chunks("".join(UNSPACED[name])) == UNSPACED[name]
    assert chunks(" ".join(UNSPACED["japanese"])) == UNSPACED["japanese"]


def test_lines_end_sentences():
    text = "Title\n\nA first\r\nand second.\u2029  1. Item\n\t2. Item\n"
    assert chunks(text) == ["Title", "A first", "and second.", "1. Item", "2. Item"]
    assert chunks("ก ข\nค") == ["ก ข", "ค"]


def test_times_of_subtitles_belong_to_their_text():
    cue = "00:00:01,000 --> 00:00:03,500\n"
    assert chunks(f"1\n{cue}Hi. You?\n\n2\n{cue}Yes.\n") == [
        f"1\n{cue}Hi.",
        "You?",
        f"2\n{cue}Yes.",
    ]
    assert chunks("WEBVTT\n\n00:01.000 --> 00:02.000 a:b\n- Go.") == [
        "WEBVTT",
        "00:01.000 --> 00:02.000 a:b\n- Go.",
    ]
    assert chunks(cue) == [cue.strip()]
    assert chunks("1\n2\n12:03\na --> b\nc") == ["1", "2", "12:03", "a --> b", "c"]


@pytest.mark.parametrize(
    "text",
    [
        "Take vitamin C. It helps.",  # an initial?
        "There were 3. One left.",  # an ordinal?
        "One name. and no other.",
        "see https://a.b. as said",
        "真的?Yes.",
    ],
)
def test_in_doubt_the_sentence_continues(text):
    assert chunks(text) == [text]


def test_other_abbreviations_before_a_capital_end_a_sentence():
    assert chunks("Das sind ca. Hundert.") == ["Das sind ca.", "Hundert."]


def test_letters_of_list_items_belong_to_them():
    assert chunks("a. One.\nb. Two. C") == ["a. One.", "b. Two.", "C"]


def test_several_sentences_per_chunk():
    text = " A one. B two!\n\nC three? Dé. "
    assert chunk_by_sentences(text) == [(1, 7), (8, 14), (16, 24), (25, 28)]
    assert chunk_by_sentences(text, 2) == [(1, 14), (16, 28)]
    assert chunk_by_sentences(text, 3) == [(1, 24), (25, 28)]
    assert chunk_by_sentences(text, 9) == [(1, 28)]


@pytest.mark.parametrize(
    "text", ["", " ", "\n\r\n \u3000\x85", "\ufeff", "\u200b\n\x01", "▁", "\ufffd\u0301"]
)
def test_invisible_text_is_no_chunk(text):
    assert chunk_by_sentences(text) == []


def test_invisible_characters_join_a_neighbour():
    assert chunks("\ufeff\nA.\n\u200b\nB.\n\x01 \n") == ["\ufeff\nA.", "\u200b\nB.\n\x01"]
    assert chunks("A.\u200f B") == ["A.\u200f", "B"]


@given(text=TEXTS, sentences=st.integers(1, 3))
def test_only_white_space_is_lost(text, sentences):
    spans = chunk_by_sentences(text, sentences)
    for start, stop in spans:
        assert text[start:stop] == text[start:stop].strip() != ""
    ends = [0, *(end for span in spans for end in span), len(text)]
    assert ends == sorted(ends)
    gaps = "".join(text[ends[i] : ends[i + 1]] for i in range(0, len(ends), 2))
    assert not gaps.strip() if spans else INVISIBLE.fullmatch(text)


@given(text=TEXTS)
def test_chunks_are_groups_of_sentences(text):
    one, two = chunk_by_sentences(text), chunk_by_sentences(text, 2)
    assert [start for start, _ in two] == [start for start, _ in one[::2]]
    assert len(two) == -(-len(one) // 2)


@pytest.mark.parametrize("text", [None, b"abc", 3])
def test_text_refused(text):
    with pytest.raises(ValueError, match="text: expected str, got"):
        chunk_by_sentences(text)


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "1", None])
def test_count_refused(count):
    with pytest.raises(ValueError, match=r"sentences=.*: expected an integer of at least 1"):
        chunk_by_sentences("a", count)
