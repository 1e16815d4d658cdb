# SPDX-License-Identifier: Apache-2.0
"""PyTorch as a peer: found or not, on the right device, and waited for."""

import importlib.util
import types

import jax
import pytest

from mambaout_jax.benchmarks import torch_peer

CPU, GPU = (types.SimpleNamespace(platform=name, device_kind="H100") for name in ("cpu", "gpu"))


def torch_with(gpus, waited=None):
    cuda = types.SimpleNamespace(
        is_available=lambda: gpus > 0, synchronize=lambda: waited.append("cuda")
    )
    return types.SimpleNamespace(__version__="2.0", cuda=cuda)


def test_torch_is_none_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert torch_peer.find_torch() is None


def test_torch_runs_where_jax_does():
    assert torch_peer.torch_device(torch_with(1), CPU) == "cpu"
    assert torch_peer.torch_device(torch_with(1), GPU) == "cuda"
    with pytest.raises(ValueError, match=r"JAX runs on H100, but PyTorch 2\.0 sees no GPU"):
        torch_peer.torch_device(torch_with(0), GPU)


@pytest.mark.parametrize(("device", "waits"), [("cpu", []), ("cuda", ["cuda"])])
def test_the_clock_waits_for_a_gpu(device, waits):
    waited = []
    jax.block_until_ready(torch_peer.Queued(torch_with(1, waited), device))
    assert waited == waits
