"""Evaluate embeddings with the metrics of MTEB and BEIR.

Needs the extra ``eval``. Each function takes a model with an ``encode`` like that of
``JinaEmbeddings`` and returns metrics by name. ``Evaluation`` reads their data from files;
``jina_jax.evaluation.mteb_model`` runs the tasks of the package mteb itself.
"""

from jina_jax.data import read_beir
from jina_jax.evaluation.classes import classification, clustering
from jina_jax.evaluation.files import read_labelled, read_pairs, read_scored
from jina_jax.evaluation.ranking import retrieval
from jina_jax.evaluation.similarity import bitext, sts
from jina_jax.evaluation.suite import KINDS, Evaluation
from jina_jax.tasks import TextEncoder

__all__ = [
    "KINDS",
    "Evaluation",
    "TextEncoder",
    "bitext",
    "classification",
    "clustering",
    "read_beir",
    "read_labelled",
    "read_pairs",
    "read_scored",
    "retrieval",
    "sts",
]
