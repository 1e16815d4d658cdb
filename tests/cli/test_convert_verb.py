# SPDX-License-Identifier: Apache-2.0
"""`mambaout convert`: what it replaces, and what never."""

import pytest
from support.command_line import usage_error

from mambaout_jax.cli.main import main
from mambaout_jax.weights import load


@pytest.fixture
def converted(monkeypatch):
    """What would be converted, instead of converting it."""
    calls = []
    monkeypatch.setattr(load, "convert_file", lambda *arguments: calls.append(arguments))
    return calls


def test_force_replaces(tmp_path, converted):
    there = tmp_path / "there.safetensors"
    there.write_text("old")
    assert main(["convert", "mambaout_tiny.in1k", str(there), "--force"]) == 0
    assert converted == [("mambaout_tiny.in1k", there, None, None)]


def test_source_is_never_replaced(capsys, tmp_path, converted):
    there = tmp_path / "there.safetensors"
    there.write_text("weights")
    other = tmp_path / "other.safetensors"
    other.symlink_to(there)
    for source in (there, other):
        words = usage_error(capsys, "convert", str(source), str(there), "--force")
        assert "is the source itself; name another file to write" in words
    assert converted == []
