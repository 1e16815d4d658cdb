# SPDX-License-Identifier: Apache-2.0
"""The files of Table 1: written whole, resumed, and never in the place of somebody else's."""

import csv
import json
import re

import pytest

from mambaout_jax.report import measured, table1
from mambaout_jax.report.measured import Settings
from mambaout_jax.report.table1 import report
from mambaout_jax.runtime.lock import DirectoryLock

FILES = ["table1.csv", "table1.html", "table1.json", "table1.md"]
ERRORS = {"rows": [{"model": "mambaout_femto", "error": 3.25e-6, "dtype": "float32",
                    "date": "2026-01-02", "jax": "0.10.0"}]}  # fmt: skip


@pytest.fixture
def errors(tmp_path):
    path = tmp_path / "errors.json"
    path.write_text(json.dumps(ERRORS))
    return path


@pytest.fixture
def speeds(monkeypatch):
    """Instead of measuring: models whose measurement would fail, to be changed by tests."""
    broken = set()

    def run(*, models, **_):
        if models[0] in broken:
            raise KeyboardInterrupt
        speed = {"median": 20.0, "min": 19.0, "max": 21.0}
        row = {"images_per_second": {"ours": speed}, "temp_bytes": {"ours": 2**20},
               "compile_seconds": {"ours": 1.0}}  # fmt: skip
        return {"rows": [row]}

    monkeypatch.setattr(measured.throughput, "run", run)
    monkeypatch.setattr(measured, "check_cost", lambda name: None)
    return broken


def lines(out):
    with (out / "table1.csv").open(newline="") as file:
        return {line["library_model"]: line for line in csv.DictReader(file)}


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_quick_measures_nothing_and_writes_everything(tmp_path, errors):
    out = tmp_path / "new" / "table"
    files = report(out, errors=errors, quick=True)
    assert sorted(file.name for file in files) == FILES == sorted(p.name for p in out.iterdir())
    femto = lines(out)["mambaout_femto"]
    assert femto["logit_error"] == "3.25e-06"
    assert femto["images_per_second"] == "not measured"
    for name in ("table1.md", "table1.html"):
        text = (out / name).read_text()
        assert "not been measured: the command measures them" in text
        assert "by `python tests/logit_errors.py`, 2026-01-02, jax 0.10.0." in text


def test_without_errors_their_command_is_named(tmp_path):
    report(tmp_path, errors=None, quick=True)
    assert {line["logit_error"] for line in lines(tmp_path).values()} == {"not measured"}
    assert (
        "None is known here: `python tests/logit_errors.py`" in (tmp_path / "table1.md").read_text()
    )


def test_a_run_that_is_stopped_goes_on(tmp_path, speeds):
    speeds.add("mambaout_small")
    chosen = {"models": ["mambaout_*"], "settings": Settings(rounds=2), "errors": None}
    with pytest.raises(KeyboardInterrupt):
        report(tmp_path, **chosen)
    assert [path.name for path in tmp_path.iterdir()] == ["table1.json"]
    speeds.clear()
    speeds.add("mambaout_femto")  # which has been measured
    report(tmp_path, **chosen)
    table = lines(tmp_path)
    names = {name for name, line in table.items() if line["images_per_second"] == "20.0"}
    assert names == {"mambaout_femto", "mambaout_small"}
    assert table["mambaout_small"]["temporary_memory_bytes"] == str(2**20)
    assert (
        "batches of 8 in float32, random weights, median of 2 calls"
        in (tmp_path / "table1.md").read_text()
    )
    report(tmp_path, errors=None, quick=True)  # loses none of them
    assert lines(tmp_path) == table


def test_other_settings_begin_anew_only_by_force(tmp_path, speeds):
    chosen = {"models": ["van_b0"], "errors": None}
    report(tmp_path, **chosen)
    before = contents(tmp_path)
    other = {**chosen, "settings": Settings(batch_size=1), "models": ["van_b2"]}
    with pytest.raises(ValueError, match="batch_size was 8 and is 1 now"):
        report(tmp_path, **other)
    assert contents(tmp_path) == before
    report(tmp_path, **other, force=True)
    record = json.loads((tmp_path / "table1.json").read_text())
    assert record["rows"].keys() == {"van_b2"}
    report(tmp_path, **{**other, "models": ["van_b3"]}, force=True)  # the same: nothing is dropped
    record = json.loads((tmp_path / "table1.json").read_text())
    assert record["rows"].keys() == {"van_b2", "van_b3"}


@pytest.mark.parametrize("name", ["table1.csv", "table1.md", "table1.html"])
@pytest.mark.parametrize("written", [False, True])
def test_files_of_another_origin_stay(tmp_path, name, written):
    if written:
        report(tmp_path, errors=None, quick=True)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=rf"{name} is not what `mambaout report table1` wrot"):
        report(tmp_path, errors=None, quick=True)
    assert contents(tmp_path) == before
    report(tmp_path, errors=None, quick=True, force=True)
    assert (tmp_path / name).read_text() != "mine"


def test_another_record_stays(tmp_path):
    (tmp_path / "table1.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"table1\.json is no record"):
        report(tmp_path, errors=None, quick=True)
    assert contents(tmp_path) == {"table1.json": b"{}"}
    report(tmp_path, errors=None, quick=True, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_kill_while_files_are_written_leaves_files_of_its_own(
    tmp_path, errors, step, monkeypatch
):
    report(tmp_path, errors=None, quick=True)
    begun = []

    def killed(path):
        begun.append(path)
        if len(begun) > step:
            raise KeyboardInterrupt
        return replacing(path)

    replacing = table1.replacing
    with monkeypatch.context() as patch:
        patch.setattr(table1, "replacing", killed)
        with pytest.raises(KeyboardInterrupt):
            report(tmp_path, errors=errors, quick=True)
    report(tmp_path, errors=errors, quick=True)
    assert lines(tmp_path)["mambaout_femto"]["logit_error"] == "3.25e-06"


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("file", NotADirectoryError, "file is not a folder; name another --out"),
        ("file/below", NotADirectoryError, "file is not a folder; name another --out"),
        ("folder", IsADirectoryError, r"table1\.md is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_first(tmp_path, place, error, words):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder" / "table1.md").mkdir(parents=True)
    with pytest.raises(error, match=words):
        report(tmp_path / place, errors=None, quick=True, force=True)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["table1.md"]


def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=f"nothing can be made in {re.escape(str(tmp_path))}"):
        report(tmp_path / "new", errors=None, quick=True)


def test_two_processes_do_not_write_at_once(tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    with pytest.raises(RuntimeError, match=f"{re.escape(str(tmp_path))} is in use by process"):
        report(tmp_path, errors=None, quick=True)
    lock.release()
    report(tmp_path, errors=None, quick=True)


def test_a_mistake_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"matches 'mambaout_femtoo'; did you mean mambaout_femto"):
        report(tmp_path / "new", errors=None, models=["mambaout_femtoo"])
    with pytest.raises(ValueError, match="device='tpu' is not there"):
        report(tmp_path / "new", errors=None, settings=Settings(device="tpu"))
    with pytest.raises(FileNotFoundError):
        report(tmp_path / "new", errors=tmp_path / "none.json", quick=True)
    assert list(tmp_path.iterdir()) == []
