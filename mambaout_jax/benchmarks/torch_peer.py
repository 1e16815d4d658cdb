# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a peer, where it is installed: the package itself never needs it."""

import importlib
import importlib.util
from typing import Any


def find_torch() -> Any | None:
    """The module, or None where PyTorch is not installed."""
    return importlib.import_module("torch") if importlib.util.find_spec("torch") else None


def torch_device(torch: Any, place: Any) -> str:
    """Where PyTorch runs beside a device of JAX: "cuda" for a GPU, else "cpu".

    Raises:
        ValueError: PyTorch does not see the GPU; its CPU would be no peer of it.
    """
    if place.platform != "gpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise ValueError(
            f"JAX runs on {place.device_kind}, but PyTorch {torch.__version__} sees no GPU; "
            "install a build of PyTorch for CUDA, or measure with --device cpu"
        )
    return "cuda"


class Queued:
    """What a call of PyTorch returns to a clock that waits by `jax.block_until_ready`."""

    def __init__(self, torch: Any, device: str):
        self._torch, self._device = torch, device

    def block_until_ready(self) -> "Queued":
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return self
