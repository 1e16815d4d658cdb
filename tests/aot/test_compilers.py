# SPDX-License-Identifier: Apache-2.0
"""The real compilers of TPUs and of NVIDIA GPUs, installed as README says, on a kernel of ours."""

import json
import os
import subprocess
import sys

import pytest
from support.places import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.long]

# The gradient of a fused scan whose images are spread over eight chips.
PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from mambaout_jax.aot.program import collectives, sizes
from mambaout_jax.aot.targets import devices_of
from mambaout_jax.kernels.selective_scan import selective_scan

devices = np.asarray(devices_of(sys.argv[1]))
mesh = Mesh(devices.reshape(4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

def array(spec, *shape):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

def scan(*arrays):
    return selective_scan(*arrays, delta_softplus=True, implementation="pallas")

def gradient(dy, *arrays):
    return jax.vjp(scan, *arrays)[1](dy)

images = (("data", "fsdp"),)
tokens, states = array(images, 16, 64, 128), array(images, 16, 64, 16)
A = array((), 128, 16)
compiled = jax.jit(gradient).lower(tokens, tokens, tokens, A, states, states).compile()
text = compiled.as_text()
print(json.dumps({
    "devices": len(devices),
    "kind": devices.flat[0].device_kind,
    "kernels": text.count("custom_call_target="),
    "collectives": collectives(text), "bytes": sizes(compiled),
}))
"""


@pytest.mark.parametrize(
    ("target", "extra", "kind"),
    [("v5e-8", "aot-tpu", "TPU v5 lite"), ("h100x8", "aot-gpu", "NVIDIA H100 80GB HBM3")],
)
def test_a_sharded_scan_compiles_for_a_machine_that_is_not_here(tmp_path, target, extra, kind):
    folder = tmp_path / extra
    python = folder / "bin" / "python"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX", "XLA"))}
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "-e", f"{ROOT}[{extra}]"],
    ):
        subprocess.run(command, check=True, env=environment, timeout=1200)
    run = subprocess.run(
        [python, "-c", PROGRAM, target],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert (found["devices"], found["kind"]) == (8, kind)
    assert found["kernels"] == 2  # forward and backward
    # Every chip scans its own images. What A adds up over images is the one thing to exchange, and
    # its gradient has 128 x 16 numbers.
    assert set(found["collectives"]) == {"all-reduce"}
    assert found["collectives"]["all-reduce"]["bytes"] < 4 * 4 * 128 * 16
    # An array of tokens and states would have 1 MiB on a chip.
    assert found["bytes"]["temporaries"] < 2**20
