"""Eight CPU devices for every test, jaxtyping shapes checked, a compilation cache that outlives a run."""

import gc
import os
import pathlib

if os.environ.get("JAXSEG_TESTS_OPTIMIZED") != "1":  # XLA hurries, in the processes that tests start as well
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
install_import_hook("jaxseg", "beartype.beartype")
gc.set_threshold(100_000)  # what traces make stays: looking through it was an eighth of the time


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_with_their_module():
    yield
    jax.clear_caches()  # else a worker of the whole suite holds 10 GB of them
    gc.collect()
