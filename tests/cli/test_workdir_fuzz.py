# SPDX-License-Identifier: Apache-2.0
"""Damaged working directories: an evaluation gives the same numbers, or ends in a sentence."""

import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaout_jax.cli.main import main

pytestmark = pytest.mark.slow

DAMAGES = ("cut", "empty", "garbage", "remove", "folder", "byte")


def damage(path, kind, position):
    if kind == "remove":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    else:
        content = path.read_bytes()
        at = position % max(1, len(content))
        path.write_bytes(
            {
                "cut": content[:at],
                "empty": b"",
                "garbage": os.urandom(64),
                "byte": content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
                if content
                else b"",
            }[kind]
        )


def test_a_damaged_run_evaluates_alike_or_ends_in_a_sentence(tiny_run, capsys):
    workdir, _ = tiny_run
    files = sorted(str(x.relative_to(workdir)) for x in workdir.rglob("*") if x.is_file())
    values = set()

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(
        file=st.sampled_from(files),
        kind=st.sampled_from(DAMAGES),
        position=st.integers(0, 10_000),
    )
    def check(file, kind, position):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(workdir, Path(folder) / "run"))
            damage(copy / file, kind, position)
            before = sorted(str(path) for path in Path(folder).rglob("*"))
            code = main(["evaluate", "--workdir", str(copy)])
            said = capsys.readouterr()
            assert code in (0, 1, 2), (file, kind, said.err)
            if code == 0:
                steps = re.findall(r"step (\d+)", said.out)
                values.add((steps[0] if steps else "", said.out.replace(folder, "")))
            else:
                errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
                assert len(errors) == 1, said.err
                assert "Traceback" not in said.err
            assert sorted(str(path) for path in Path(folder).rglob("*")) == before

    check()
    # One result for each of the checkpoints that an evaluation can fall back to.
    assert 1 <= len({text for _, text in values}) <= 3
