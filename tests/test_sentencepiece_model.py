"""A tokenizer from a SentencePiece model alone, against ``tokenizers`` as transformers uses it."""

import io
import json
import os
from pathlib import Path

import pytest
import sentencepiece

from jina_jax.text.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

SHARED = Path(os.environ.get("JINA_JAX_SHARED", Path(__file__).parents[2] / "shared"))
REAL = SHARED / "xlm-roberta"
CORPUS = ["the cat sat on the mat", "a dog and a cat", "katzen und hunde", "ein hund", "猫と犬"] * 9
TEXTS = [
    "the cat <mask> sat",
    "  two  spaces\tand a tab ",
    "<s>the</s><pad>dog<unk>",
    "ＦＵＬＬ ｗｉｄｔｈ ﬁ ① e\u0301\u0302",
    "a<sep>b <sep> c",
    "",
    "zzz 猫 😀",
]
# Languages, scripts, spaces and special tokens, for the real vocabulary.
MORE = [
    "Jina Embeddings V3 is great for semantic search.",
    "हिन्दी में एक वाक्य।",
    "これは日本語の文です。",
    "هذه جملة بالعربية",
    "זה משפט בעברית",
    "Это предложение",
    "ประโยคภาษาไทย",
    "한국어 문장입니다",
    "Câu tiếng Việt\u00a0với dấu",
    "👨‍👩‍👧 \u200b\ufeff x\u0000y",
]


def train(directory: Path, **options) -> Path:
    model = io.BytesIO()
    settings = {"vocab_size": 60, "hard_vocab_limit": False, "user_defined_symbols": ["<sep>"]}
    if "model_type" in options:
        del settings["hard_vocab_limit"]
        settings["vocab_size"] = 45
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, minloglevel=2, **{**settings, **options}
    )
    path = directory / "sentencepiece.bpe.model"
    path.write_bytes(model.getvalue())
    return path


def reference(path: Path) -> tokenizers.Tokenizer:
    """Build what transformers' XLMRobertaTokenizer builds, with the reader of sentencepiece."""
    from tokenizers import AddedToken, models, pre_tokenizers, processors

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(3, len(pieces))]
    tokenizer = tokenizers.Tokenizer(models.Unigram([*vocab, ("<mask>", 0.0)], 3, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.add_tokens([AddedToken("<sep>", normalized=False)])
    return tokenizer


def test_ids_are_those_of_tokenizers(tmp_path):
    path = train(tmp_path, normalization_rule_name="identity")
    ours, theirs = Tokenizer.from_file(path), reference(path)
    assert (ours.bos_id, ours.pad_id, ours.eos_id, ours.unk_id) == (0, 1, 2, 3)
    assert ours.mask_id == ours.vocab_size - 1 == theirs.token_to_id("<mask>")
    assert ours.encode(TEXTS) == [theirs.encode(text).ids for text in TEXTS]
    assert ours.encode(["<sep>"], split_special_tokens=True) == [theirs.encode("<sep>").ids]


def test_rewriting_rules_are_those_of_the_model(tmp_path):
    path = train(tmp_path, normalization_rule_name="nmt_nfkc")
    assert Tokenizer.from_file(path).encode(["ｃａｔ"]) == Tokenizer.from_file(path).encode(["cat"])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared vocabulary")
def test_both_forms_of_the_real_vocabulary_have_the_same_ids():
    model = Tokenizer.from_file(REAL / "sentencepiece.bpe.model")
    fields = Tokenizer.from_file(REAL / "tokenizer.json")
    assert model.encode([*TEXTS, *MORE]) == fields.encode([*TEXTS, *MORE])
    assert (model.vocab_size, model.mask_id) == (250002, 250001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, r"trainer_spec\.model_type: expected 1 \(Unigram\), got 2"),
        ({"unk_id": 2, "bos_id": 0, "eos_id": 1}, r"pieces: expected \['<unk>', '<s>', '</s>'\]"),
    ],
)
def test_other_models_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=rf"sentencepiece\.bpe\.model: {message}"):
        Tokenizer.from_file(train(tmp_path, **options))


@pytest.mark.parametrize("content", [b"\x0a\x0a", b"hello world", b"\x0a"])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "sentencepiece.bpe.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model: "):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("config.json", {"model_type": "camembert"}, "model_type='camembert'"),
        ("tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "class='T5Tokenizer'"),
        ("tokenizer_config.json", {"bos_token": "[CLS]"}, r"bos_token='\[CLS\]'"),
        ("tokenizer_config.json", {"add_prefix_space": False}, "add_prefix_space=False"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}, r"tokens \['<x>'\]"),
        ("added_tokens.json", {"<x>": 61}, r"added tokens \['<x>'\]"),
    ],
)
def test_files_that_ask_for_another_tokenizer_are_refused(tmp_path, name, fields, message):
    path = train(tmp_path)
    (tmp_path / name).write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"{message}.*expected a tokenizer\.json"):
        Tokenizer.from_file(path)


def test_the_usual_files_beside_it_change_nothing(tmp_path):
    path = train(tmp_path)
    mask = {"content": "<mask>", "lstrip": True, "__type": "AddedToken"}
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "mask_token": mask, "cls_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlm-roberta"}))
    Tokenizer.from_file(path)
