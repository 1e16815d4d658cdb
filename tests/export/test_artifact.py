# SPDX-License-Identifier: Apache-2.0
"""Exported programs: run by JAX alone, with the numbers of the model, for any number of images."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.written_run import write_run

from mambaout_jax.cli.main import main
from mambaout_jax.config import default_config
from mambaout_jax.export.artifact import export_weights

CLASSES = ("zero", "one", "two")
OPTIONS = {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}
HEADS = {
    "classification": {},
    "detection": {"channels": 8, "box_hidden": 8, "proposals": 20, "detections": 5},
    "segmentation": {"channels": 8, "auxiliary_channels": 4},
}


def config_of(kind):
    config = default_config()
    config.task = kind
    config.model.name = "mambaout_micro"
    with config.model.options.unlocked():
        config.model.options.update(OPTIONS | HEADS[kind])
    config.data.source = "scenes" if kind != "classification" else "digits"
    config.data.image_size = 64
    if kind != "classification":
        config[kind].long_side = 96
    return config


@pytest.fixture(
    params=[
        "classification",
        pytest.param("segmentation", marks=pytest.mark.slow),
        pytest.param("detection", marks=pytest.mark.slow),
    ]
)
def run(request, tmp_path):
    config = config_of(request.param)
    return request.param, config, tmp_path / "run", write_run(tmp_path / "run", config, CLASSES)


def expected_of(kind, config, model, variables, images):
    """The model's own numbers."""
    mean, std = (np.asarray(config.data[name]) for name in ("mean", "std"))
    x = ((images / 255 - mean) / std).astype(np.float32)
    if kind != "detection":
        logits = jax.jit(model.apply)(variables, x)
        if kind == "classification":
            return {"output": jax.nn.softmax(logits, -1)}
        size = (*images.shape[:3], logits.shape[-1])  # enlarging: antialiasing does nothing
        return {"classes": jax.image.resize(logits, size, "bilinear").argmax(-1)}
    shapes = np.asarray([images.shape[1:3]] * len(images), np.int32)
    return {**jax.jit(model.apply)(variables, x, shapes), "size": shapes}


def test_program_has_the_numbers_of_the_model(run, tmp_path):
    kind, config, folder, (model, variables) = run
    out = tmp_path / "model.jaxexport"
    assert main(["export", str(folder), str(out), "--platforms", "cpu,tpu"]) == 0
    told = json.loads((tmp_path / "model.json").read_text())
    assert (told["task"], told["model"]) == (kind, "mambaout_micro")
    assert (told["platforms"], told["class_names"]) == (["cpu", "tpu"], list(CLASSES))
    side, *size = told["inputs"]["image"]["shape"]
    assert (side, size[-1], told["inputs"]["image"]["dtype"]) == ("b", 3, "uint8")
    assert size[:2] == {
        "classification": [64, 64], "detection": [64, 96], "segmentation": [64, 85]
    }[kind]  # fmt: skip
    program = jax.export.deserialize(out.read_bytes())
    images = np.random.default_rng(1).integers(0, 256, (2, *size), np.uint8)
    shapes = (np.asarray([size[:2]] * 2, np.int32),) if kind == "detection" else ()
    outputs = program.call(images, *shapes)
    named = outputs if isinstance(outputs, dict) else {"output": outputs}
    assert set(named) == set(told["outputs"])
    for name, value in expected_of(kind, config, model, variables, images).items():
        found = np.asarray(named[name])
        assert told["outputs"][name] == {
            "dtype": str(found.dtype), "shape": ["b", *found.shape[1:]]
        }  # fmt: skip
        if name == "classes":
            assert np.mean(found == value) > 0.999
        else:
            np.testing.assert_allclose(found, value, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_program_runs_where_this_package_is_not(tmp_path):
    write_run(tmp_path / "run", config_of("classification"), CLASSES)
    export_weights(tmp_path / "run").save(tmp_path / "model.jaxexport")
    code = (
        "import sys, jax, numpy as np\n"
        "from jax import export\n"
        "program = export.deserialize(open('model.jaxexport', 'rb').read())\n"
        "print(program.call(np.zeros((3, 64, 64, 3), np.uint8)).shape)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'mambaout_jax', 'flax'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["(3, 3)", "[]"]


@pytest.mark.slow
def test_size_and_number_of_images_can_be_fixed(tmp_path):
    write_run(tmp_path / "run", config_of("segmentation"), CLASSES)
    exported = export_weights(tmp_path / "run", input_size=(32, 64), batch_size=2)
    assert exported.description["inputs"]["image"]["shape"] == [2, 32, 64, 3]
    assert exported.description["outputs"]["classes"]["shape"] == [2, 32, 64]
    assert exported.program.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("platforms", [(), ("cpu", "metal")])
def test_unknown_platforms_are_named(tmp_path, platforms):
    with pytest.raises(ValueError, match=r"is not allowed; give some of \('cpu', 'cuda', 'rocm'"):
        export_weights(tmp_path, platforms=platforms)
