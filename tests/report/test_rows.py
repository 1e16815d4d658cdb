# SPDX-License-Identifier: Apache-2.0
"""Rows of Table 1: our figures beside the printed ones, and why they differ."""

import pytest
from logit_errors import compared, name_of
from support.goldens import MODELS, model_of

from mambaout_jax.models import find_variant
from mambaout_jax.report import rows
from mambaout_jax.report.printed import TABLE_1, Printed
from mambaout_jax.report.rows import ERRORS, read_errors, table_rows

BY_HAND = "MACs are printed by LocalMamba's formula of the scan, which gives {} G"


@pytest.fixture(scope="module")
def by_model():
    return {row.printed.model: row for row in table_rows()}


def test_parameters_are_those_of_the_models(by_model):
    assert len(by_model) == 80
    for row in by_model.values():
        assert row.ours.parameters == find_variant(row.printed.name)[1].parameters
    # Of the paper's code and timm's.
    assert by_model["MambaOut-Femto"].ours.parameters == 7_304_536
    assert by_model["DeiT-B"].ours.parameters == 86_567_656


def test_macs_are_counted_at_the_published_size(by_model):
    assert by_model["MambaOut-Small"].ours.macs == 8_936_423_616
    mobile = by_model["MobileViTv3-XS"].ours
    assert (mobile.image_size, mobile.macs) == (256, 966_618_112)
    sizes = {row.ours.image_size for name, row in by_model.items() if name != "MobileViTv3-XS"}
    assert sizes == {224}


@pytest.mark.parametrize(
    ("model", "note"),
    [
        ("MambaOut-Femto", ""),
        ("ConvNeXt-B", ""),
        ("T2T-ViT-24", ""),  # 0.14 G fewer, of norms
        ("InternImage-S", ""),  # 8.3 are printed as 8
        ("EMO-6M", "its reference has 6.17 M parameters as well"),
        ("Focal-Small", "0.38 G MACs more than are printed"),
        ("VMamba-B", "parameters are printed without the classifier's"),
        ("Vim-Ti", BY_HAND.format("1.49")),
        ("LocalVim-S", "with the scans of the model that its authors' code makes; "
         + BY_HAND.format("4.79")),
        ("RepLKNet-31B", "as it is trained, with its small kernels beside the large ones; its "
         "reference has 79.86 M parameters as well; 0.13 G MACs more than are printed"),
    ],
)  # fmt: skip
def test_what_differs_is_said(by_model, model, note):
    assert by_model[model].note == note


def test_a_model_that_is_not_here_says_so(monkeypatch):
    absent = Printed("No-Net", "Pool", "5", "1.0", "70.0", "no_net")
    monkeypatch.setattr(rows, "TABLE_1", (absent, TABLE_1[0]))
    measured = {"no_net": {"images_per_second": {"median": 1.0}, "temp_bytes": 1}}
    first, second = table_rows([{"model": "no_net", "error": 1.0, "dtype": "float32"}], measured)
    assert first == (absent, None, "", None, None, None)
    assert second.ours.family == "van"


def test_the_error_is_the_largest_of_a_models_references():
    found = [
        {"model": "van_b0", "error": 1e-6, "dtype": "float32"},
        {"model": "van_b0", "error": 3e-6, "dtype": "float64"},
        {"model": "van_b2", "error": 9e-6, "dtype": "float32"},
    ]
    by_name = {row.printed.name: row for row in table_rows(found)}
    assert by_name["van_b0"].error == (3e-6, "float64", 2)
    assert by_name["van_b3"].error is None


def test_speed_and_memory_are_the_measured_ones():
    speed = {"median": 5.0, "min": 4.0, "max": 6.0}
    measured = {"van_b0": {"images_per_second": speed, "temp_bytes": None}}
    first, second = table_rows((), measured)[:2]
    assert (first.speed, first.memory) == (speed, None)
    assert (second.speed, second.memory) == (None, None)


@pytest.mark.parametrize("text", ["[]", "{}", '{"rows": [1]}', '{"rows": [{"model": "van_b0"}]}'])
def test_another_file_than_one_of_errors_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path} is no file of logit errors; `python tests/log"):
        read_errors(path)


def test_the_recorded_errors_are_of_the_goldens_and_small():
    recorded = read_errors(ERRORS)
    there = {name_of(path): model_of(path) for path in compared(MODELS)}
    assert {row["golden"]: row["model"] for row in recorded}.items() <= there.items()
    assert {row.name for row in TABLE_1} <= {row["model"] for row in recorded}
    for row in recorded:
        assert 0 < row["error"] <= 5e-5, row["golden"]
        assert row["dtype"] == ("float64" if row["golden"].endswith("_f64") else "float32")
        assert row.keys() >= {"date", "jax", "jaxlib", "python", "machine", "cpu_count"}
