# SPDX-License-Identifier: Apache-2.0
"""The command line as a whole: its verbs, their help, and what help costs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import usage_error

from mambaout_jax import __version__
from mambaout_jax.__main__ import _interrupt
from mambaout_jax.cli.main import VERBS, build_parser, main

NAMES = (
    "train", "evaluate", "compare", "compile", "predict", "models", "convert", "export", "prepare",
    "analyse", "bench", "report",
)  # fmt: skip
HEAVY = ("jax", "flax", "optax", "orbax", "grain", "numpy", "ml_collections", "matplotlib", "PIL")


def verb(name):
    return VERBS[NAMES.index(name)]


def help_text(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_is_quick_and_light():
    code = (
        "import sys, time\n"
        "from mambaout_jax.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: print('code', stop.code)\n"
        f"print('heavy', sorted(set({HEAVY}) & set(sys.modules)))\n"
        "print('seconds', time.process_time())\n"  # of this process alone: machines are busy
    )
    seconds = []
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        lines = dict(line.split(" ", 1) for line in result.stdout.split("\n")[-4:-1])
        assert (lines["code"], lines["heavy"]) == ("0", "[]")
        seconds.append(float(lines["seconds"]))
    assert min(seconds) < 0.3


def test_help_lists_the_verbs(capsys):
    text = help_text(capsys)
    assert re.findall(r"^    (\w+) ", text, re.MULTILINE) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_verb_has_examples(name, capsys):
    text = help_text(capsys, name)
    assert text.count(f"\n  mambaout {name}") >= 2
    assert ("--config.batch_size=128" in text) == (
        name in ("train", "evaluate", "compare", "compile")
    )


@pytest.mark.parametrize("verb", VERBS, ids=NAMES)
def test_examples_of_a_verb_parse(verb):
    text = verb.EXAMPLES.replace("\\\n", " ")
    lines = re.findall(r"^  mambaout (.*)$", text, re.MULTILINE)
    parser = build_parser()
    for line in lines:
        arguments, rest = parser.parse_known_args(shlex.split(line))
        assert arguments.run is verb.run
        assert all(argument.startswith("--config.") for argument in rest)
    assert lines


def test_main_returns_the_exit_code_of_the_verb(monkeypatch):
    monkeypatch.setattr(verb("models"), "run", lambda arguments, overrides: 17)
    assert main(["models"]) == 17


@pytest.mark.parametrize(
    "command",
    [
        "train --config ADDRESS/x.py",
        "train --config x.py --show-batch ADDRESS",
        "compare --config x.py --mixers conv,attention --out ADDRESS",
        "evaluate --weights w --data ADDRESS",
        "evaluate --weights ADDRESS.pth --data images",
        "evaluate --weights ADDRESS.bin --suite images",
        "evaluate --weights w --figures ADDRESS",
        "evaluate --weights w --suite ADDRESS",
        "predict --weights ADDRESS.safetensors image.png",
        "predict --weights w image.png --grid ADDRESS",
        "convert ADDRESS out.safetensors",
        "convert in.pth ADDRESS",
        "prepare imagenet --folder . --out ADDRESS",
        "prepare imagenet --train-tar ADDRESS --out .",
        "prepare ade20k --zip ADDRESS --out .",
        "analyse blocks --out ADDRESS",
        "bench conv --out ADDRESS",
    ],
)
@pytest.mark.parametrize("scheme", ["gs", "s3", "abfss"])
def test_an_address_in_place_of_a_path_is_refused(command, scheme, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = command.replace("ADDRESS", f"{scheme}://bucket/thing").split()
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {scheme}://bucket/thing")
    assert err.endswith("or use a local folder and copy the files afterwards\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["train --config x.py --workdir", "evaluate --workdir", "analyse curves run"]
)
@pytest.mark.parametrize("address", ["abfss://bucket/thing", "gs://bucket"])
def test_a_run_is_kept_at_no_other_address(command, address, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), address]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {address} is ")
    assert "gs://bucket/" in err
    assert list(tmp_path.iterdir()) == []


def test_the_home_directory_may_be_written_short(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    seen = []
    monkeypatch.setattr(verb("analyse"), "run", lambda arguments, _: seen.append(arguments) or 0)
    monkeypatch.setattr(verb("train"), "run", lambda arguments, _: seen.append(arguments) or 0)
    main(["analyse", "curves", "~/runs/a", "b", "--out=~/c.png"])
    main(["train", "--config=c.py", "--workdir=~/runs/a"])
    assert seen[0].workdirs == [Path("/home/me/runs/a"), Path("b")]
    assert seen[0].out == Path("/home/me/c.png")
    assert seen[1].workdir == Path("/home/me/runs/a")
    main(["train", "--config=c.py", "--workdir=s3://bucket/runs/a/"])
    assert seen[2].workdir == "s3://bucket/runs/a"


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
        (["evaluate"], "one of the arguments --workdir --weights is required"),
    ],
)
def test_missing_arguments_are_named(capsys, arguments, words):
    assert words in usage_error(capsys, *arguments)


def test_description_of_a_verb_is_its_summary(capsys):
    assert "\nConvert weights between PyTorch's names and ours.\n" in help_text(capsys, "convert")


def test_interruption_of_an_import_ends_the_program(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    with pytest.raises(KeyboardInterrupt):
        _interrupt(2, sys._getframe())
    assert codes == []
    code = compile("interrupt()", "<frozen importlib._bootstrap>", "exec")
    with pytest.raises(KeyboardInterrupt):  # as `os._exit` returns here
        exec(code, {"interrupt": lambda: _interrupt(2, sys._getframe())})
    assert codes[0] == 130
    assert capsys.readouterr().err.startswith("interrupted\n")
