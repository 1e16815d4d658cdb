# SPDX-License-Identifier: Apache-2.0
"""Two kernels and their norms are one kernel afterwards."""

import jax
import numpy as np
import pytest
from support.variables import randomised

from mambaout_jax.models import create_model
from mambaout_jax.models.replknet import merge
from mambaout_jax.weights.convert import check_variables

SMALL = {"num_classes": 3, "depths": (1,), "dims": (4,), "kernel_sizes": (7,)}


def test_merged_model_computes_the_same(rng):
    images = rng.standard_normal((2, 24, 16, 3), np.float32)
    model = create_model("replknet_31b", **SMALL)
    variables = randomised(model, images)
    merged = merge(variables)
    check_variables("replknet_31b_merged", merged, **SMALL)
    logits = jax.jit(create_model("replknet_31b_merged", **SMALL).apply)(merged, images)
    expected = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="nothing to merge: no block has the kernels 'large' and"):
        merge(merged)
