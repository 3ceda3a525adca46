"""Names of layouts and dtypes; imports nothing, since the command line's help lists them."""

LAYOUTS = ("native", "published", "transformers", "xlm-roberta", "bert")
DTYPES = ("float32", "bfloat16", "float16")  # of weights
