"""Ray on this machine: started once for the tests that need no cluster of their own."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """Keep Ray from reporting its use; its processes inherit JAX's platform."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
