"""Make the golden files beside this script; needs the extra ``parity`` (PyTorch, transformers).

    cd tests && python -m golden.make

``tensors.bin``, ``tensors.npz``: a state dict as ``torch.save`` writes it, and what is in it.
``legacy.bin``: the same in the format from before PyTorch 1.6, which is refused.
``published/``, ``xlm_roberta/``: tiny random checkpoints (float16, to be small).
``encoder.npz``: what transformers computes from them in float32.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import foreign
import numpy as np
import torch
from published import published_config
from transformers import (
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

HERE = Path(__file__).parent
SIZE = {"vocab": 40, "width": 16, "layers": 2, "heads": 2, "inner": 24, "positions": 34}
LENGTHS = (12, 5, 9, 2, 12, 7)  # row 0 has no task, rows 1 … 5 have tasks 0 … 4
TOKENS = max(LENGTHS)


def make_bin() -> None:
    """Save tensors of every kind that a reader may get wrong."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=generator)
    tensors = OrderedDict(
        contiguous=base,
        transposed=base.T,
        shared_slice=base[2:5, 1:3],
        strided=base.flatten()[1::3],
        expanded=torch.arange(3.0).expand(2, 3),
        bfloat16=torch.randn(3, 5, generator=generator).bfloat16(),
        float16=torch.randn(7, generator=generator).half(),
        float64=torch.randn(2, 2, generator=generator, dtype=torch.float64),
        parameter=torch.nn.Parameter(torch.randn(2, 3, generator=generator)),
        int64=torch.arange(-3, 3),
        bool=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
    )
    tensors._metadata = {"": {"version": 1}}  # as state dicts of modules have it
    torch.save(tensors, HERE / "tensors.bin")
    torch.save(tensors, HERE / "legacy.bin", _use_new_zipfile_serialization=False)
    arrays = {k: _to_numpy(v.detach()) for k, v in tensors.items()}
    np.savez_compressed(HERE / "tensors.npz", **arrays)


def make_encoder() -> None:
    """Run transformers on a published checkpoint with every task, and on a plain XLM-R."""
    published = foreign.published_tensors(SIZE, "float16", seed=7)
    foreign.write(HERE / "published", published_config(SIZE), published)
    xlm_roberta = foreign.xlm_roberta_tensors(SIZE, pooler=True, seed=8)
    xlm_roberta = {key: value.astype(np.float16) for key, value in xlm_roberta.items()}
    config = foreign.xlm_roberta_config(SIZE)
    foreign.write(HERE / "xlm_roberta", config, xlm_roberta)

    ids = np.random.default_rng(9).integers(4, SIZE["vocab"], (len(LENGTHS), TOKENS))
    mask = np.arange(TOKENS) < np.array(LENGTHS)[:, None]
    ids = np.where(mask, ids, 1)
    exact = {key: value.astype(np.float32) for key, value in published.items()}
    rows = []
    for row, task in enumerate([None, 0, 1, 2, 3, 4]):
        tensors = foreign.transformers_tensors(foreign.plain_tensors(exact, task))
        model = JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**foreign.transformers_config(SIZE)))
        rows.append(_run(model, tensors, ids[row : row + 1], mask[row : row + 1]))
    hidden = np.concatenate([hidden for hidden, _ in rows], axis=1)
    pooled = np.concatenate([pooled for _, pooled in rows])
    exact = {key: value.astype(np.float32) for key, value in xlm_roberta.items()}
    model = XLMRobertaModel(XLMRobertaConfig(**config))
    xlm_hidden, xlm_pooled = _run(model, exact, ids, mask)
    np.savez_compressed(
        HERE / "encoder.npz",
        input_ids=ids.astype(np.int16),
        attention_mask=mask,
        published_hidden_states=hidden,
        published_pooler_output=pooled,
        xlm_roberta_hidden_states=xlm_hidden,
        xlm_roberta_pooler_output=xlm_pooled,
    )


def _run(model, tensors: foreign.Tensors, ids: np.ndarray, mask: np.ndarray):
    """Return hidden states (L + 1, B, T, D), zero at padding, and pooler output (B, D)."""
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    with torch.no_grad():
        out = model.eval()(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
        )
    hidden = np.stack([h.numpy() for h in out.hidden_states]) * mask[None, :, :, None]
    return hidden, out.pooler_output.numpy()


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:  # npz files know no bfloat16: keep its bits
        return tensor.contiguous().view(torch.uint16).numpy()
    return tensor.numpy()


if __name__ == "__main__":
    make_bin()
    make_encoder()
    print(json.dumps({p.name: p.stat().st_size for p in sorted(HERE.rglob("*.*"))}, indent=1))
