"""XLA's flags of the tests."""

import os

# XLA's flag, its value in the tests, its default. Most programs of the tests run once or twice:
# unoptimised, and without XLA's emitters of fusions, they compile in a fifth of the time.
FLAGS = (
    ("xla_backend_optimization_level", 0, 3),
    ("xla_llvm_disable_expensive_passes", True, False),
    ("xla_cpu_use_fusion_emitters", False, True),
)


def usual_options() -> dict[str, int]:
    """Return the compiler options with which a program is compiled as users compile it."""
    is_quick = FLAGS[0][0] in os.environ.get("XLAFLAGS", "")
    return {name: usual for name, _, usual in FLAGS} if is_quick else {}
