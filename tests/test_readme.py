# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: its commands run, its paths exist, its code computes what it says."""

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from photo_patches import write_photo_patches

from mambaout_jax.cli import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    return [line for block in blocks("bash") for line in block.strip().split("\n")]


def test_the_first_command_is_the_quickstart_and_the_second_the_tests():
    assert commands()[:2] == [
        "pip install -e . && python experiments/quickstart.py",
        "pip install -e '.[dev]' && pytest",
    ]


def test_every_mambaout_command_runs(tmp_path, monkeypatch, capsys):
    lines = [line for line in commands() if line.startswith("mambaout ")]
    assert len(lines) == sum("mambaout" in line.split(" ")[0] for line in commands()) >= 4
    for name in ("experiments", "mambaout_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    # The commands as they stand, on fewer updates.
    shorter = ["--config.schedule.total_steps=2", "--config.schedule.warmup_steps=1"]
    smaller = ["--config.model.name=mambaout_micro", "--config.data.image_size=32",
               "--config.batch_size=16", "--config.data.num_threads=2"]  # fmt: skip
    write_photo_patches(tmp_path / "photos", per_class=8)
    for line in lines:
        arguments = shlex.split(line)[1:]
        extra = shorter if arguments[0] == "train" else []
        if "experiments/folder.py" in arguments:
            extra = [*shorter, *smaller]
        assert main([*arguments, *extra]) == 0, line
    output = capsys.readouterr().out
    assert "effective batch    64 = 8 devices x 8 examples x 1 micro-batches" in output
    assert "shift ms" in output
    assert "round trip" in output
    for picture in ("batch.png", "runs/other/curves.png", "runs/other/figures/mistakes.png",
                    "predictions.png", "runs/folder/figures/confusion_matrix.png"):  # fmt: skip
        assert (tmp_path / picture).stat().st_size > 1000, picture


def test_python_code_computes_what_its_comments_say():
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["logits"].shape == (1, 10)
    expected = re.search(r"\[m\.shape for m in maps\]\s+# (.*)", TEXT).group(1)
    assert [m.shape for m in namespace["maps"]] == ast.literal_eval(expected)
    last = blocks("python")[-1].strip().split("\n")[-1]
    assert last.endswith("# True")
    assert eval(last, namespace) is True
    for one, other in zip(
        namespace["again"]["params"]["head"].values(),
        namespace["variables"]["params"]["head"].values(),
        strict=True,
    ):
        for leaf in one:
            np.testing.assert_array_equal(one[leaf], other[leaf])


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+\.\w+)\)", TEXT))))
def test_linked_files_exist(path):
    assert (ROOT / path).is_file()


def test_the_tree_names_what_is_there():
    (tree,) = (block for block in blocks("text") if block.startswith("mambaout_jax/"))
    names = re.findall(r"^(?:  )?([\w/.]+)  ", tree, re.MULTILINE)
    package = set(re.findall(r"^  ([\w/.]+)  ", tree, re.MULTILINE))
    for name in names:
        assert (ROOT / "mambaout_jax" / name if name in package else ROOT / name).exists(), name
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "mambaout_jax").iterdir()
        if not path.name.startswith("__")
    }
    assert package == there
