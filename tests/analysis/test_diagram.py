# SPDX-License-Identifier: Apache-2.0
"""The picture of the two blocks: they differ by the SSM and its activation, and by nothing else."""

import numpy as np
import pytest
from PIL import Image
from support.places import ROOT

from mambaout_jax.analysis.diagram import draw_blocks
from mambaout_jax.cli.main import main

COMMITTED = ROOT / "experiments" / "results" / "blocks.png"
ORANGE, BLUE = (213, 94, 0), (86, 180, 233)  # of the SSM and of the convolution


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("diagram") / "blocks.png"
    draw_blocks(path)
    return pixels(path)


def count(image, color):
    return int((image == color).all(axis=-1).sum())


def test_only_the_mamba_block_has_an_ssm_and_both_have_the_convolution(picture):
    gated, mamba = np.array_split(picture[:, :712], 2, axis=1)
    assert count(gated, ORANGE) == 0
    assert count(mamba, ORANGE) > 1500
    assert count(gated, BLUE) == pytest.approx(count(mamba, BLUE), rel=0.02)
    assert count(gated, BLUE) > 1500


def test_the_blocks_agree_beside_the_ssm(picture):
    # Six units of the diagram's 12.8 stand between the blocks.
    shift = round(picture.shape[1] * 6 / 12.8)
    gated, mamba = picture[:, 60:340], picture[:, 60 + shift : 340 + shift]
    differs = np.abs(gated - mamba).max(axis=-1) > 96
    rows = np.flatnonzero(differs[60:600].sum(axis=1) > 8) + 60  # below the title, above the words
    ssm = np.flatnonzero((mamba == ORANGE).all(axis=-1).any(axis=1))
    assert rows.min() == pytest.approx(ssm.min(), abs=4)
    assert rows.max() < ssm.max() + 75  # the activation stands right below


def test_the_command_draws_the_picture_in_the_readme(tmp_path, capsys):
    path = tmp_path / "blocks.png"
    assert main(["analyse", "blocks", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    drawn, committed = pixels(path), pixels(COMMITTED)
    assert drawn.shape == committed.shape
    assert (
        np.abs(drawn - committed).max(axis=-1) > 64
    ).mean() < 0.01  # fonts move between versions
