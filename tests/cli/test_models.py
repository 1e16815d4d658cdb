# SPDX-License-Identifier: Apache-2.0
"""`mambaout models`: all models by default, else those that match."""

import pytest

from mambaout_jax.analysis import dense_cost
from mambaout_jax.analysis.cost import Cost
from mambaout_jax.cli.main import main
from mambaout_jax.weights import catalog


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [([], ("*", None)), (["*_rw"], ("*_rw", None)), (["--family", "vim"], ("*", "vim"))],
)
def test_models_prints_the_table_of_a_pattern(monkeypatch, capsys, arguments, asked):
    monkeypatch.setattr(catalog, "model_table", lambda *asked: f"table of {asked}")
    assert main(["models", *arguments]) == 0
    assert capsys.readouterr().out == f"table of {asked}\n"


def test_models_prints_what_dense_models_cost(monkeypatch, capsys):
    monkeypatch.setattr(dense_cost, "dense_cost", lambda name, task: Cost(43_130_000, 262 * 10**9))
    assert main(["models", "mambaout_[tb]*", "--family", "mambaout", "--task", "detection"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "model parameters MACs (Mask R-CNN, 1280 x 800)"
    assert rows[0].split() == ["mambaout_tiny", "43.13", "M", "262.0", "G"]
    assert [row.split()[0] for row in rows] == catalog.matching_models("mambaout_[tb]*", "mambaout")
    assert main(["models", "resnet*", "--task", "segmentation"]) == 2
    assert "no model matches 'resnet*'" in capsys.readouterr().err
