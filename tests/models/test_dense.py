# SPDX-License-Identifier: Apache-2.0
"""Dense models: any backbone under a head."""

import jax
import jax.numpy as jnp
import pytest

from mambaout_jax.models.dense import create_segmenter


@pytest.mark.parametrize("name", ["mambaout_femto", "deit_tiny_patch16_224"])
def test_segmenter_makes_logits_at_stride_4(name):
    options = {"image_size": 64} if "deit" in name else {}
    model = create_segmenter(name, 7, channels=8, auxiliary_channels=4, **options)
    assert (model.head.channels, model.auxiliary.channels) == (8, 4)
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (2, 16, 24, 7)
    assert set(variables["params"]) == {"backbone", "neck", "head", "auxiliary"}


def test_segmenter_takes_options_of_both():
    model = create_segmenter(
        "mambaout_femto", 7, dtype=jnp.bfloat16, drop_path=0.25, dropout=0.2, pool_sizes=(1, 2)
    )
    assert model.backbone.drop_path == 0.25
    assert (model.head.dropout, model.auxiliary.dropout) == (0.2, 0.2)
    assert model.head.pool_sizes == (1, 2)
    parts = model.backbone, model.neck, model.head, model.auxiliary
    assert {part.dtype for part in parts} == {jnp.bfloat16}
    with pytest.raises(TypeError, match="no option 'chanels'"):
        create_segmenter("mambaout_femto", chanels=8)
