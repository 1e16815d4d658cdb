# SPDX-License-Identifier: Apache-2.0
"""A map as maps of every so-manyth pixel."""

import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from mambaout_jax.kernels.phases import from_phases, phases


@pytest.mark.parametrize(("size", "step"), [((7, 10), 3), ((4, 5), 7), ((6, 4), 2), ((3, 2), 1)])
def test_a_convolution_of_phases_is_a_dilated_one_of_the_map(rng, size, step):
    x, kernel = rng.standard_normal((2, *size, 3)), rng.standard_normal((3, 5, 3))
    y = oracles.depthwise_conv(phases(jnp.asarray(x, jnp.float32), step), kernel)
    y = from_phases(jnp.asarray(y, jnp.float32), step, size)
    np.testing.assert_allclose(y, oracles.depthwise_conv(x, kernel, step), atol=1e-5)
