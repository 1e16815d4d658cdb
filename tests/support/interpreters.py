# SPDX-License-Identifier: Apache-2.0
"""Runs kernels of GPUs and TPUs on CPUs, by interpretation."""

from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu

if hasattr(plgpu, "force_gpu_interpret_mode"):  # from jax 0.12 on
    force_gpu_interpret_mode = plgpu.force_gpu_interpret_mode
else:
    from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode

INTERPRETERS = {"cuda": force_gpu_interpret_mode, "tpu": pltpu.force_tpu_interpret_mode}
