# SPDX-License-Identifier: Apache-2.0
"""--distributed: what is handed to JAX, and what a wrong value says."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest
from support import tiny_run
from support.command_line import error_line

from mambaout_jax.cli.distributed import is_first_process, join_processes

TINY = tiny_run.__file__


@pytest.mark.parametrize(
    ("cluster", "calls"),
    [(None, []), ("", [()]), ("host:1234,8,3", [("host:1234", 8, 3)])],
)
def test_join_processes_initialises_jax(monkeypatch, cluster, calls):
    seen = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: seen.append(arguments))
    join_processes(cluster)
    assert seen == calls


@pytest.mark.parametrize(("index", "first"), [(0, True), (1, False)])
def test_only_process_0_is_first(monkeypatch, index, first):
    monkeypatch.setattr(jax, "process_index", lambda: index)
    assert is_first_process() is first


@pytest.mark.parametrize("value", ["localhost", "localhost:1,2", "localhost:1,two,0"])
def test_malformed_distributed_is_one_line(capsys, value):
    words = "give it HOST:PORT,COUNT,INDEX: the address of process 0"
    assert words in error_line(capsys, "train", "--config", TINY, f"--distributed={value}")


def test_distributed_without_a_cluster_is_one_line():
    command = [sys.executable, "-m", "mambaout_jax", "train", "--config", TINY, "--distributed"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(TINY).parent.parent
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: --distributed= finds no other process (")
    assert result.stderr.count("\n") == 1
