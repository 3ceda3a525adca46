"""Config: fields, derived values and refusals."""

import dataclasses
import json

import pytest
from published import PROMPTS, TASKS, published_config

from jina_jax.config import Config, ConfigError
from jina_jax.files import read_json

SIZE = {"vocab": 300, "width": 64, "layers": 3, "heads": 4, "inner": 128, "positions": 514}
FIELDS = {
    **published_config(SIZE),
    "add_pooling_layer": True,
    "emb_pooler": "mean",
    "default_prompt": "",
}


@pytest.fixture
def config() -> Config:
    return Config.from_dict(FIELDS)


def test_fields_and_derived_values(config):
    assert config.lora_adaptations == TASKS
    assert config.task_instructions == tuple(PROMPTS.items())
    assert config.matryoshka_dimensions == (32, 64)
    assert config.head_dim == 16
    assert config.max_length == 512
    assert config.num_tasks == 5
    assert config.lora_scale == 0.25
    assert config.rotary_emb_base == 20000.0


def test_dict_round_trip(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(Config.from_dict(FIELDS))


def test_tasks_and_prompts(config):
    assert [config.task_id(task) for task in TASKS] == [0, 1, 2, 3, 4]
    assert config.task_id(None) == -1
    assert config.prompt("retrieval.passage") == "Represent the document for retrieval: "
    assert config.prompt(None) == ""
    for refusing in (config.task_id, config.prompt):
        with pytest.raises(ValueError, match=r"task='search': this checkpoint has 'retrieval\."):
            refusing("search")


def test_merged_config_keeps_the_prompt(config):
    merged = config.merged("retrieval.query")
    assert merged.default_prompt == PROMPTS["retrieval.query"]
    assert (merged.num_tasks, merged.lora_rank, merged.lora_scale) == (0, None, 1.0)
    with pytest.raises(ValueError, match="this checkpoint has no adapters: expected None"):
        merged.task_id("retrieval.query")
    for task in (None, "search"):
        with pytest.raises(ValueError, match=rf"task={task!r}"):
            config.merged(task)


def test_embedding_dim(config):
    assert config.embedding_dim(None) == config.embedding_dim(0) == 64
    assert config.embedding_dim(32) == 32
    for dim in (33, -1, 128, True, 32.0, "32"):
        with pytest.raises(ValueError, match="expected one of 32, 64"):
            config.embedding_dim(dim)
    shorter = dataclasses.replace(config, truncate_dim=32)
    assert shorter.embedding_dim(None) == 32
    assert shorter.embedding_dim(64) == 64


def test_any_dimension_without_a_list(config):
    free = dataclasses.replace(config, matryoshka_dimensions=())
    assert free.embedding_dim(7) == 7
    with pytest.raises(ValueError, match="expected one of 1 to 64"):
        free.embedding_dim(65)


def test_all_missing_fields_are_listed():
    some = {k: v for k, v in FIELDS.items() if k not in ("hidden_size", "lora_rank", "hidden_act")}
    with pytest.raises(ConfigError) as error:
        Config.from_dict({**some, "is_decoder": True})
    assert str(error.value) == (
        "config: hidden_size is missing; hidden_act is missing; lora_rank is missing; "
        "is_decoder=True is not supported, only False"
    )
    with pytest.raises(ConfigError) as error:
        Config.from_dict({})
    needed = [f for f in dataclasses.fields(Config) if f.default is dataclasses.MISSING]
    assert str(error.value).count(" is missing") == len(needed) == 24


UNSUPPORTED = {
    "is_decoder": True,
    "add_cross_attention": True,
    "rotary_emb_interleaved": True,
    "rotary_emb_scale_base": 512,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "use_qk_norm": True,
    "prenorm": True,
    "window_size": [128, 128],
    "head_dim": 32,
    "rotary_emb_dim": 8,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_switches_that_would_change_the_function_are_refused(name):
    with pytest.raises(ConfigError, match=rf"{name}="):
        Config.from_dict({**FIELDS, name: UNSUPPORTED[name]})


def test_the_same_switches_may_be_off():
    off = {"is_decoder": False, "rope_scaling": None, "window_size": [-1, -1], "head_dim": 16}
    assert Config.from_dict({**FIELDS, **off}) == Config.from_dict(FIELDS)


DENSE = {"out_features": 8, "bias": True, "activation": "tanh"}
INVALID = {
    "vocab_size": [0, -5, 3.0, "300", True, None],
    "hidden_size": [0, 65, None],
    "num_hidden_layers": [0],
    "num_attention_heads": [0, 3, 64],  # 64 heads: one value per head cannot be rotated
    "intermediate_size": [0],
    "hidden_act": ["gelu_new", "gelu_pytorch_tanh", "relu", None, 3],
    "layer_norm_eps": [0, -1e-5, "1e-5", float("nan"), None],
    "max_position_embeddings": [2, None, "514"],
    "type_vocab_size": [0],
    "pad_token_id": [-1, None],
    "initializer_range": [-0.02, float("inf")],
    "hidden_dropout_prob": [-0.1, 1.1, None],
    "attention_probs_dropout_prob": [2],
    "position_embedding_type": ["relative_key", "alibi", None],
    "rotary_emb_base": [None, 0, -1.0, "20000", float("inf")],
    "add_pooling_layer": [1, None],
    "emb_pooler": ["min", None, ["mean"]],
    "lora_adaptations": [None, "separation", ["a", "a"], [1]],
    "lora_rank": [None, 0, 1.5],
    "lora_alpha": [None, 0, -1],
    "task_instructions": [None, {}, {**PROMPTS, "more": ""}, {**PROMPTS, "separation": 3}],
    "default_prompt": [None, 3],
    "matryoshka_dimensions": [None, [64, 32], [32, 32], [32, 128], [0, 32], ["32"]],
    "truncate_dim": [0, 33, 128, "32", True],
    "prompts": [None, ["query"], {"query": 3}],
    "include_prompt": [None, 0],
    "max_seq_length": [1, 513, "16", True],
    "dense": [None, [3], [{"out_features": 8}], [{**DENSE, "activation": "gelu"}]],
    "normalize": [None, 1],
    "similarity_fn_name": [None, "maxsim"],
}


def test_every_field_has_refusals():
    assert INVALID.keys() == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in INVALID.items() for v in vs])
