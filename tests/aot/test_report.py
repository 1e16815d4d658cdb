# SPDX-License-Identifier: Apache-2.0
"""Reports of compiled programs: what is asked of which program, and what is written of it."""

import json

import pytest
from support import tiny_run

from mambaout_jax.aot import report
from mambaout_jax.aot.report import as_text, compile_for, write

FOUND = {
    "batch_size": 64,
    "chips": 8,
    "limit": int(15.75 * 2**30),
    "fits": True,
    "bytes": {"arguments": 2**30, "outputs": 0, "temporaries": 3 * 2**30, "peak": 2**32},
    "flops": 2.5e12,
    "bytes_accessed": 3e9,
    "collectives": {"all-reduce": {"count": 2, "bytes": 2**20}},
    "largest": [{"name": "stage_0", "shape": "f32[8]", "size": 2**28, "first": 0, "last": 1}],
    "memory": [0, 2**30, 2**28],
    "seconds": 12.0,
}
TOO_LARGE = {
    **FOUND,
    "fits": False,
    "bytes": {"temporaries": 2**35, "peak": 2**35},
    "collectives": {},
    "largest": [],
    "memory": [],
}
TOO_LARGE = {key: value for key, value in TOO_LARGE.items() if key not in ("flops",)}


@pytest.fixture
def asked(monkeypatch):
    """Which mixers and programs are compiled; those of the SSM do not fit."""
    asked = []

    def compiled(config, target, devices, program):
        mixer = config.model.options.get("token_mixer", "")
        asked.append((mixer, program, target))
        return (TOO_LARGE if mixer == "conv+ssm" else FOUND) | {"program": program}

    monkeypatch.setattr(report, "compile_step", compiled)
    return asked


def test_every_mixer_is_compiled_to_train_and_to_evaluate(asked):
    config = tiny_run.get_config()
    lines = []
    result = compile_for(config, "here", mixers=["conv", "conv+ssm"], log=lines.append)
    assert asked == [
        (mixer, program, "here")
        for mixer in ("conv", "conv+ssm")
        for program in ("train", "evaluate")
    ]
    assert lines[0] == "conv train: fits, compiled in 12 s"
    assert lines[2] == "conv+ssm train: does not fit, compiled in 12 s"
    assert config.model.options.get("token_mixer") != "conv+ssm"  # the caller's stays as it was
    assert result["model"] == config.model.name


def test_the_text_has_the_compilers_numbers(asked):
    text = as_text(compile_for(tiny_run.get_config(), "here", mixers=["conv", "conv+ssm"]))
    for part in (
        "64 = 8 chips x 8",
        "fits of 15.75 GiB: arguments 1.00 GiB, outputs 0.0 MiB, temporaries 3.00 GiB",
        "DOES NOT FIT of 15.75 GiB: temporaries 32.00 GiB",
        "2,500.0 GFLOPs, 3.00 GB moved",
        "2 all-reduce (1.0 MiB)",
        "0.25 GiB f32[8]  stage_0",
    ):
        assert part in text
    assert text.count("exchanged") == 2  # nothing is known of what does not fit


def test_files_hold_all_numbers_and_a_picture_of_what_fits(asked, tmp_path):
    config = tiny_run.get_config()
    result = compile_for(config, "here", mixers=["conv", "conv+ssm"])
    files = write(result, tmp_path / "found.v1")
    assert [path.name for path in files] == ["found.v1.json", "found.v1.png"]
    assert json.loads(files[0].read_text())["programs"][2]["fits"] is False
    assert files[1].read_bytes().startswith(b"\x89PNG")
    result = compile_for(config, "here", mixers=["conv+ssm"])
    assert [path.name for path in write(result, tmp_path / "other")] == ["other.json"]


def test_a_model_without_mixers_is_told_apart():
    config = tiny_run.get_config()
    config.model.name = "deit_tiny_patch16_224"
    with pytest.raises(ValueError, match=r"'deit_tiny_patch16_224' has no token mixer to choose"):
        compile_for(config, "here", mixers=["conv"])
