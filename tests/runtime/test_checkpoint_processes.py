# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of processes that are killed, and of two that write one together."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import pytest
from support.checkpoint_states import make_abstract

from mambaout_jax.runtime.checkpoint import Checkpointer, read_checkpoint


def run_python(source, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    return subprocess.Popen(command, **options)


def test_a_kill_during_a_save_leaves_the_step_before(tmp_path):
    process = run_python(
        """
        import os, pathlib, signal, sys
        import numpy as np, jax.numpy as jnp
        from mambaout_jax.runtime.checkpoint import Checkpointer
        directory = pathlib.Path(sys.argv[1])
        noise = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
        state = {"step": jnp.int32(1), "x": jnp.asarray(noise)}
        checkpointer = Checkpointer(directory, keep=2)
        checkpointer.save(1, {"step": jnp.int32(1)}, {})
        checkpointer.wait()
        checkpointer.save(2, state, {})
        while not list(directory.glob("2.*")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.orbax-checkpoint-tmp"]
    state = {"step": jnp.int32(1)}
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        restored = checkpointer.restore(make_abstract(state))
        assert (restored.step, restored.state["step"]) == (1, 1)
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpointer.save(2, {"step": jnp.int32(2)}, {})
    assert read_checkpoint(tmp_path).state["step"] == 2


@pytest.mark.newest
@pytest.mark.slow
def test_two_processes_save_check_and_fall_back_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    source = """
        import json, pathlib, sys
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        index, directory = int(sys.argv[2]), pathlib.Path(sys.argv[3])
        jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, index)
        from mambaout_jax.runtime.checkpoint import Checkpointer, read_checkpoint
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        shardings = {"whole": NamedSharding(mesh, P()), "split": NamedSharding(mesh, P("data"))}
        def make(seed):
            values = jax.random.bits(jax.random.key(seed), (64, 512), jnp.uint8)
            return {"whole": values[0], "split": values}
        make = jax.jit(make, static_argnums=0, out_shardings=shardings)
        with Checkpointer(directory, keep=2) as checkpointer:
            checkpointer.save(1, make(1), {})
            checkpointer.save(2, make(2), {})
            checkpointer.wait()
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), make(1), shardings)
            steps = [checkpointer.restore(target).step]
            jax.experimental.multihost_utils.sync_global_devices("read")
            if index == 0:
                values = jax.random.bits(jax.random.key(2), (64, 512), jnp.uint8)
                part = np.asarray(values).tobytes()[28000:28016]
                for path in (directory / "2").rglob("d/*"):
                    content = bytearray(path.read_bytes())
                    offset = content.find(part)
                    if offset >= 0:
                        content[offset] ^= 1
                        path.write_bytes(content)
            jax.experimental.multihost_utils.sync_global_devices("damaged")
            steps.append(read_checkpoint(directory).step)
            restored = checkpointer.restore(target)
            steps.append(restored.step)
            equal = jax.jit(lambda a, b: (a["split"] == b["split"]).all())
            assert equal(restored.state, make(1))
            assert checkpointer.steps() == [1]
            checkpointer.save(2, make(2), {})
            checkpointer.wait()
            steps.append(checkpointer.restore(target).step)
        pathlib.Path(f"{directory}_{index}").write_text(json.dumps(steps))
    """
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}
    directory = tmp_path / "run"
    processes = [run_python(source, port, index, directory, env=environment) for index in range(2)]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for index in range(2):
        assert json.loads((tmp_path / f"run_{index}").read_text()) == [2, 1, 1, 2]
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2", "unreadable"]
