# SPDX-License-Identifier: Apache-2.0
"""What a run would do and cost, as text, and its first batch as a picture."""

import math

import jax
import numpy as np
import pytest
from PIL import Image
from support.shared_runs import FOLDER_RECIPE
from support.tiny_run import get_config

from mambaout_jax.analysis.cost import activation_bytes
from mambaout_jax.cli.main import main
from mambaout_jax.models import create_model
from mambaout_jax.train import preview
from mambaout_jax.train.preview import describe


def described(config):
    """The rows of the recipe, by name."""
    rows = (line.partition("  ") for line in describe(config).split("\n"))
    return {name: value.strip() for name, _, value in rows}


def test_describe_tells_the_recipe():
    config = get_config()
    config.accumulate_steps = 2
    config.optimizer.learning_rate = 1e-3
    config.optimizer.learning_rate_batch_size = 16
    rows = described(config)
    # 8 x 2 is conv1's kernel 3x3x1x4 on 8x8 outputs, and so on through the layers.
    macs = (
        3 * 3 * 1 * 4 * 64 + 3 * 3 * 4 * 8 * 16  # stem
        + (8 * 42 + 49 * 8 + 21 * 8) * 16  # fc1, depthwise conv, fc2 of stage 0 on 4x4
        + 3 * 3 * 8 * 16 * 4  # downsample
        + (16 * 84 + 49 * 16 + 42 * 16) * 4  # stage 1 on 2x2
        + 16 * 64 + 64 * 10  # head
    )  # fmt: skip
    assert rows["MACs per image"] == f"{macs:,} at 16x16x1"
    assert rows["parameters"] == "7,376"
    assert rows["model"] == "mambaout_micro, 10 classes, float32"
    assert rows["data"] == "digits: 1,438 training, 359 validation examples"
    assert rows["devices"] == "8 x cpu, mesh data 8 x fsdp 1"
    assert rows["effective batch"] == "32 = 8 devices x 2 examples x 2 micro-batches"
    assert rows["updates"] == "30 = 0.681818 epochs x 44, warm-up 5"
    assert rows["learning rate"] == (
        "0.002 peak (0.001 at batch 16), warm-up from 1e-06, cosine to 1e-05"
    )
    assert rows["weight decay"] == "0.05"
    assert rows["every"] == "report 8, evaluate 13, checkpoint 11 updates"


@pytest.mark.parametrize(
    ("decay", "words"),
    [("linear", "linear to 1e-05"), ("steps", "times 0.1 after epochs 0.25, 0.5")],
)
def test_describe_tells_how_the_rate_falls(decay, words):
    config = get_config()
    config.schedule.decay = decay
    if decay == "steps":
        config.schedule.milestones_epochs = (0.25, 0.5)
    assert described(config)["learning rate"].endswith(f"warm-up from 1e-06, {words}")


@pytest.mark.parametrize("fsdp", [1, 2])
def test_describe_counts_the_memory_of_one_device(monkeypatch, fsdp):
    monkeypatch.setattr(preview, "_mib", lambda size: f"{size} bytes")
    config = get_config()
    config.mesh.fsdp = fsdp
    options = {"depths": (1, 1), "dims": (64, 512)}
    config.model.options.update(options)
    model = create_model("mambaout_micro", num_classes=10, in_chans=1, **options)
    image = jax.ShapeDtypeStruct((1, 16, 16, 1), "float32")
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    shapes = [x.shape for x in jax.tree.leaves(variables)]
    depthwise = (7, 7, 1, 512)  # large, but kept whole
    assert depthwise in shapes
    parameters = sum(map(math.prod, shapes))
    large = sum(math.prod(x) for x in shapes if math.prod(x) >= 2**14 and x != depthwise)
    assert 0.9 < large / parameters < 1
    # Parameters, two moments and the average, of 4 bytes; the step and two counts of the optimizer.
    state = 4 * 4 * (parameters - large + large // fsdp) + 3 * 4
    kept = activation_bytes(model, (16, 16, 1), 4)  # of the 32 examples, on one of 8 devices
    gradients = 4 * parameters
    assert described(config)["memory per device"] == (
        f"{state + gradients + kept} bytes estimated = state {state} bytes + gradients "
        f"{gradients} bytes + activations {kept} bytes"
    )


def test_show_batch_draws_the_augmented_batch(photo_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sheet = tmp_path / "sheet.png"
    arguments = ["train", "--config", FOLDER_RECIPE, f"--config.data.path={photo_run[2]}",
                 "--config.batch_size=16", "--show-batch", str(sheet)]  # fmt: skip
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(sheet)
    with Image.open(sheet) as image:
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3).std(axis=0)
    assert colours.min() > 10  # photographs, not an empty sheet
    assert not (tmp_path / "runs").exists()
