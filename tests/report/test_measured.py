# SPDX-License-Identifier: Apache-2.0
"""Measurements of a report: kept one by one, and only with others that they compare with."""

import json
import re

import pytest

from mambaout_jax.analysis.cost import Cost
from mambaout_jax.models import find_variant
from mambaout_jax.report import measured
from mambaout_jax.report.measured import Settings, begin, check_cost, new_record, read_record

SPEED = {"median": 2.0, "min": 1.5, "max": 2.5}


@pytest.fixture
def calls(monkeypatch):
    """The arguments of every measurement, of which none is made."""
    made = []

    def run(**arguments):
        made.append(arguments)
        row = {
            "images_per_second": {"ours": SPEED},
            "temp_bytes": {"ours": 2**20},
            "compile_seconds": {"ours": 0.5},
        }
        return {"rows": [row]}

    monkeypatch.setattr(measured.throughput, "run", run)
    monkeypatch.setattr(measured, "check_cost", lambda name: None)
    return made


def test_inference_of_each_model_is_measured_at_its_own_size(calls):
    record = new_record()
    settings = Settings(batch_size=3, dtype="bfloat16", rounds=2, device="cpu")
    measured.measure(["van_b0", "mobilevitv3_xs"], settings, record, lambda: None)
    assert [(call["models"], call["image_size"]) for call in calls] == [
        (("van_b0",), 224), (("mobilevitv3_xs",), 256),
    ]  # fmt: skip
    for call in calls:
        assert call["passes"] == ("inference",)
        assert call["timm"] is False
        given = [call[key] for key in ("batch_size", "dtype", "rounds", "device")]
        assert given == [3, "bfloat16", 2, "cpu"]
    row = record["rows"]["mobilevitv3_xs"]
    assert row.pop("date")
    assert row == {"image_size": 256, "images_per_second": SPEED, "temp_bytes": 2**20,
                   "compile_seconds": 0.5}  # fmt: skip


def test_what_is_measured_is_kept_at_once_and_not_measured_again(calls):
    record, kept = new_record(), []
    settings = Settings()

    def keep():
        kept.append(json.loads(json.dumps(record))["rows"].keys())
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured.measure(["van_b0", "van_b2", "van_b3"], settings, record, keep)
    assert kept == [{"van_b0"}, {"van_b0", "van_b2"}]
    measured.measure(["van_b0", "van_b2", "van_b3"], settings, record, keep)
    assert [call["models"][0] for call in calls] == ["van_b0", "van_b2", "van_b3"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(batch_size=4), "batch_size was 8 and is 4 now"),
        (Settings(dtype="bfloat16"), "dtype was 'float32' and is 'bfloat16' now"),
    ],
)
def test_measurements_that_would_not_compare_are_refused(settings, words):
    record = new_record()
    begin(record, Settings())
    begin(record, settings)  # nothing has been measured yet
    begin(record, Settings())
    record["rows"]["van_b0"] = {}
    before = json.dumps(record)
    with pytest.raises(ValueError, match=f"would not compare: {words}. Set it back, name another"):
        begin(record, settings)
    assert json.dumps(record) == before
    begin(record, Settings())


def test_measurements_of_another_machine_are_refused():
    record = new_record()
    begin(record, Settings())
    record["rows"]["van_b0"] = {}
    record["environment"]["cpu_count"] = -1
    with pytest.raises(ValueError, match=r"would not compare: cpu_count was -1 and is \d+ now"):
        begin(record, Settings())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"command": "mambaout bench"}'])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "table1.json"
    assert read_record(path) == new_record()
    path.write_text(text)
    with pytest.raises(FileExistsError, match=rf"^{re.escape(str(path))} is no record of `mamba"):
        read_record(path)


def test_costs_are_counted_anew(monkeypatch):
    check_cost("test_mambaout")
    variant = find_variant("van_b0")[1]
    monkeypatch.setattr(measured, "count", lambda *_: Cost(variant.parameters, variant.macs + 1))
    with pytest.raises(ValueError, match=r"van_b0 has 4,105,800 parameters and 864,224,001 MACs, "):
        check_cost("van_b0")
