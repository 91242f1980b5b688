"""TPU's compiler without a TPU: what `mot plan` tells it, and no compiled program kept."""

import os

import jax
import pytest

from launch import cli
from mot.plan import forecast

for name, value in cli.PLANNING.items():
    os.environ.setdefault(name, value)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # what is compiled here is measured
jax.config.update("jax_disable_most_optimizations", False)
forecast.hurry()


@pytest.fixture(autouse=True)
def no_cache():
    kept = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", kept)
