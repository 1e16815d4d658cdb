# SPDX-License-Identifier: Apache-2.0
"""`mambaout models`: all models by default, else those that match."""

import pytest

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
