# SPDX-License-Identifier: Apache-2.0
"""What XLA is told when it compiles this library's programs: models to run, models to start."""

from typing import Any

# LLVM keeps to vectors of 256 bits even where a CPU has wider ones. With those of 512 (AVX-512) the
# shifts of a depthwise convolution run up to 1.5 times faster, and inference with a whole model by
# some percent. Where there are none, LLVM takes the widest there are.
_FAST = {"xla_cpu_prefer_vector_width": 512}
# Level 1 compiles three times faster than the default, to the same bits.
_SOON = {"xla_backend_optimization_level": 1}


def to_run_fast(platform: str) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for a model.

    Args:
        platform: that it will run on, such as `jax.default_backend()`.

    Returns:
        None where there is nothing to tell: on all platforms but "cpu".
    """
    return _FAST if platform == "cpu" else None


def to_start_soon(platform: str) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for what runs once. Otherwise as `to_run_fast`."""
    return _SOON if platform == "cpu" else None
