"""Evaluation: what embeddings are worth, task by task, as MTEB and BEIR measure it.

Needs the extra ``eval``. Each function takes a model with an ``encode`` like that of
``JinaEmbeddings`` and returns metrics by name. ``Evaluation`` reads data from files for them;
``jina_jax.evaluation.mteb_model`` runs the tasks of the package mteb itself.
"""

from jina_jax.data.kinds import EVALUATIONS as KINDS
from jina_jax.evaluation.classes import classification, clustering
from jina_jax.evaluation.encoding import TASKS, TextEncoder, pick_tasks
from jina_jax.evaluation.files import read_beir, read_labelled, read_pairs, read_scored
from jina_jax.evaluation.ranking import retrieval
from jina_jax.evaluation.similarity import bitext, sts
from jina_jax.evaluation.suite import Evaluation

__all__ = [
    "KINDS",
    "TASKS",
    "Evaluation",
    "TextEncoder",
    "bitext",
    "classification",
    "clustering",
    "pick_tasks",
    "read_beir",
    "read_labelled",
    "read_pairs",
    "read_scored",
    "retrieval",
    "sts",
]
