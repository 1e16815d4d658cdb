# SPDX-License-Identifier: Apache-2.0
"""A detector and a segmenter from the weights of a classifier to an exported program.

They are trained, evaluated, predicted with and exported by a classifier's commands.
"""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from support.written_run import write_run

from mambaout_jax.cli.main import main
from mambaout_jax.config import default_config
from mambaout_jax.config_file import save_config
from mambaout_jax.data.sets.sources import open_source
from mambaout_jax.models import create_model, model_options
from mambaout_jax.runtime.checkpoint import read_checkpoint
from mambaout_jax.tasks import find_task
from mambaout_jax.weights.load import save_variables

pytestmark = pytest.mark.slow

BODY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
HEADS = {
    "detection": {"channels": 8, "box_hidden": 8, "proposals": 20, "detections": 5},
    "segmentation": {"channels": 8, "auxiliary_channels": 4},
}
METRICS = {"detection": ("box_ap", "mask_ap"), "segmentation": ("miou", "macc", "aacc")}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A file of a classifier's weights."""
    model = create_model("mambaout_micro", num_classes=3, **BODY)
    variables = model.init(jax.random.key(5), np.zeros((1, 32, 32, 3), np.float32))
    path = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_variables(jax.device_get(variables), path, {"model": "mambaout_micro"})
    return path, flatten_dict(variables["params"]["backbone"], sep="/")


def config_of(kind, pretrained):
    config = default_config()
    config.task = kind
    config.batch_size = 8
    config.model.name = "mambaout_micro"
    config.model.pretrained = str(pretrained)
    with config.model.options.unlocked():
        config.model.options.update(BODY | HEADS[kind])
    config.data.source = "scenes"
    config.data.image_size = 64
    config.data.num_threads = 1
    config[kind].long_side = 64  # so that there is one canvas, and little to compile
    if kind == "detection":
        config.detection.sampled_regions = 16
    config.optimizer.learning_rate = 0.0  # so that the weights stay what they were
    config.schedule.total_steps = 2
    config.schedule.warmup_steps = 0
    config.schedule.warmup_learning_rate = config.schedule.final_learning_rate = 0.0
    config.evaluation.batch_size = 8
    config.evaluation.every_steps = config.checkpoint.every_steps = 2
    return config


@pytest.mark.parametrize("kind", HEADS)
def test_commands_work_for_dense_models_as_for_classifiers(kind, classifier, tmp_path, capsys):
    weights, backbone = classifier
    config, run = config_of(kind, weights), tmp_path / "run"
    recipe = tmp_path / "recipe.py"
    save_config(config, tmp_path / "settings.json")
    recipe.write_text(
        "from pathlib import Path\n"
        "from mambaout_jax.config_file import load_config\n"
        f"def get_config():\n    return load_config(Path({str(tmp_path / 'settings.json')!r}))\n"
    )
    assert main(["train", "--config", str(recipe), "--workdir", str(run)]) == 0
    state = read_checkpoint(run / "checkpoints").state
    trained = flatten_dict(state["params"]["backbone"], sep="/")
    assert trained.keys() == backbone.keys()
    for key, value in backbone.items():
        np.testing.assert_array_equal(trained[key], value)
    capsys.readouterr()

    assert main(["evaluate", "--workdir", str(run)]) == 0
    line = capsys.readouterr().out
    values = dict(zip(line.split()[::2], map(float, line.split()[1::2]), strict=True))
    assert {f"eval/{name}" for name in METRICS[kind]} <= values.keys()

    figures = tmp_path / "figures"
    assert main(["evaluate", "--workdir", str(run), "--figures", str(figures)]) == 0
    again, *files = capsys.readouterr().out.splitlines()
    other = dict(zip(again.split()[::2], map(float, again.split()[1::2]), strict=True))
    for name in METRICS[kind]:
        assert other[name] == pytest.approx(values[f"eval/{name}"], abs=0.02)
    assert files
    assert all((figures / file).is_file() for file in files)

    scene = open_source(config.data, "validation", kind)[0]["image"]
    Image.fromarray(np.asarray(scene)).save(tmp_path / "scene.png")
    grid = tmp_path / "grid.png"
    command = ["predict", "--weights", str(run), str(tmp_path / "scene.png"), "--json"]
    assert main([*command, "--grid", str(grid)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert max(found["size"]) <= 64
    assert len(found["objects" if kind == "detection" else "classes"]) <= 100
    assert grid.is_file()

    assert main(["export", str(run), str(tmp_path / "run.jaxexport"), "--platforms=cpu"]) == 0
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["class_names"] == json.loads((run / "classes.json").read_text())


def test_backbone_of_a_run_goes_on_in_another_task(tmp_path):
    """A segmenter's in a detector, which is not the whole of one."""
    _, variables = write_run(tmp_path / "run", config_of("segmentation", ""), ("a", "b"))
    config = config_of("detection", tmp_path / "run")
    task = find_task("detection")(config, ("a", "b", "c"))
    options = model_options(config)
    model, loaded = task.load(tmp_path / "run", "mambaout_micro", reset_head=True, **options)
    assert model.num_classes == 3
    assert set(loaded["params"]) > {"backbone", "fpn", "rpn", "mask_head"}
    expected = flatten_dict(variables["params"]["backbone"], sep="/")
    found = flatten_dict(loaded["params"]["backbone"], sep="/")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    with pytest.raises(ValueError, match=r"the data have 3 classes and .* has 2; evaluate weights"):
        task.load(tmp_path / "run", "mambaout_micro", **options)
