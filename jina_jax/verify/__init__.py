"""Reference values of a checkpoint: compare with them (``compare``), record them (``record``)."""
