# SPDX-License-Identifier: Apache-2.0
"""`mambaout export`: what it passes on, and what it refuses before it works."""

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.cli.main import main
from mambaout_jax.export import artifact


class Written:
    def save(self, path):
        return [path, path.with_suffix(".json")]


@pytest.fixture
def calls(monkeypatch):
    calls = []

    def export_weights(*arguments, **options):
        calls.append((*arguments, options))
        return Written()

    monkeypatch.setattr(artifact, "export_weights", export_weights)
    return calls


@pytest.mark.parametrize(
    ("size", "image_size", "input_size"),
    [("384", 384, None), ("512x2048", None, (512, 2048))],
)
def test_export_passes_its_arguments_on(calls, tmp_path, capsys, size, image_size, input_size):
    out = tmp_path / "a.jaxexport"
    command = ["export", "w.pth", str(out), "--model=mambaout_tiny", "--task=segmentation"]
    assert main([*command, f"--image-size={size}", "--batch-size=2", "--platforms=cpu,tpu"]) == 0
    assert capsys.readouterr().out == f"{out}\n{out.with_suffix('.json')}\n"
    options = {"kind": "segmentation", "image_size": image_size, "input_size": input_size,
               "batch_size": 2, "platforms": ["cpu", "tpu"]}  # fmt: skip
    assert calls == [("w.pth", "mambaout_tiny", options)]


def test_export_checks_both_files_before_it_works(calls, tmp_path, capsys):
    out = tmp_path / "a.jaxexport"
    words = usage_error(capsys, "export", "w.pth", str(tmp_path / "a.bin"))
    assert "a.bin is to be a .jaxexport file; call it" in words
    out.with_suffix(".json").touch()
    words = error_line(capsys, "export", "w.pth", str(out))
    assert "a.json exists; name another file, or replace it with --force" in words
    assert calls == []
    assert main(["export", "w.pth", str(out), "--force"]) == 0


@pytest.mark.parametrize("size", ["0", "64x0", "64x", "x", "64x64x3"])
def test_export_wants_sizes(capsys, size):
    words = usage_error(capsys, "export", "w.pth", "a.jaxexport", f"--image-size={size}")
    assert "is not a whole number of at least 1" in words
