# SPDX-License-Identifier: Apache-2.0
"""What a config stands for: the mesh, the data and the model that it asks for, or why not."""

import jax
import jax.numpy as jnp
import pytest
from support.tiny_run import get_config

from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.models import find_variant
from mambaout_jax.tasks.setup import set_up


def test_set_up_follows_the_config():
    config = get_config()
    config.mesh.fsdp = 2
    config.data.image_size = 24
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.model.drop_path = 0.125
    config.model.conv_implementation = "lax"
    setup = set_up(config)
    assert dict(setup.mesh.shape) == {"data": 4, "fsdp": 2}
    assert setup.mesh.devices.size == 8
    assert (len(setup.train), len(setup.validation)) == (1438, 359)
    assert isinstance(setup.validation, Digits)
    assert setup.image_shape == (24, 24, 1)
    assert setup.task.num_classes == 10
    # 1438 // 32 = 44 updates see the training set once.
    assert (setup.resolved.steps_per_epoch, setup.resolved.total_steps) == (44, 30)

    backbone = setup.model.backbone
    assert (backbone.depths, backbone.dims) == ((1, 1), (8, 16))
    assert (backbone.drop_path, backbone.remat) == (0.125, True)
    assert (backbone.block.conv_implementation, backbone.dtype) == ("lax", jnp.bfloat16)
    assert (backbone.in_chans, setup.model.head.num_classes) == (1, 10)
    shapes = jax.eval_shape(setup.model.init, jax.random.key(0), jnp.zeros((1, *setup.image_shape)))
    assert shapes["params"]["backbone"]["stem"]["conv1"]["kernel"].shape == (3, 3, 1, 4)
    assert shapes["params"]["head"]["classifier"]["bias"].shape == (10,)


def test_set_up_leaves_what_is_not_set_to_the_model():
    config = get_config()
    config.model.name = "mambaout_small"
    setup = set_up(config)
    _, variant = find_variant("mambaout_small")
    assert setup.model.backbone.drop_path == variant.drop_path == 0.4
    assert setup.model.backbone.block.conv_implementation == "auto"


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("batch_size", 20, ValueError, r"does not divide into 8 devices .* to 16 or 24"),
        ("batch_size", 1440, ValueError, r"larger than the training set \(1438 examples\)"),
        ("evaluation.batch_size", 9, ValueError, r"set --config\.evaluation\.batch_size=16"),
        ("mesh.fsdp", 3, ValueError, r"mesh\.fsdp=3 does not divide the 8 devices"),
        ("schedule.warmup_steps", 31, ValueError, r"30 updates of which 31 warm up"),
        ("task", "captioning", ValueError, "'captioning' is not known; allowed are 'classificat"),
        ("model.name", "mambaout", ValueError, "no model is called 'mambaout'"),
        ("data.source", "digit", ValueError, "data.source='digit' is not known"),
        ("require_accelerator", True, RuntimeError, r"install mambaout-jax\[cuda13\] or"),
    ],
)
def test_set_up_refuses_what_cannot_be(name, value, kind, words):
    config = get_config()
    config.update_from_flattened_dict({name: value})
    with pytest.raises(kind, match=words):
        set_up(config)


def test_set_up_refuses_an_unknown_option():
    config = get_config()
    with config.model.options.unlocked():
        config.model.options.kernel_sise = 5
    with pytest.raises(TypeError, match=r"no option 'kernel_sise'; did you mean kernel_size\?"):
        set_up(config)
