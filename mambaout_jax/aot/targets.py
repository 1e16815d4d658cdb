# SPDX-License-Identifier: Apache-2.0
"""Machines that programs are compiled for, and their devices, which need not exist here."""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

_GIB = 2**30


class Target(NamedTuple):
    """A machine.

    Attributes:
        kind: "tpu", "gpu", or "here".
        topology: as the compiler calls it.
        chips: how many.
        memory: bytes of one chip's memory that a program may use; 0: the compiler decides.
        host: chips of one host.
    """

    kind: str
    topology: str
    chips: int
    memory: int
    host: int


# Cloud TPUs are called by their chips (v5e, v6e) or by their cores, two in a chip (v5p).
TARGETS: dict[str, Target] = {
    "v5e-8": Target("tpu", "v5e:2x4", 8, int(15.75 * _GIB), 8),
    "v5e-32": Target("tpu", "v5e:4x8", 32, int(15.75 * _GIB), 8),
    "v5p-64": Target("tpu", "v5p:2x4x4", 32, int(95.74 * _GIB), 4),
    "v6e-32": Target("tpu", "v6e:4x8", 32, int(31.25 * _GIB), 8),
    "h100": Target("gpu", "1x1x1", 1, 84_978_434_048, 8),
    "h100x8": Target("gpu", "1x1x8", 8, 84_978_434_048, 8),
    "here": Target("here", "", 0, 0, 0),
}

# Without a GPU nothing is tuned, and of products in Triton's form the compiler then takes sizes of
# tiles that it refuses later ("Couldn't find output tile sizes"). A GPU tunes, and needs no help.
_OPTIONS: dict[str, dict[str, bool]] = {"gpu": {"xla_gpu_enable_triton_gemm": False}}

# What the plugins ask of a machine before they describe another one.
_TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# An H100 SXM as XLA describes it (`GpuTargetConfigProto`): no driver is here to ask.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def find_target(name: str) -> Target:
    """The machine of a name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in TARGETS:
        raise ValueError(f"target={name!r} is not known; allowed are {', '.join(TARGETS)}")
    return TARGETS[name]


def compiler_options(name: str) -> dict[str, bool]:
    """What to tell the compiler of a target where the machine itself is not here.

    Raises:
        ValueError: no such target.
    """
    return _OPTIONS.get(find_target(name).kind, {})


def devices_of(name: str) -> Sequence[Any]:
    """The devices of a target, to make a mesh of and to compile for.

    Raises:
        ValueError: no such target.
        ModuleNotFoundError: the compiler for it is not installed; says how to get it.
        RuntimeError: the compiler does not know the machine.
    """
    target = find_target(name)
    if target.kind == "here":
        return jax.devices()
    if target.kind == "tpu":
        _require("libtpu", name, "aot-tpu")
        for variable, value in _TPU_ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        options: dict[str, Any] = {"platform": "tpu", "topology_name": target.topology}
    else:
        _require("jax_cuda13_plugin", name, "aot-gpu")
        options = {
            "platform": "cuda",
            "topology_name": "h100",
            "target_config": _H100,
            "topology": target.topology,
        }
    try:
        return topologies.get_topology_desc(**options).devices
    except Exception as error:  # of the compiler, of whatever class
        raise RuntimeError(
            f"the compiler for target={name!r} does not describe it: {error}; install the versions "
            "that this JAX asks for (pip install 'mambaout-jax[aot-tpu]' or [aot-gpu]), each in an "
            "environment of its own"
        ) from error


def versions() -> dict[str, str]:
    """Versions of JAX and of the compilers that are installed."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _require(module: str, target: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(
            f"target={target!r} needs the compiler of that machine, which runs without it: "
            f"pip install 'mambaout-jax[{extra}]', in an environment of its own"
        )
