# SPDX-License-Identifier: Apache-2.0
"""What every test runs under: eight fake devices and strict ranks; in CI checked shape annotations.

Programs are compiled without LLVM's optimisations, in half of the time: the tests run each of them
a few times on small arrays. XLA's own passes are not affected, and so neither are the text, the
memory and the FLOPs of a program. Tests that take longer to run than to compile, or that claim
something of speed, are marked `optimised`.
"""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# Before any JAX call. Processes that a test starts inherit all of it.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# What only takes time here: code generation in 32 parts, one after the other on a busy core, and in
# 0.10 the MLIR emitters, nearly half of a compilation; the older ones compute the same. A version
# ends the process at a flag that it does not know, so that the ones that know it are named. Set
# XLA_FLAGS, if only to nothing, to test what users have.
os.environ.setdefault(
    "XLA_FLAGS",
    {
        "0.10": "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_use_fusion_emitters=false",
        "0.11": "--xla_cpu_parallel_codegen_split_count=1",
        "0.12": "--xla_cpu_parallel_codegen_split_count=1",
    }.get(".".join(version("jaxlib").split(".")[:2]), ""),
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # By the first process, for its workers too. A folder set from outside is used again by the next
    # run: its entries are told apart by the versions of JAX and XLA and by the compiler options.
    folder = tempfile.mkdtemp(prefix="mambaout_jax_compilation_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

import jax
import pytest
from jaxtyping import install_import_hook

# A trace makes millions of small objects that live as long as it does: looking through them again
# and again for garbage is a sixth of the tests' time.
gc.set_threshold(200_000, 20, 100)
jax.config.update("jax_numpy_rank_promotion", "raise")
if os.environ.get("MAMBAOUT_CHECK_SHAPES"):  # a third of the time of tracing; CI sets it
    install_import_hook("mambaout_jax", "typechecker.check")


def pytest_collection_modifyitems(items):
    """Puts the files marked `long` first: else one of them is still running when all others end."""
    items.sort(key=lambda item: item.parent.get_closest_marker("long") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Turns LLVM's optimisations on for tests marked `optimised`, with their fixtures, only."""
    quick = str(item.get_closest_marker("optimised") is None)
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != quick:
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = quick  # of processes that a test starts
        jax.config.update("jax_disable_most_optimizations", quick == "True")
        jax.clear_caches()  # programs in memory are not told apart by it


@pytest.fixture
def rng():
    """A seeded numpy generator."""
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture
def bucket_server(monkeypatch):
    """What is behind gs://bucket and s3://bucket, on this machine."""
    from support.bucket_server import BucketServer

    with BucketServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """An uninterrupted run of `support.tiny_run`, only to be read, and what `train` returned."""
    from support.shared_runs import shared, train
    from support.tiny_run import get_config

    folder, metrics = shared(
        tmp_path_factory, "tiny_run", lambda folder: train(get_config(), folder / "run")
    )
    return folder / "run", metrics


@pytest.fixture(scope="session")
def photo_run(tmp_path_factory):
    """A run on photographs, only to be read, what `train` returned, and the photographs."""
    from support.shared_runs import shared, train_on_photos

    folder, metrics = shared(tmp_path_factory, "photo_run", train_on_photos)
    return folder / "run", metrics, folder / "photos"
