# SPDX-License-Identifier: Apache-2.0
"""The examples below each verb's help are commands that the verb takes."""

import re
import shlex

import pytest

from mambaout_jax.cli import main as cli
from mambaout_jax.cli.examples import EXAMPLES


def commands(verb):
    """The examples of a verb as lists of words, without "mambaout"."""
    text = EXAMPLES[verb].replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in re.findall(r"^  (mambaout .*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("verb", EXAMPLES)
def test_examples_parse(verb, monkeypatch, capsys):
    taken = []

    def run(arguments, _):
        taken.append(arguments.verb)
        return 0

    monkeypatch.setattr(cli, f"_{verb}", run)
    assert [cli.main(command) for command in commands(verb)] == [0] * len(commands(verb))
    assert taken == [verb] * len(commands(verb))
    assert taken
