"""Mutations of ``adapter_config.json``: weights equal PEFT's, or the error names the field."""

import json
import random
import shutil
import warnings

import numpy as np
import pytest
from foreign import write, xlm_roberta_config, xlm_roberta_tensors
from published import SMALL
from theirs import PARITY, load_transformers

from jina_jax.convert import merge_checkpoint, open_checkpoint, write_checkpoint

pytestmark = [*PARITY, pytest.mark.slow]

SIZE = {**SMALL, "width": 16, "inner": 24, "layers": 2, "heads": 2, "vocab": 20, "positions": 12}
MUTATIONS = 600
FIELDS = [
    {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 8},
    {"target_modules": r".*(key|output\.dense)", "r": 2, "use_rslora": True},
    {
        "target_modules": ["query", "dense", "word_embeddings"],
        "r": 3,
        "rank_pattern": {"query": 2},
        "alpha_pattern": {"dense": 5},
    },
    {"target_modules": ["value"], "layers_to_transform": [1], "layers_pattern": ["layer"], "r": 2},
]
VALUES = [
    *(None, True, False, 0, 1, 2, 4, -1, 0.5, 1e30, float("nan"), "", "x", "(", ".*", "none"),
    *("all", "LORA", "lora", "IA3", "query", "all-linear", "layer", "gaussian", "pissa", "olora"),
    *([], ["query"], ["value", "query"], ["dense"], ["self"], [0], [1], [0, 1], [[0, 1]], ["x"]),
    *({}, {"query": 2}, {"query": 4}, {"dense": 0}, {"(": 1}, {".*": 3}, {"value": "x"}, {"a": {}}),
]


def mutated(config: dict, rng: random.Random) -> tuple[str, dict]:
    """Change, remove or add one field; return its name and the fields."""
    name = rng.choice([*config, "a_field_of_later"])
    changed = dict(config)
    value = config.get(name)
    if rng.random() < 0.1:
        changed.pop(name, None)
    elif isinstance(value, list) and value and rng.random() < 0.3:
        changed[name] = rng.choice([value[:-1], [*value, "key"], [*value, 7], value * 2])
    elif isinstance(value, int | float) and rng.random() < 0.3:
        changed[name] = rng.choice([value + 1, value * 2, -value, str(value), [value]])
    else:
        changed[name] = rng.choice(VALUES)
    return name, changed


def theirs(base, folder):
    """Merge an adapter with PEFT; None if it does not load, or not all of it."""
    from peft import PeftModel

    try:
        model = load_transformers(base, "XLMRobertaModel")
        adapted = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except Exception:
        return None
    return {key: array.numpy() for key, array in adapted.state_dict().items()}


def ours(base, out):
    from safetensors.numpy import load_file

    shutil.rmtree(out, ignore_errors=True)
    write_checkpoint(merge_checkpoint(open_checkpoint(base), "task"), out, "xlm-roberta")
    return load_file(out / "model.safetensors")


def differ(found, expected) -> bool:
    return any(
        not np.allclose(array, expected[key], rtol=1e-5, atol=1e-5, equal_nan=True)
        for key, array in found.items()
    )


@pytest.mark.parametrize("case", range(len(FIELDS)))
def test_every_mutation_has_equal_weights_or_an_error_that_names_the_field(tmp_path, case):
    import torch
    from peft import LoraConfig, get_peft_model

    rng = random.Random(case)
    torch.manual_seed(case)
    base = write(tmp_path / "m", xlm_roberta_config(SIZE), xlm_roberta_tensors(SIZE, pooler=True))
    config = LoraConfig(init_lora_weights=False, **FIELDS[case])
    get_peft_model(load_transformers(base, "XLMRobertaModel"), config).save_pretrained(
        base / "task"
    )
    path = base / "task" / "adapter_config.json"
    written = json.loads(path.read_text())
    original = theirs(base, base / "task")
    assert not differ(ours(base, tmp_path / "out"), original)
    failures, equal, refused = [], 0, 0
    for _ in range(MUTATIONS // len(FIELDS)):
        name, changed = mutated(written, rng)
        path.write_text(json.dumps(changed))
        try:
            found = ours(base, tmp_path / "out")
        except ValueError as error:
            refused += 1
            if name not in str(error):
                failures.append((name, changed.get(name), str(error)))
            continue
        except Exception as error:
            failures.append((name, changed.get(name), repr(error)))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs(base, base / "task") or original
        equal += 1
        if differ(found, expected):
            failures.append((name, changed.get(name), "other weights"))
    print(f"{equal} with equal weights, {refused} refused")
    assert not failures, "\n".join(map(str, failures))
