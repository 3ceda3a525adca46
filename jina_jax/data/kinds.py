"""Kinds of data, by which settings and commands name them. Imports nothing."""

ROWS = ("pairs", "triplets", "scored", "labelled", "texts")
EVALUATIONS = ("sts", "bitext", "classification", "clustering", "retrieval")
