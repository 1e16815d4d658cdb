# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a peer, if it is installed; the package itself never needs it."""

import importlib
import importlib.util
from typing import Any


def find_torch() -> Any | None:
    """The module `torch`, or None if PyTorch is not installed."""
    return importlib.import_module("torch") if importlib.util.find_spec("torch") else None


def torch_device(torch: Any, jax_device: Any) -> str:
    """The device on which PyTorch runs beside one of JAX: "cuda" for a GPU, otherwise "cpu".

    Args:
        torch: the module.
        jax_device: a JAX device.

    Raises:
        ValueError: PyTorch does not see the GPU, so that a comparison would not be fair.
    """
    if jax_device.platform != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"JAX runs on {jax_device.device_kind}, but PyTorch {torch.__version__} sees no GPU; "
            "install a build of PyTorch for CUDA, or measure with --device cpu"
        )
    return "cuda"


class Queued:
    """Work queued by PyTorch, for which `jax.block_until_ready` can wait."""

    def __init__(self, torch: Any, device: str):
        self._torch = torch
        self._device = device

    def block_until_ready(self) -> "Queued":
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return self
