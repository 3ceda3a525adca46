"""Texts of the tests with libraries of others."""

DOCUMENTS = [
    "The town hall opens at nine on weekdays.",
    "Trains to the coast leave every half hour.",
    "Fresh bread is sold in the bakery by the church.",
    "The museum shows paintings of the nineteenth century.",
]
QUERY = "Where can I buy bread?"
