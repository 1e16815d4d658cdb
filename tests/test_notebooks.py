# SPDX-License-Identifier: Apache-2.0
"""Notebooks are short, are kept with their outputs, and give the same when they are run again."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in PATHS]

# What a run of a notebook has to print: a pattern whose group is a number, and the least it may be.
PROMISES = {
    "01_quickstart": (
        (r"(\d+\.\d) % of the test digits are read", 95),
        (r"step 264: (\d+\.\d) %", 95),
        (r"(\d+) of 359 are wrong", 1),
    ),
    "02_gated_cnn_vs_mamba": (
        (r"sequential +(\d+\.\d) x the convolution's time", 1.5),
        (r"associative +(\d+\.\d) x the convolution's time", 5),
        (r"chunked +(\d+\.\d) x the convolution's time", 1.2),
        (r"cue_short +conv +(\d+\.\d) %", 95),
        (r"cue_long +conv\+ssm bidirectional +(\d+\.\d) %", 80),
    ),
    "03_detection": (
        (r"box AP (\d+\.\d), mask AP", 15),
        (r", mask AP (\d+\.\d)", 12),
    ),
    "04_segmentation": (
        (r"mean IoU on the test scenes: (\d+\.\d) %", 18),
        (r"three scales (\d+\.\d) %", 18),
    ),
}


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook):
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def keeps(notebook, name):
    text = printed(notebook)
    for pattern, least in PROMISES[name]:
        (found,) = re.findall(pattern, text)
        assert float(found) >= least, pattern


def test_every_notebook_makes_promises():
    assert set(NAMES) == set(PROMISES)


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_notebook_is_short_and_kept_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 15
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(
        range(1, 1 + sum(cell.cell_type == "code" for cell in notebook.cells))
    )
    assert all(output.output_type != "error" for output in outputs(notebook))
    assert "site-packages" not in printed(notebook)
    keeps(notebook, path.stem)


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_notebook_runs_and_keeps_its_promises(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # as on its reader's machine
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # what compiles quickly here runs scans slowly
    notebook = nbformat.read(path, as_version=4)
    drawn = pictures(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert pictures(notebook) == drawn
    keeps(notebook, path.stem)
