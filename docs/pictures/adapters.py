"""Five adapters as one product: ``jina_jax/nn/lora.py``, with the sizes of tiny."""

from __future__ import annotations

import json
from pathlib import Path

from svg import MARGIN, SMALL, WIDTH, Picture

CONFIG = Path(__file__).parents[2] / "jina_jax/tiny/config.json"
_HUES = ("blue", "teal", "purple", "orange", "green")
# Texts of a packed row: task and tokens.
_TEXTS = (("retrieval.query", 2), ("text-matching", 4), ("separation", 3), (None, 3))
_COLUMN, _ROW, _TOP = 8, 14, 112
_MATRIX, _FACTOR, _UPDATE = 150, 338, 428  # left edges
_SIDE = 60  # width of what has the layer's width


def draw() -> Picture:
    """Draw tokens times the factors of all tasks, masked, times the second factors."""
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    tasks, rank = config["lora_adaptations"], config["lora_rank"]
    width = len(tasks) * rank
    hues = dict(zip(tasks, _HUES, strict=True))
    scale = f"{config['lora_alpha'] / rank:g}"
    picture = Picture(
        "Five adapters as one product",
        f"The first factors A of {len(tasks)} tasks are side by side, {rank} columns each. Every "
        f"token of a row is multiplied by all {width} columns and keeps the {rank} of its own "
        "task; a token without a task keeps none. One product with the second factors B is the "
        "update of all tokens.",
        height=430,
    )
    picture.text(WIDTH / 2, 66, f"y = x W + {scale} · mask(x A) B", anchor="middle", bold=True)
    bottom = _TOP + sum(tokens for _, tokens in _TEXTS) * _ROW
    _heads(picture, width)
    y = float(_TOP)
    for task, tokens in _TEXTS:
        _text(picture, y, task, tokens, tasks, rank, hues)
        y += tokens * _ROW
    for k, task in enumerate(tasks):
        step = (bottom - _TOP) / len(tasks)
        picture.rect(_FACTOR, _TOP + k * step, _SIDE, step - 2, hues[task], radius=2, style="solid")
    for x, size in (
        (_MATRIX + width * _COLUMN / 2, f"tokens × {width}"),
        (_FACTOR + _SIDE / 2, f"{width} × out"),
        (_UPDATE + _SIDE / 2, "tokens × out"),
    ):
        picture.text(x, bottom + 18, size, size=SMALL, anchor="middle", ink="dim")
    _legend(picture, bottom + 44, hues)
    picture.note(
        bottom + 112,
        f"{len(tasks)} tasks of rank {rank} are {width} columns, of which a token keeps its "
        "task's. Mixed tasks cost no more than one task.",
    )
    return picture


def _heads(picture: Picture, width: int) -> None:
    middle = _TOP + sum(tokens for _, tokens in _TEXTS) * _ROW / 2 + 6
    for x, words in (
        (_MATRIX + width * _COLUMN / 2, "x A, masked"),
        (_FACTOR + _SIDE / 2, "B"),
        (_UPDATE + _SIDE / 2, "update"),
    ):
        picture.text(x, _TOP - 12, words, anchor="middle")
    picture.text(_FACTOR - 15, middle, "×", anchor="middle", size=20)
    picture.text(_UPDATE - 17, middle, "=", anchor="middle", size=20)


def _text(
    picture: Picture,
    y: float,
    task: str | None,
    tokens: int,
    tasks: list[str],
    rank: int,
    hues: dict[str, str],
) -> None:
    """Draw the tokens of a text: its task, its row of each matrix."""
    own = hues.get(task or "", "grey")
    lines = (task or "no task",)
    height = tokens * _ROW - 2
    picture.box(MARGIN, y, 124, height, own, *lines, sizes=(SMALL, SMALL), bold=False)
    for token in range(tokens):
        top = y + token * _ROW
        for k, other in enumerate(tasks):
            kept = other == task
            for column in range(k * rank, (k + 1) * rank):
                x = _MATRIX + column * _COLUMN
                colour, style = (own, "solid") if kept else ("grey", "soft")
                picture.rect(x, top, _COLUMN - 1, _ROW - 2, colour, radius=1.5, style=style)
        style = "solid" if task else "soft"
        picture.rect(_UPDATE, top, _SIDE, _ROW - 2, own, radius=2, style=style)


def _legend(picture: Picture, y: float, hues: dict[str, str]) -> None:
    entries = [*hues.items(), ("zero", "grey")]
    for k, (task, hue) in enumerate(entries):
        x, top = MARGIN + k % 3 * 164, y + k // 3 * 22
        picture.rect(x, top, 12, 12, hue, radius=2, style="soft" if hue == "grey" else "solid")
        picture.text(x + 19, top + 11, task, size=SMALL, room=140)
