"""Types of rows, as settings and commands name them. Imports nothing."""

ROWS = ("pairs", "triplets", "scored", "labelled", "texts")