def test_invalid_value_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"\b{name}=.*: expected"):
        Config.from_dict({**FIELDS, name: value})


def test_fields_of_sentence_transformers(config):
    more = {"dense": [DENSE, {**DENSE, "out_features": 48}], "prompts": {"query": "q: "}}
    found = Config.from_dict({**FIELDS, **more, "matryoshka_dimensions": [16, 48]})
    assert (found.hidden_size, found.output_size, config.output_size) == (64, 48, 64)
    assert found.embedding_dim(None) == 48
    with pytest.raises(ValueError, match="truncate_dim=64: expected one of 16, 48"):
        found.embedding_dim(64)
    assert found.named_prompt("query") == "q: "
    assert found.named_prompt("separation") == found.named_prompt("default") == ""
    with pytest.raises(ValueError, match=r"prompt_name='q': expected one of .*'query'"):
        found.named_prompt("q")
    assert Config.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    with pytest.raises(ConfigError, match="include_prompt=False: expected true with emb_pooler"):
        Config.from_dict({**FIELDS, "include_prompt": False, "emb_pooler": "weightedmean"})


def test_a_task_without_prompt_is_refused():
    with pytest.raises(ConfigError, match="expected one prompt for each of lora_adaptations"):
        Config.from_dict({**FIELDS, "lora_adaptations": [*TASKS, "more"]})


def test_all_invalid_fields_are_listed():
    with pytest.raises(ConfigError) as error:
        Config.from_dict({**FIELDS, "vocab_size": 0, "hidden_act": "relu", "emb_pooler": "min"})
    assert str(error.value) == (
        "config: vocab_size=0: expected a positive integer; hidden_act='relu': expected one of "
        "'gelu'; emb_pooler='min': expected one of 'mean', 'cls', 'max', 'mean_sqrt_len_tokens', "
        "'weightedmean', 'lasttoken'"
    )


def test_absolute_positions_have_no_base():
    fields = {**FIELDS, "position_embedding_type": "absolute", "rotary_emb_base": None}
    assert Config.from_dict(fields).rotary_emb_base is None
    with pytest.raises(ConfigError, match=r"rotary_emb_base=20000\.0: expected .* null otherwise"):
        Config.from_dict({**fields, "rotary_emb_base": 20000.0})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON, but an empty file: download it again"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
    ],
)
def test_bad_json_is_refused_by_file_name(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"config\.json: {message}"):
        read_json(tmp_path / "config.json")
