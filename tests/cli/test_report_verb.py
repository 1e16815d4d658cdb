# SPDX-License-Identifier: Apache-2.0
"""`mambaout report`: a table in seconds, and mistakes before any work."""

import csv

import pytest
from support.command_line import error_line, usage_error

from mambaout_jax.cli.main import build_parser, main
from mambaout_jax.report import measured, rows, table1
from mambaout_jax.report.measured import Settings


def test_quick_writes_the_table(capsys, tmp_path):
    for _ in range(2):  # the second time over its own files
        assert main(["report", "table1", "--quick", "--out", str(tmp_path / "t")]) == 0
        names = ["table1.csv", "table1.md", "table1.html", "table1.json"]
        assert capsys.readouterr().out.split() == [str(tmp_path / "t" / name) for name in names]
    with (tmp_path / "t" / "table1.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 80
    assert {line["images_per_second"] for line in lines} == {"not measured"}
    femto = next(line for line in lines if line["model"] == "MambaOut-Femto")
    recorded = [row["error"] for row in rows.read_errors(rows.ERRORS)
                if row["model"] == "mambaout_femto"]  # fmt: skip
    assert len(recorded) == 2
    assert float(femto["logit_error"]) == pytest.approx(max(recorded), rel=5e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: table, --out"),
        (["table2", "--out=t"], "invalid choice: 'table2'"),
        (["table1", "--out=t", "--quick", "--batch-size=2", "--models", "vim_tiny"],
         "--quick measures nothing: leave --models, --batch-size out, or --quick"),
        (["table1", "--out=t", "--rounds=0"], "'0' is not a whole number of at least 1"),
    ],
)  # fmt: skip
def test_wrong_usage(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in usage_error(capsys, "report", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line(capsys, tmp_path):
    (tmp_path / "table1.md").write_text("mine")
    out = ["report", "table1", "--quick", "--out"]
    assert "table1.md is not what" in error_line(capsys, *out, str(tmp_path))
    assert "is not a folder" in error_line(capsys, *out, str(tmp_path / "table1.md"))
    errors = ["--errors", str(tmp_path / "table1.md")]
    assert "is damaged" in error_line(capsys, *out, str(tmp_path), *errors)
    assert [path.name for path in tmp_path.iterdir()] == ["table1.md"]


def test_arguments_are_settings_of_the_measurements(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(table1, "report", lambda out, **options: given.update(options) or [])
    arguments = ["--models", "vim_*", "van_b0", "--batch-size=2", "--rounds=3", "--dtype=bfloat16",
                 "--device=cpu", "--force"]  # fmt: skip
    assert main(["report", "table1", "--out", str(tmp_path), *arguments]) == 0
    assert given["settings"] == Settings(batch_size=2, dtype="bfloat16", rounds=3, device="cpu")
    assert given["models"] == ["vim_*", "van_b0"]
    assert (given["quick"], given["force"]) == (False, True)


def test_defaults_are_told():
    text = build_parser().parse_args(["report", "table1", "--out=t"]).parser.format_help()
    assert f"images per call ({Settings().batch_size})" in text
    assert f"timed of each model ({Settings().rounds})" in text
    assert f"precision ({Settings().dtype})" in text


@pytest.mark.slow
@pytest.mark.optimised
def test_a_model_is_measured(tmp_path):
    name = "deit_tiny_patch16_224"
    arguments = ["--models", name, "--batch-size=1", "--rounds=1", "--device=cpu"]
    assert main(["report", "table1", "--out", str(tmp_path), *arguments]) == 0
    row = measured.read_record(tmp_path / "table1.json")["rows"][name]
    assert row["images_per_second"]["median"] > 0
    assert row["temp_bytes"] > 2**20
    assert row["image_size"] == 224
