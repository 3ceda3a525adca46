"""Names of choices in the network; imports nothing, since the command line's help lists them."""

QUANTIZATIONS = ("int8", "fp8")  # of linear layers, from the more exact
