"""Module files of sentence-transformers: what each field does, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign import save, write, xlm_roberta_config, xlm_roberta_tensors
from tiny import write_tiny

from jina_jax import JinaEmbeddings
from jina_jax.checkpoints.tensors import CheckpointError
from jina_jax.config import ConfigError
from jina_jax.convert import open_checkpoint, write_checkpoint
from jina_jax.convert.st_modules import read_modules

SIZE = {"vocab": 120, "width": 16, "layers": 1, "heads": 2, "inner": 32, "positions": 66}
POOLING = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
SETTINGS = {"prompts": {"query": "query: ", "more": "m "}, "default_prompt_name": "query"}
TEXTS = ["hello world", "the sea"]
RNG = np.random.default_rng(0)
DENSE = {
    "linear.weight": RNG.standard_normal((8, 16)).astype(np.float32),
    "linear.bias": RNG.standard_normal(8).astype(np.float32),
}
DENSE_CONFIG = {"in_features": 16, "out_features": 8, "bias": True}


def modules(*kinds: str, first: str = "") -> list[dict]:
    """List modules as sentence-transformers does, each in a folder of its own but the first."""
    paths = [first, *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.json"


@pytest.fixture
def directory(tmp_path, tokenizer) -> Path:
    """Plain XLM-R with mean pooling."""
    root = tmp_path / "model"
    write(root, xlm_roberta_config(SIZE), xlm_roberta_tensors(SIZE, pooler=False))
    shutil.copy(tokenizer, root)
    return put(root, {"1_Pooling/config.json": POOLING})


def put(root: Path, files: dict) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root


def put_dense(root: Path, activation: str | None = "torch.nn.modules.activation.Tanh") -> Path:
    config = (
        DENSE_CONFIG if activation is None else {**DENSE_CONFIG, "activation_function": activation}
    )
    put(root, {"2_Dense/config.json": config})
    save(root / "2_Dense" / "model.safetensors", DENSE)
    return put(root, {"modules.json": modules("Transformer", "Pooling", "Dense")})


def encode(root: Path, texts=TEXTS, **options) -> np.ndarray:
    return JinaEmbeddings.from_pretrained(root).encode(texts, normalize_embeddings=False, **options)


def mapped(vectors: np.ndarray) -> np.ndarray:
    return np.tanh(vectors @ DENSE["linear.weight"].T + DENSE["linear.bias"])


def test_dense_is_applied_everywhere(directory):
    model = JinaEmbeddings.from_pretrained(put_dense(directory))
    assert model.get_embedding_dimension() == 8
    raw = {"normalize_embeddings": False}
    tokens = model.encode(TEXTS, output_value="token_embeddings")
    assert tokens[0].shape[1] == 16
    expected = mapped(np.stack([own.mean(axis=0) for own in tokens]))
    np.testing.assert_allclose(model.encode(TEXTS, **raw), expected, atol=1e-5)
    cut = model.encode(TEXTS, truncate_dim=3, **raw)
    np.testing.assert_allclose(cut, expected[:, :3], atol=1e-5)
    with pytest.raises(ValueError, match="truncate_dim=3: expected None with output_value='token"):
        model.encode(TEXTS[0], output_value="token_embeddings", truncate_dim=3)
    chunk = model.encode_chunks(TEXTS[0], [(0, 5)], **raw).embeddings[0]
    np.testing.assert_allclose(chunk, mapped(tokens[0][:7].mean(axis=0)), atol=1e-5)
    # The pure function, and with it training, maps on the device.
    apply, parameters = model.functional()
    ids = np.array([model.tokenize(TEXTS[0])])
    np.testing.assert_allclose(jax.jit(apply)(parameters, ids)[0], expected[0], atol=1e-5)


def test_dense_is_applied_to_the_sum_of_windows(directory):
    options = {"long_text": "windows", "max_length": 8}
    plain = encode(directory, **options)
    np.testing.assert_allclose(encode(put_dense(directory), **options), mapped(plain), atol=1e-5)


def test_dense_is_converted_both_ways_to_the_bit(directory, tmp_path):
    checkpoint = open_checkpoint(put_dense(directory))
    write_checkpoint(checkpoint, tmp_path / "native", "native")
    native = open_checkpoint(tmp_path / "native")
    write_checkpoint(native, tmp_path / "back", "xlm-roberta")
    back = open_checkpoint(tmp_path / "back")
    assert native.config == back.config == checkpoint.config
    for path, tensor in checkpoint.tensors.items():
        for other in (native, back):
            np.testing.assert_array_equal(other.tensors[path].read(), tensor.read(), err_msg=path)
    written = json.loads((tmp_path / "back" / "modules.json").read_text())
    assert [(one["path"], one["type"].rpartition(".")[2]) for one in written] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Dense", "Dense"),
    ]


def test_dense_without_activation_is_tanh_and_without_weights_refused(directory):
    (spec,) = open_checkpoint(put_dense(directory, None)).config.dense
    assert (spec.out_features, spec.bias, spec.activation) == (8, True, "tanh")
    (directory / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2_Dense: expected model\.safetensors or"):
        open_checkpoint(directory)


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_prompt_left_out_of_pooling(directory, mode):
    """The first tokens, as many as the prompt alone has with ``<s>``, are not pooled."""
    pooling = {"word_embedding_dimension": 16, "pooling_mode": mode, "include_prompt": False}
    model = JinaEmbeddings.from_pretrained(
        put(
            directory,
            {"1_Pooling/config.json": pooling, "config_sentence_transformers.json": SETTINGS},
        )
    )
    first = len(model.tokenize("query: ")) - 1
    assert first == 8
    options = {"output_value": "token_embeddings"}
    for text, tokens in zip(TEXTS, model.encode(TEXTS, **options), strict=True):
        kept = tokens[first:]
        expected = kept.mean(axis=0) if mode == "mean" else kept[0]
        found = model.encode(text, normalize_embeddings=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        whole = model.encode(text, prompt=None, **options)
        expected = whole.mean(axis=0) if mode == "mean" else whole[0]
        found = model.encode(text, prompt=None, normalize_embeddings=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"texts\[0\]: expected tokens after the prompt"):
        model.encode(TEXTS, max_length=first)
    if mode == "mean":
        tokens = model.encode(TEXTS[0], **options)
        raw = {"normalize_embeddings": False}
        found = model.encode(TEXTS[0], long_text="windows", **raw)
        np.testing.assert_allclose(found, tokens[first:].mean(axis=0), atol=1e-5)
        chunk = model.encode_chunks(TEXTS[0], [(0, 5)], **raw).embeddings[0]
        np.testing.assert_allclose(chunk, tokens[first : first + 6].mean(axis=0), atol=1e-5)


def test_named_prompts(directory):
    model = JinaEmbeddings.from_pretrained(
        put(directory, {"config_sentence_transformers.json": SETTINGS})
    )
    by_prompt = {p: model.encode(TEXTS, prompt=p) for p in ("query: ", "m ", None)}
    same = np.testing.assert_array_equal
    same(model.encode(TEXTS), by_prompt["query: "])
    same(model.encode(TEXTS, prompt_name="more"), by_prompt["m "])
    same(model.encode_query(TEXTS), by_prompt["query: "])
    same(model.encode_document(TEXTS), by_prompt["query: "])  # the default, as none is named
    same(model.encode_query(TEXTS, prompt=None), by_prompt[None])
    for options, message in (
        ({"prompt_name": "passage"}, "prompt_name='passage': expected one of 'default', 'query'"),
        ({"prompt_name": "more", "prompt": "x"}, "prompt_name='more': expected None beside"),
    ):
        with pytest.raises(ValueError, match=message):
            model.encode(TEXTS, **options)


@pytest.mark.parametrize(
    "files",
    [
        {"sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False}},
        {"sentence_xlm-roberta_config.json": {"max_seq_length": 16}},
        {"tokenizer_config.json": {"model_max_length": 16}},
    ],
)
def test_max_seq_length_is_the_default_of_max_length(directory, files):
    config = open_checkpoint(put(directory, files)).config
    assert (config.max_seq_length, config.max_length) == (16, 64)
    put(directory, {"sentence_bert_config.json": {"max_seq_length": 512}})
    assert open_checkpoint(directory).config.max_seq_length is None


def test_texts_are_cut_to_max_seq_length(directory):
    put(directory, {"sentence_bert_config.json": {"max_seq_length": 16}})
    model = JinaEmbeddings.from_pretrained(directory)
    with pytest.warns(UserWarning, match="longer than max_length=16"):
        _, info = model.encode("hello world " * 4, return_info=True)
    assert info.tokens == 16


def test_encoder_in_a_folder_of_its_own(directory, tmp_path):
    expected = encode(directory)
    old = tmp_path / "old"
    shutil.copytree(directory, old / "0_Transformer", ignore=shutil.ignore_patterns("1_*"))
    shutil.copytree(directory / "1_Pooling", old / "1_Pooling")
    put(old, {"modules.json": modules("Transformer", "Pooling", first="0_Transformer")})
    np.testing.assert_array_equal(encode(old), expected)
    put(old, {"modules.json": modules("Transformer", first="0_Transformer")})
    with pytest.warns(UserWarning, match=r"no Pooling in modules\.json: the mean over tokens is"):
        np.testing.assert_array_equal(encode(old), expected)
    (old / "modules.json").unlink()
    with pytest.raises(CheckpointError, match=r"0_Transformer.*modules\.json"):
        open_checkpoint(old)


def test_an_unused_head_and_an_assumed_mean_are_reported(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        JinaEmbeddings.from_pretrained(directory)
    tensors = xlm_roberta_tensors(SIZE, pooler=False)
    head = {"classifier.out_proj.bias": np.zeros(1, np.float32)}
    save(
        directory / "model.safetensors", {**{f"roberta.{k}": v for k, v in tensors.items()}, **head}
    )
    with pytest.warns(UserWarning, match=r"classifier.out_proj.bias ignored: this is a classifier"):
        JinaEmbeddings.from_pretrained(directory)
    save(directory / "model.safetensors", tensors)
    (directory / "1_Pooling" / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"no 1_Pooling/config\.json .*: the mean over tokens"):
        JinaEmbeddings.from_pretrained(directory)


def test_padding_of_config_and_tokenizer_agree(directory):
    put(directory, {"config.json": xlm_roberta_config(SIZE, pad_token_id=2)})
    with pytest.raises(ValueError, match="pad_token_id=2: expected 1, the tokenizer's <pad>"):
        JinaEmbeddings.from_pretrained(directory)


def test_cls_and_prompts_survive_the_native_layout(directory, tmp_path):
    put(
        directory,
        {"1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode": "cls"}},
    )
    put(directory, {"config_sentence_transformers.json": {**SETTINGS, "truncate_dim": 6}})
    put(directory, {"modules.json": modules("Transformer", "Pooling", "Dropout", "Normalize")})
    source = open_checkpoint(directory)
    write_checkpoint(source, tmp_path / "native", "native")
    write_checkpoint(open_checkpoint(tmp_path / "native"), tmp_path / "back", "xlm-roberta")
    found = read_modules(tmp_path / "back")
    assert (found.pooler, found.default_prompt, found.truncate_dim) == ("cls", "query: ", 6)
    assert found.normalize
    assert open_checkpoint(tmp_path / "back").config == source.config


REFUSED = [
    ("modules.json", modules("Transformer", "Pooling", "CNN"), r"type='.*CNN': not supported"),
    (
        "modules.json",
        modules("Transformer", "Dense", "Pooling"),
        "type: expected Transformer, Pool",
    ),
    ("modules.json", [], "type: expected Transformer, Pooling"),
    ("modules.json", {}, "expected a list of objects"),
    (
        "modules.json",
        [modules("Transformer")[0], {**modules("Pooling")[0], "name": "1"}],
        "path='': expected a folder of Pooling",
    ),
    (
        "modules.json",
        modules("Transformer", "Pooling", first=".."),
        r"path='\.\.': expected a path",
    ),
    (
        "modules.json",
        modules("Transformer", "Pooling", first="0_T"),
        "path='0_T': expected a folder",
    ),
    ("1_Pooling/config.json", {**POOLING, "include_prompt": 0}, "include_prompt=0: expected True"),
    ("1_Pooling/config.json", {**POOLING, "layers": 2}, "layers=2: unknown"),
    (
        "1_Pooling/config.json",
        {**POOLING, "word_embedding_dimension": 8},
        "word_embedding_dimension=8: expected hidden_size=16",
    ),
    (
        "1_Pooling/config.json",
        {"pooling_mode": "weightedmean", "include_prompt": False},
        "include_prompt=False: expected true with emb_pooler or pooling_mode 'weight",
    ),
    ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case=True: expected False"),
    ("sentence_bert_config.json", {"max_seq_length": 1}, "max_seq_length=1: expected null or"),
    ("sentence_bert_config.json", {"model_args": {"dtype": "x"}}, "model_args=.*: expected no key"),
    ("sentence_bert_config.json", {"query_length": 8}, "query_length=8: expected None"),
    ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "model_type='CrossEnc"),
    ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "similarity_fn_name="),
    ("config_sentence_transformers.json", {"prompts": {"q": 3}}, "prompts=.*: expected an object"),
    (
        "config_sentence_transformers.json",
        {"truncate_dim": 17},
        "truncate_dim=17: expected null or",
    ),
    (
        "tokenizer_config.json",
        {"truncation_side": "left"},
        "truncation_side='left': expected 'righ",
    ),
    ("tokenizer_config.json", {"cls_token": "[CLS]"}, r"cls_token='\[CLS\]': expected '<s>'"),
    ("special_tokens_map.json", {"pad_token": {"content": "x"}}, "pad_token=.*: expected '<pad>'"),
]
REFUSED_DENSE = [
    (
        {**DENSE_CONFIG, "activation_function": "torch.nn.ReLU"},
        "activation_function='torch.nn.ReLU'",
    ),
    ({**DENSE_CONFIG, "use_residual": True}, "use_residual=True: expected False"),
    ({**DENSE_CONFIG, "module_input_name": "token_embeddings"}, "module_input_name='token_embedd"),
    ({**DENSE_CONFIG, "in_features": 12}, "2_Dense: in_features=12: expected 16"),
    ({"in_features": 16}, "out_features is missing"),
]


@pytest.mark.parametrize(("file", "content", "message"), REFUSED)
def test_refused_by_file_and_field(directory, file, content, message):
    with pytest.raises((ConfigError, CheckpointError), match=message):
        open_checkpoint(put(directory, {file: content}))


@pytest.mark.parametrize(("config", "message"), REFUSED_DENSE)
def test_dense_refused_by_field(directory, config, message):
    put(put_dense(directory), {"2_Dense/config.json": config})
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(directory)


TOKENIZER = "tokenizer_config.json"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (TOKENIZER, {"additional_special_tokens": ["sea"]}, "additional_special_tokens: 'sea'"),
        (TOKENIZER, {"extra_special_tokens": {"x": "sea"}}, "extra_special_tokens: 'sea'"),
        (TOKENIZER, {"extra_special_tokens": 5}, "extra_special_tokens=5: expected a list"),
        (TOKENIZER, {"added_tokens_decoder": {"9": {"content": "sea"}}}, "_decoder: 'sea'"),
        (TOKENIZER, {"added_tokens_decoder": {"9": {"content": "<s>"}}}, "'<s>' has the id 9"),
        (TOKENIZER, {"added_tokens_decoder": [1]}, r"added_tokens_decoder=\[1\]"),
        ("special_tokens_map.json", {"additional_special_tokens": ["sea"]}, "_tokens: 'sea'"),
        ("added_tokens.json", {"sea": 9}, "added_tokens.json: sea"),
        (TOKENIZER, {"tokenizer_class": "BertTokenizer"}, "tokenizer_class='BertTokenizer'"),
        ("config.json", {"tokenizer_class": "BertTokenizer"}, "tokenizer_class='BertTokenizer'"),
        (TOKENIZER, {"fast_tokenizer_files": ["tokenizer.4.json"]}, "fast_tokenizer_files"),
        ("config.json", {"transformers_weights": "x.safetensors"}, "transformers_weights='x"),
        ("config.json", {"configuration_files": ["config.4.json"]}, "configuration_files"),
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: expected"),
    ],
)
def test_what_leads_transformers_elsewhere_is_refused(directory, name, fields, message):
    """Other tokens, another tokenizer, or another file than those that are read here."""
    present = json.loads((directory / name).read_text()) if (directory / name).exists() else {}
    put(directory, {name: {**present, **fields}})
    with pytest.raises(ValueError, match=message):
        JinaEmbeddings.from_pretrained(directory)


def test_tokens_that_the_tokenizer_has_may_be_named_again(directory):
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    names = [token["content"] for token in added]
    put(directory, {"added_tokens.json": {token["content"]: token["id"] for token in added}})
    decoder = {str(token["id"]): token for token in added}
    settings = {"added_tokens_decoder": decoder, "additional_special_tokens": names}
    put(directory, {TOKENIZER: {**settings, "tokenizer_class": "XLMRobertaTokenizerFast"}})
    JinaEmbeddings.from_pretrained(directory)
    decoder[str(added[0]["id"])] = {**added[0], "single_word": True}
    put(directory, {TOKENIZER: settings})
    with pytest.raises(ValueError, match=r"added_tokens_decoder: .* has single_word=True"):
        JinaEmbeddings.from_pretrained(directory)


def test_truncation_on_the_left_is_refused_by_its_field(directory):
    path = directory / "tokenizer.json"
    truncation = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "truncation": truncation}))
    JinaEmbeddings.from_pretrained(directory)
    path.write_text(json.dumps({**fields, "truncation": {**truncation, "direction": "Left"}}))
    with pytest.raises(ValueError, match=r"truncation\.direction: expected 'Right', got 'Left'"):
        JinaEmbeddings.from_pretrained(directory)


@pytest.mark.parametrize(
    "name",
    ["modules.json", "1_Pooling/config.json", "config_sentence_transformers.json", TOKENIZER],
)
def test_a_link_to_nothing_is_not_a_missing_file(directory, name):
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(directory / "nowhere")
    with pytest.raises(ValueError, match=f"{name}: .*a link to nothing"):
        open_checkpoint(directory)


def test_modules_json_of_another_system_is_read(directory):
    text = json.dumps(modules("Transformer", "Pooling"))
    for encoding in ("utf-8-sig", "utf-16"):
        (directory / "modules.json").write_text(text, encoding=encoding)
        assert open_checkpoint(directory).config.normalize is False
    (directory / "modules.json").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match=r"modules\.json: .*a Git LFS pointer"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("vocab_size", 100, 120),
        ("hidden_size", 32, 16),
        ("num_hidden_layers", 3, 1),
        ("intermediate_size", 40, 32),
        ("max_position_embeddings", 70, 66),
        ("type_vocab_size", 2, 1),
    ],
)
def test_sizes_that_the_weights_contradict_are_named(directory, name, value, right):
    config = json.loads((directory / "config.json").read_text())
    put(directory, {"config.json": {**config, name: value}})
    shutil.rmtree(directory / "1_Pooling")
    with pytest.raises(CheckpointError, match=f"config: {name}={value}: expected {right}, as in"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"out_features": 9}, "out_features=9: expected 8"), ({"bias": False}, "bias=False")],
)
def test_a_dense_that_its_weights_contradict_is_named(directory, fields, message):
    put_dense(directory)
    put(directory, {"2_Dense/config.json": {**DENSE_CONFIG, **fields}})
    with pytest.raises(CheckpointError, match=f"config: 2_Dense: {message}"):
        open_checkpoint(directory)


@pytest.fixture
def bert(directory) -> Path:
    """The same weights as a BERT, whose positions begin at zero."""
    config = json.loads((directory / "config.json").read_text())
    return put(directory, {"config.json": {**config, "model_type": "bert", "pad_token_id": 0}})


def test_padding_on_the_left_of_a_bert_is_refused(bert):
    put(bert, {TOKENIZER: {"padding_side": "left"}})
    with pytest.raises(ConfigError, match="padding_side='left': expected 'right' for a BERT"):
        open_checkpoint(bert)


@pytest.mark.parametrize("settings", [None, {"model_max_length": 64, "tokenizer_class": None}])
def test_the_tokenizer_of_a_bert_is_written_with_its_class(bert, tmp_path, settings):
    if settings:
        put(bert, {TOKENIZER: settings})
    write_checkpoint(open_checkpoint(bert), tmp_path / "out", "bert")
    written = json.loads((tmp_path / "out" / TOKENIZER).read_text())
    assert written["tokenizer_class"] == "XLMRobertaTokenizer"
    assert written["model_max_length"] == (64 if settings else 66)


def test_do_lower_case_of_a_tokenizer_without_it_changes_nothing(directory):
    expected = encode(directory, ["Hello WORLD"])
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}
    put(directory, {TOKENIZER: settings})
    np.testing.assert_array_equal(encode(directory, ["Hello WORLD"]), expected)


def test_a_second_token_type_of_a_template_is_refused(directory):
    path = directory / "tokenizer.json"
    fields = json.loads(path.read_text())
    single = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 1}},
    ]
    tokens = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": []}
    fields["post_processor"] = {**template, "special_tokens": tokens}
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"single\[1\].type_id: expected 0, got 1"):
        JinaEmbeddings.from_pretrained(directory)


def test_positions_that_the_weights_contradict_are_named(directory):
    tensors = xlm_roberta_tensors(SIZE, pooler=False)
    del tensors["embeddings.position_embeddings.weight"]
    save(directory / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="config: position_embedding_type='absolute'"):
        open_checkpoint(directory)


def test_a_folder_without_a_dense_is_named_by_its_field(directory):
    listed = modules("Transformer", "Pooling", "Dense")
    listed[2]["path"] = "cls"
    put(directory, {"modules.json": listed})
    with pytest.raises(ConfigError, match=r"modules\.json: path='cls': .* of the module Dense"):
        open_checkpoint(directory)
