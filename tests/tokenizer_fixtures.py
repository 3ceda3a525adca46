"""A small multilingual Unigram vocabulary, made on the spot, as tokenizer.json in many dialects."""

import base64
import json
import random
from pathlib import Path
from typing import Any

import sentencepiece

# Article 1 of the Universal Declaration of Human Rights, which is in the public domain.
SENTENCES = (
    "All human beings are born free and equal in dignity and rights.",
    "They are endowed with reason and conscience and should act towards one another in a spirit.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Sie sind mit Vernunft und Gewissen begabt und sollen einander im Geist begegnen.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw.",
    "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.",
    "Все люди рождаются свободными и равными в своём достоинстве и правах.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে।",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "1234567890 === --- ... !!! ??? <s> </s> <mask> xxx aaa",
)
PIECES = 530  # about what so little text gives
EXTRA_PIECES = 2000

WORD_SPLIT = {"type": "WhitespaceSplit"}
TWO_SPACES = {"Regex": " {2,}"}


def train(folder: Path) -> dict[str, Any]:
    """Train a vocabulary and return it as the fields of tokenizer.json, in XLM-R's numbering."""
    words = [word for sentence in SENTENCES for word in sentence.split()]
    random_ = random.Random(0)
    lines = [*SENTENCES, *(" ".join(random_.sample(words, 12)) for _ in range(2000))]
    (folder / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "lines.txt"),
        model_prefix=str(folder / "small"),
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    model = (folder / "small.model").read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    trained = {processor.id_to_piece(i): processor.get_score(i) for i in range(3, len(processor))}
    pieces = {**_substrings(words, random_), **trained}
    return tokenizer_json([list(entry) for entry in pieces.items()], _charsmap(model))


def _substrings(words: list[str], random_: random.Random) -> dict[str, float]:
    """Return parts of words as pieces, with few different scores: segmentations will often tie."""
    parts: dict[str, float] = {}
    while len(parts) < EXTRA_PIECES:
        word = "▁" + random_.choice(words)
        start = random_.randrange(len(word))
        part = word[start : start + random_.randint(2, 4)]
        if "<" in part:
            continue
        parts[part] = random_.choice((-9.1, -9.3, -10.123456789012345, -11.7))
    return parts


def tokenizer_json(pieces: list[list[Any]], charsmap: bytes) -> dict[str, Any]:
    """Return the fields of tokenizer.json in its older dialect, for pieces without the special."""
    vocab = [[name, 0.0] for name in ("<s>", "<pad>", "</s>", "<unk>")] + pieces + [["<mask>", 0.0]]
    ids = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": len(vocab) - 1}
    blob = base64.b64encode(charsmap).decode()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(name, i, lstrip=name == "<mask>") for name, i in ids.items()],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": blob},
        "pre_tokenizer": sequence("pretokenizers", WORD_SPLIT, metaspace()),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, _special("</s>")],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {
                name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in ("<s>", "</s>")
            },
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


def dialects(fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the ways in which tokenizer.json has been written for one vocabulary, and stranger."""
    charsmap = fields["normalizer"]
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    strip_both = {"type": "Strip", "strip_left": True, "strip_right": True}

    def variant(*steps: dict[str, Any], pre: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "normalizer": sequence("normalizers", *steps), "pre_tokenizer": pre}

    first = metaspace(prepend_scheme="first")
    return {
        "words": fields,
        "spaces": variant(charsmap, replace(TWO_SPACES, " "), pre=metaspace()),
        "stripped": variant(charsmap, strip, replace(TWO_SPACES, "▁"), pre=metaspace()),
        "first": variant(charsmap, replace({"String": "a"}, "xyz"), pre=first),
        "first word": variant(
            strip_both, charsmap, pre=sequence("pretokenizers", WORD_SPLIT, first)
        ),
        "whole": {**fields, "normalizer": None, "pre_tokenizer": metaspace("never", split=False)},
        "bytes": with_bytes(fields),
        "added": with_added(fields),
    }


def with_bytes(fields: dict[str, Any]) -> dict[str, Any]:
    """Spell unknown characters with bytes."""
    spelt = [[f"<0x{byte:02X}>", -15.0 - byte / 100] for byte in range(256)]
    vocab = fields["model"]["vocab"]
    model = {**fields["model"], "vocab": vocab + spelt, "byte_fallback": True}
    return {**fields, "model": model}


def with_added(fields: dict[str, Any]) -> dict[str, Any]:
    """Add tokens with every flag, inside the vocabulary and behind it."""
    size = len(fields["model"]["vocab"])
    more = [
        added("<e>", size, rstrip=True),
        added("<e>>", size + 1, special=False),
        added("ﬁn", size + 2, special=False, normalized=True),
        added("rights", size + 3, special=False, single_word=True),
        added("Ⅷx", size + 4, special=False, normalized=True, lstrip=True, rstrip=True),
    ]
    return {**fields, "added_tokens": fields["added_tokens"] + more}


def added(content: str, token_id: int, **flags: bool) -> dict[str, Any]:
    """Return an entry of added_tokens, special unless told otherwise."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, **plain, "special": True, **flags}


def metaspace(prepend_scheme: str = "always", split: bool = True) -> dict[str, Any]:
    """Return a Metaspace pre-tokeniser."""
    return {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": prepend_scheme,
        "split": split,
    }


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """Return a Replace normaliser."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """Return a sequence of normalisers or of pre-tokenisers."""
    return {"type": "Sequence", key: list(steps)}


def write(path: Path, fields: dict[str, Any]) -> Path:
    """Write tokenizer.json."""
    path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")
    return path


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}


def _charsmap(model: bytes) -> bytes:
    """Read NormalizerSpec.precompiled_charsmap (field 2) in a ModelProto (its field 3)."""
    return dict(_fields(dict(_fields(model))[3]))[2]


def _fields(message: bytes) -> list[tuple[int, Any]]:
    """Return the (number, value) pairs of a protobuf message."""
    found, at = [], 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 2:
            size, at = _varint(message, at)
            found.append((tag >> 3, message[at : at + size]))
            at += size
        elif tag & 7 == 5:
            at += 4
        else:
            _, at = _varint(message, at)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at
