# SPDX-License-Identifier: Apache-2.0
"""The rule that gives every reference parameter its value, so that no weight has to be stored.

A golden file lists a reference model's parameter names and shapes and the outputs that the
reference computed with the values below. Anyone who can build the same names and shapes can
therefore rebuild the same weights, load them through the converter under test, and compare.
"""

import zlib

import numpy as np


def rng_of(name: str, seed: int = 0) -> np.random.RandomState:
    """The frozen-stream generator of one tensor: `RandomState` never changes between numpy releases."""
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)


def value_of(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 value of parameter or buffer `name`.

    - two or more axes (kernels, projections, tables): N(0, 1 / fan_in), fan_in = prod(shape[1:])
    - three axes and a leaf ending in `_weight` (stacked matrices (K, out, in)): N(0, 1 / shape[-1])
    - `dt_projs_bias`, or `bias` under a `dt_proj*` module: -2 + 0.1 N(0, 1), so that softplus gives about 0.13
    - one axis, a scale (name ends in weight, gamma, scale, running_var): 1 + 0.1 N(0, 1), in absolute value
    - one axis, anything else (bias, running_mean, beta ...): 0.1 N(0, 1)
    - zero axes: 0 (counters)
    - `*A_log*` (log of minus the SSM's state matrix): log(1..N) along the last axis + 0.1 N(0, 1)
    - `*D`, `*Ds`, `*D_b` (SSM skip): 1 + 0.1 N(0, 1)
    """
    z = rng_of(name, seed).standard_normal(shape).astype(np.float32)
    leaf = name.rsplit(".", 1)[-1]
    if "A_log" in leaf or leaf.startswith("A_b_log"):
        return np.log(np.arange(1, shape[-1] + 1, dtype=np.float32)) + np.float32(0.1) * z
    if leaf == "dt_projs_bias" or (leaf == "bias" and "dt_proj" in name):
        return np.float32(0.1) * z - np.float32(2)
    if leaf in ("D", "Ds", "D_b"):
        return 1 + np.float32(0.1) * z
    if len(shape) == 0:
        return np.zeros(shape, np.float32)
    if len(shape) == 1:
        scale_like = leaf in ("weight", "gamma", "scale", "running_var")
        return np.abs(1 + np.float32(0.1) * z) if scale_like else np.float32(0.1) * z
    stacked = len(shape) == 3 and leaf.endswith("_weight")
    return z / np.float32(np.sqrt(shape[-1] if stacked else np.prod(shape[1:])))


def input_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 N(0, 1) input of `shape`, in the reference's own layout (images: NCHW)."""
    return rng_of("input", seed).standard_normal(shape).astype(np.float32)
