# SPDX-License-Identifier: Apache-2.0
"""`mambaout compare`: the plan, what is refused, and real runs that are killed and go on."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from support import tiny_run
from support.command_line import error_line, usage_error
from support.places import ROOT
from support.runs import final_state, signal_after, timeless_metrics

from mambaout_jax.ablation import compare as module
from mambaout_jax.ablation.gates import contenders, parse_mixers
from mambaout_jax.cli.main import main
from mambaout_jax.config_file import load_config
from mambaout_jax.runtime.lock import DirectoryLock
from mambaout_jax.tasks.setup import set_up
from mambaout_jax.train.preemption import Preempted

TINY = tiny_run.__file__
COMMAND = ("compare", "--config", TINY, "--mixers")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["conv"], "mixers='conv' must be at least two different token mixers"),
        (["conv,x", "--equal=width"], "token_mixer='x' is not known; allowed are 'conv', 'conv+ss"),
        (["conv,attention", "--config.batch_size=12"], "does not divide into 8 devices"),
        (["conv,attention", "--config.modle.name=x"], 'Did you mean "model" instead of "modle"?'),
    ],
)
def test_wrong_usage_is_one_line_and_leaves_no_trace(
    capsys, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    assert words in error_line(capsys, *COMMAND, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a,b", "--seeds=0"], "argument --seeds: '0' is not a whole number of at least 1"),
        (["a,b", "--equal=params"], "argument --equal: invalid choice: 'params'"),
        (["a,b", "--workdir=x"], "there is no argument --workdir"),
    ],
)
def test_wrong_arguments_are_told(capsys, arguments, words):
    assert words in usage_error(capsys, *COMMAND, *arguments)
    assert "the following arguments are required: --mixers" in usage_error(capsys, *COMMAND[:-1])


def test_a_model_without_token_mixer_is_one_line(capsys, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        f"import runpy\n\ndef get_config():\n"
        f"    config = runpy.run_path({TINY!r})['get_config']()\n"
        "    config.model.name, config.model.options = 'convnext_tiny', {}\n"
        "    return config\n"
    )
    line = error_line(capsys, "compare", "--config", str(file), "--mixers", "conv,conv+ssm")
    assert "model.name='convnext_tiny' has no token mixer to exchange; set --config.model.n" in line


def test_dry_run_prints_the_plan_and_leaves_no_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*COMMAND, "conv,conv+ssm", "--equal=width", "--dry-run", "--seeds=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    models = contenders(set_up(tiny_run.get_config()), parse_mixers("conv,conv+ssm"), "width")
    for line, model in zip(lines[2:4], models, strict=True):
        cells = [model.mixer.name, "2.667", f"{model.cost.parameters:,}", f"{model.cost.macs:,}"]
        assert [cell.strip() for cell in line.split("|")[1:-1]] == cells
    words = "4 runs (2 mixers x 2 seeds) of 30 updates, into runs/tiny_run_compare"
    assert lines[4:] == [words]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused_before_anything_is_read(capsys, tmp_path):
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    command = ["compare", "--config", "none.py", "--mixers=a,b", "--out", str(tmp_path)]
    assert f"{tmp_path} is in use by process {os.getpid()} on" in error_line(
        capsys, *command, code=1
    )
    lock.release()
    assert "there is no config file none.py" in error_line(capsys, *command)


def test_a_stopped_comparison_has_code_75(capsys, tmp_path, monkeypatch):
    def train(config, workdir):
        raise Preempted(7, workdir / "checkpoints" / "7")

    monkeypatch.setattr(module, "train", train)
    command = [*COMMAND, "conv,conv+ssm", "--equal=width", "--out", str(tmp_path / "out")]
    assert main(command) == 75
    assert capsys.readouterr().err == (
        f"stopped after step 7 as asked; the state is in {tmp_path}/out/conv/seed_0/checkpoints/7: "
        "run the same command again to continue\n"
    )
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_a_killed_comparison_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, capsys):
    command = [*COMMAND, "conv+ssm:raster,conv", "--seeds=2", "--config.schedule.total_steps=24",
               "--config.checkpoint.every_steps=8", "--config.checkpoint.keep=9"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*command, "--out", str(whole)]) == 0
    printed = capsys.readouterr().out

    process = subprocess.Popen(
        [sys.executable, "-m", "mambaout_jax", *command, "--out", str(killed)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    signal_after(process, killed / "conv" / "seed_0", 8, signal.SIGKILL)
    process.communicate(timeout=60)
    assert (killed / "run.lock").exists()
    assert not (killed / "compare.json").exists()
    trained = []
    train = module.train
    monkeypatch.setattr(
        module, "train", lambda config, workdir: trained.append(workdir) or train(config, workdir)
    )
    assert main([*command, "--out", str(killed)]) == 0
    names = ["conv/seed_0", "conv+ssm_raster/seed_1", "conv/seed_1"]
    assert trained == [killed / name for name in names]
    assert "conv+ssm:raster, seed 0: run 1 of 4, has been trained\n" in capsys.readouterr().out

    results = [json.loads((out / "compare.json").read_text()) for out in (whole, killed)]
    for name in ["conv+ssm_raster/seed_0", *names]:
        assert final_state(killed / name) == final_state(whole / name)
        assert timeless_metrics(killed / name) == timeless_metrics(whole / name)
    assert results[0]["comparisons"] == results[1]["comparisons"]
    for one, other in zip(*(result["mixers"] for result in results), strict=True):
        assert one["runs"] == other["runs"]
        assert one["images_per_second"] > 0
    first, second = results[0]["mixers"]
    assert second["macs"] == pytest.approx(first["macs"], rel=0.01)
    assert load_config(whole / "conv/seed_1/config.json").seed == 1
    assert (whole / "compare.md").read_text().strip() in printed
    verdict = r"conv minus conv\+ssm:raster: .* points of eval_ema/top1, .*, 2 seeds: no difference"
    assert re.search(verdict, printed)
