# SPDX-License-Identifier: Apache-2.0
"""The command line: help, settings, what a mistake says, and that each verb does its one thing."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support import tiny_run

from mambaout_jax import __version__
from mambaout_jax.cli.main import main
from mambaout_jax.train.loop import describe

TINY = tiny_run.__file__
VERBS = ("train", "evaluate", "predict", "models", "convert", "prepare", "analyse", "bench")


def fails(capsys, *arguments):
    """The one line that a failing command prints; its exit code is 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def exits(capsys, *arguments):
    """What argparse prints of wrong usage, and no traceback; the exit code is 2."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def write_config(path, body):
    source = f"""
        from mambaout_jax.config import default_config
        def get_config({body}
    """
    path.write_text(textwrap.dedent(source))
    return str(path)


def test_help_is_quick_and_light():
    code = (
        "import sys, time; began = time.perf_counter()\n"
        "from mambaout_jax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: print('code', stop.code)\n"
        "print('seconds', time.perf_counter() - began)\n"
        "print('heavy', sorted({'jax', 'flax', 'grain', 'orbax', 'sklearn'} & set(sys.modules)))\n"
    )
    seconds = []
    for _ in range(3):  # the machine may be busy
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        lines = dict(line.split(" ", 1) for line in result.stdout.split("\n")[-4:-1])
        assert (lines["code"], lines["heavy"]) == ("0", "[]")
        seconds.append(float(lines["seconds"]))
    assert min(seconds) < 1
    for verb in VERBS:
        assert f"\n    {verb} " in result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    examples = [line for line in text.split("\n") if line.startswith(f"  mambaout {verb}")]
    assert len(examples) >= 2
    if verb in ("train", "evaluate"):
        assert "--config.batch_size=128" in text


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mambaout-jax {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: VERB"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "the following arguments are required: --config"),
        (["train", "--config", TINY, "--workdri", "x"], "--workdri; did you mean --workdir?"),
        (["train", "--config", TINY, "--dryrun"], "--dryrun; did you mean --dry-run?"),
        (["evaluate"], "one of the arguments --workdir --weights is required"),
        (["evaluate", "--workdir=x", "--dry-run"], "there is no argument --dry-run"),
    ],
)
def test_wrong_usage_is_told(capsys, arguments, words):
    assert words in exits(capsys, *arguments)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("batchsize=3", 'Did you mean "batch_size" instead of "batchsize"?'),
        ("optimizer.learning_rat=1", 'Did you mean "learning_rate" instead of "learning_rat"?'),
        ("optimiser.learning_rate=1", 'Did you mean "optimizer" instead of "optimiser"?'),
        ("nothing.like.it=1", "there is no setting nothing"),
        ("batch_size=many", "--config.batch_size=many: invalid literal for int()"),
        ("batch_size=1.5", "--config.batch_size=1.5: invalid literal for int()"),
        ("optimizer.learning_rate=fast", "could not convert string to float: 'fast'"),
        ("model.name=mambaout_mikro", "did you mean mambaout_micro"),
        ("data.source=folder", "set --config.data.path=DIR"),
        ("batch_size=12", "does not divide into 8 devices x 1 micro-batches"),
    ],
)
def test_wrong_setting_is_one_line(capsys, tmp_path, monkeypatch, setting, words):
    monkeypatch.chdir(tmp_path)
    assert words in fails(capsys, "train", "--config", TINY, f"--config.{setting}")
    assert list(tmp_path.iterdir()) == []


def test_stray_word_is_one_line(capsys):
    words = "unexpected argument 'runs/one'; settings look like --config.key=value"
    assert words in fails(capsys, "train", "--config", TINY, "runs/one")


def test_missing_config_file_is_one_line(capsys, tmp_path):
    path = tmp_path / "none.py"
    words = f"there is no config file {path}; a clone of the project has them in experiments/"
    assert words in fails(capsys, "train", "--config", str(path))


def test_file_without_get_config_is_one_line(capsys, tmp_path):
    path = tmp_path / "empty.py"
    path.write_text("config = 1\n")
    assert f"{path} has no get_config()" in fails(capsys, "train", "--config", str(path))


def test_traceback_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("MAMBAOUT_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match=r"there is no config file none\.py"):
        main(["train", "--config", "none.py"])


def test_failure_of_the_run_has_code_1(capsys):
    assert main(["train", "--config", TINY, "--config.require_accelerator=True"]) == 1
    assert capsys.readouterr().err.startswith("error: require_accelerator=True, but JAX finds only")


@pytest.mark.parametrize("value", ["localhost", "localhost:1,2", "localhost:1,two,0"])
def test_malformed_distributed_is_one_line(capsys, value):
    words = "give it HOST:PORT,COUNT,INDEX: the address of process 0"
    assert words in fails(capsys, "train", "--config", TINY, f"--distributed={value}")


def test_distributed_without_a_cluster_is_one_line():
    command = [sys.executable, "-m", "mambaout_jax", "train", "--config", TINY, "--distributed"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(TINY).parent.parent
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: --distributed= finds no other process (")
    assert result.stderr.count("\n") == 1


def test_dry_run_prints_the_recipe_and_leaves_no_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--config", TINY, "--dry-run", "--workdir", "run", "--config.batch_size=64"]
    assert main(command) == 0
    config = tiny_run.get_config()
    config.batch_size = 64
    out = capsys.readouterr().out
    assert out == describe(config) + "\n"
    assert "effective batch    64 = 8 devices x 8 examples x 1 micro-batches" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_train_goes_to_runs_by_default_and_evaluate_reads_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", TINY]) == 0
    workdir = Path("runs") / "tiny_run"
    printed = capsys.readouterr().out.strip().split("\n")[-1]
    last = json.loads((workdir / "metrics.jsonl").read_text().strip().split("\n")[-1])
    assert last["step"] == 30
    assert (
        f"step 30  eval/loss {last['eval/loss']:.4g}  eval/top1 {last['eval/top1']:.4g}" in printed
    )
    assert printed.endswith(" s, runs/tiny_run)")

    assert main(["evaluate", "--workdir", str(workdir), "--config.evaluation.batch_size=360"]) == 0
    assert capsys.readouterr().out.strip() == printed.split("  (")[0]


def test_evaluate_without_a_run_is_one_line(capsys, tmp_path):
    words = "config.json is missing; the folder should be the --workdir of a training run"
    assert words in fails(capsys, "evaluate", "--workdir", str(tmp_path))


def test_evaluate_without_a_checkpoint_is_one_line(capsys, tmp_path):
    words = f"no checkpoint in {tmp_path / 'checkpoints'}"
    assert words in fails(capsys, "evaluate", "--workdir", str(tmp_path), "--config", TINY)


def test_bench_fails_before_it_measures(capsys, tmp_path, monkeypatch):
    from mambaout_jax.benchmarks import conv, scan

    monkeypatch.setattr(conv, "run", None)
    monkeypatch.setattr(scan, "run", None)
    file = tmp_path / "file"
    file.write_text("")
    for question in ("conv", "scan"):
        command = ["bench", question, "--out"]
        assert "must be a file, FILE.json" in exits(capsys, *command, str(tmp_path / "a.csv"))
        assert "must be a file, FILE.json" in exits(capsys, *command, str(tmp_path))
        assert main([*command, str(file / "a.json")]) == 1
        assert "File exists" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda *_: False)
    assert main(["bench", "conv", "--out", str(tmp_path / "a.json")]) == 1
    assert f"the folder {tmp_path} is not writable" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_bench_takes_no_arguments_of_another_question(capsys):
    words = "conv takes no --widths; scan does"
    assert words in exits(capsys, "bench", "conv", "--widths", "96", "--state-size=1")
    assert "invalid choice: 'npu'" in exits(capsys, "bench", "scan", "--device=npu")
