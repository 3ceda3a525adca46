"""POST /v1/classify: the label whose vector is nearest, zero-shot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from jina_jax.serving.bodies import ClassifyBody
from jina_jax.serving.errors import ApiError, invalid
from jina_jax.serving.http import Call, Reply
from jina_jax.serving.service import Wanted

_TASK = "classification"
_MOST_TEXTS = 512
_MOST_GROUPS, _MOST_LABELS_OF_A_GROUP = 8, 64


async def classify(call: Call) -> Reply:
    """Return scores of the labels for each text: the softmax of their cosines, as Jina's API."""
    body: ClassifyBody = await call.read(ClassifyBody)
    service = call.service
    if body.classifier_id is not None:
        raise invalid("classifier_id", "expected none: trained classifiers are not served")
    name, _ = service.pick_model(body.model)
    texts = service.texts(body.input, "input", most=_MOST_TEXTS)
    groups = _groups(body.labels)
    labels = [label for group in groups.values() for label in group]
    task = _TASK if _TASK in service.model.config.lora_adaptations else None
    fields = [f"input[{i}]" for i in range(len(texts))] + _fields(groups)
    wanted = Wanted(task=task, bulk=call.is_bulk, fields=fields)
    job = await service.encode([*texts, *labels], wanted, call.receive)
    found = await service.vectors(job, service.dimension(None), normalize=True)
    pieces = await service.in_thread(lambda: list(_rows(found, len(texts), groups)))
    call.count(texts=len(texts), tokens=job.tokens, truncated=0)
    usage = {"total_tokens": job.tokens, "prompt_tokens": job.tokens}
    head = {"model": name, "object": "list", "usage": usage}
    return call.reply(orjson.dumps(head)[:-1] + b',"data":[', pieces, b"]}")


def _groups(labels: list[str] | dict[str, list[str]]) -> dict[str, list[str]]:
    """Return the labels by group; a list is one group without a name."""
    groups = {"": labels} if isinstance(labels, list) else labels
    most = _MOST_TEXTS if isinstance(labels, list) else _MOST_LABELS_OF_A_GROUP
    if len(groups) > _MOST_GROUPS:
        message = f"labels: expected at most {_MOST_GROUPS} groups, got {len(groups)}"
        raise ApiError(400, message, "labels", "INPUT_LABEL_LIMIT_EXCEEDED")
    if not groups:
        raise invalid("labels", "expected at least one label")
    for name, own in groups.items():
        field = f"labels.{name}" if name else "labels"
        if not own:
            raise ApiError(422, f"{field}: expected at least one label", field)
        if len(own) > most:
            message = f"{field}: expected at most {most} labels, got {len(own)}"
            raise ApiError(400, message, field, "INPUT_LABEL_LIMIT_EXCEEDED")
        if len(set(own)) < len(own):
            message = f"{field}: expected labels that differ"
            raise ApiError(400, message, field, "INPUT_INVALID_LABELS")
    return groups


def _fields(groups: dict[str, list[str]]) -> list[str]:
    """Return what the body calls each label."""
    return [
        f"labels.{name}[{i}]" if name else f"labels[{i}]"
        for name, own in groups.items()
        for i in range(len(own))
    ]


def _rows(vectors: np.ndarray, count: int, groups: dict[str, list[str]]) -> Iterator[bytes]:
    """Yield the elements of ``data`` from the vectors of ``count`` texts and of all labels."""
    for index, own in enumerate(vectors[:count] @ vectors[count:].T):
        yield (b"," if index else b"") + orjson.dumps(_row(index, own, groups))


def _row(index: int, similarities: np.ndarray, groups: dict[str, list[str]]) -> dict[str, Any]:
    found, start = {}, 0
    for name, labels in groups.items():
        found[name] = _scores(labels, similarities[start : start + len(labels)])
        start += len(labels)
    row = {"object": "classification", "index": index}
    if list(found) == [""]:
        return row | found[""]
    return row | {"predictions": [{"group": name, **own} for name, own in found.items()]}


def _scores(labels: list[str], similarities: np.ndarray) -> dict[str, Any]:
    weights = np.exp(similarities.astype(np.float64) - similarities.max())
    scores = weights / weights.sum()
    best = int(scores.argmax())
    rows = [{"label": own, "score": float(s)} for own, s in zip(labels, scores, strict=True)]
    return {"prediction": labels[best], "score": float(scores[best]), "predictions": rows}
