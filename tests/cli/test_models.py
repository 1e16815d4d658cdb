# SPDX-License-Identifier: Apache-2.0
"""`mambaout models`: all models by default, else those that match."""

import pytest

from mambaout_jax.cli.main import main
from mambaout_jax.weights import catalog


@pytest.mark.parametrize(("arguments", "pattern"), [([], "*"), (["*_rw"], "*_rw")])
def test_models_prints_the_table_of_a_pattern(monkeypatch, capsys, arguments, pattern):
    monkeypatch.setattr(catalog, "model_table", lambda pattern: f"table of {pattern}")
    assert main(["models", *arguments]) == 0
    assert capsys.readouterr().out == f"table of {pattern}\n"
