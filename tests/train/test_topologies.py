# SPDX-License-Identifier: Apache-2.0
"""The same run on one, two and four processes and on other meshes, started there or resumed."""

import jax
import pytest
from support.runs import assert_close, checkpoints, rewind, timeless_metrics
from support.sharded_run import STEPS, get_config
from support.together import together

from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.runtime.mesh import make_mesh, state_shardings
from mambaout_jax.train.loop import train

pytestmark = [pytest.mark.slow, pytest.mark.long]


def run_together(count, **runs):
    """Runs, as workdir=fsdp, by processes that share eight devices."""
    names = [f"{workdir}:{fsdp}" for workdir, fsdp in runs.items()]

    def command(*place):
        return ["-m", "support.sharded_run", *map(str, place), *names]

    with together(command, count, 8 // count) as processes:
        outputs = [process.communicate(timeout=400) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, outputs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The workdirs of all runs; `one` is of this process, with every parameter on all devices."""
    folder = tmp_path_factory.mktemp("runs")
    train(get_config(fsdp=1), folder / "one")
    rewind(folder / "one", folder / "one_then_two", STEPS // 2)
    two = {"two_8x1": 1, "two_2x4": 4, "two_1x8": 8, "one_then_two": 4}
    four = {"four_8x1": 1, "four_2x4": 4, "four_1x8": 8}
    for count, names in ((2, two), (4, four)):
        run_together(count, **{str(folder / name): fsdp for name, fsdp in names.items()})
    for name in ("two_2x4", "four_1x8"):
        train(get_config(fsdp=1), rewind(folder / name, folder / f"{name}_then_one", STEPS // 2))
    return folder


@pytest.mark.parametrize("fsdp", [4, 8])
def test_the_state_is_spread_in_these_runs(runs, fsdp):
    params = read_checkpoint(runs / "one" / "checkpoints").state["params"]
    shardings = state_shardings(params, make_mesh(fsdp))
    assert sum(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings)) >= 2


@pytest.mark.parametrize("mesh", ["8x1", "2x4", "1x8"])
@pytest.mark.parametrize("processes", ["two", "four"])
def test_processes_and_meshes_train_as_one_process_does(runs, processes, mesh):
    assert_equal(runs / f"{processes}_{mesh}", runs / "one")


@pytest.mark.parametrize("name", ["one_then_two", "two_2x4_then_one", "four_1x8_then_one"])
def test_a_run_goes_on_with_other_processes_on_another_mesh(runs, name):
    assert "was " in (runs / name / "log.txt").read_text()  # mesh.fsdp
    assert_equal(runs / name, runs / "one")


def assert_equal(workdir, one):
    assert checkpoints(workdir) == [STEPS // 2, STEPS]
    lines, expected = timeless_metrics(workdir), timeless_metrics(one)
    assert len(expected) >= STEPS
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=1e-4)
    assert_close(workdir, one, atol=1e-5)
