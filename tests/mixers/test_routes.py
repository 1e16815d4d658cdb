# SPDX-License-Identifier: Apache-2.0
"""Routes: every walk by hand on a small map, and that restoring undoes flattening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mambaout_jax.mixers.routes import ORDERS, ROUTES, flatten, paths_of, restore, token_order

# Raster numbers of a map of 3 rows and 4 columns, as they are met.
BY_HAND = {
    "raster": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    "column": [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
    "snake": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11],
    "atrous": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 5, 7],
    "windowed": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],  # it is one window
}
SIZES = [(3, 4), (7, 7), (14, 14), (1, 9), (9, 1), (8, 15), (1, 1), (16, 5)]


def numbered_map(H, W, batch=2, channels=3):
    tokens = np.arange(batch * H * W * channels, dtype=np.float32)
    return tokens.reshape(batch, H, W, channels)


@pytest.mark.parametrize("order", ORDERS)
def test_order_is_the_one_written_by_hand(order):
    assert token_order(order, 3, 4).tolist() == BY_HAND[order]
    x = numbered_map(3, 4)
    expected = x.reshape(2, 12, 3)[:, BY_HAND[order]]
    np.testing.assert_array_equal(flatten(jnp.asarray(x), order), expected)


def test_windows_are_walked_one_after_the_other():
    order = token_order("windowed", 14, 21)
    rows, columns = np.divmod(order, 21)
    windows = np.stack((rows // 7, columns // 7), 1).reshape(6, 49, 2)
    for number, window in enumerate(windows):
        assert (window == (number // 3, number % 3)).all()
    inside = (rows % 7 * 7 + columns % 7).reshape(6, 49)
    assert (inside == np.arange(49)).all()


def test_a_snake_never_jumps():
    rows, columns = np.divmod(token_order("snake", 6, 5), 5)
    steps = np.abs(np.diff(rows)) + np.abs(np.diff(columns))
    assert (steps == 1).all()


def test_atrous_walks_a_grid_of_every_second_token_first():
    rows, columns = np.divmod(token_order("atrous", 8, 6)[:12], 6)
    assert set(rows) == {0, 2, 4, 6}
    assert set(columns) == {0, 2, 4}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_restoring_undoes_flattening_and_back(order, size):
    x = jnp.asarray(numbered_map(*size))
    tokens = flatten(x, order)
    assert sorted(np.asarray(tokens)[0, :, 0]) == sorted(np.asarray(x)[0, ..., 0].ravel())
    np.testing.assert_array_equal(restore(tokens, order, size), x)
    again = jnp.asarray(np.asarray(x).reshape(2, -1, 3))
    np.testing.assert_array_equal(flatten(restore(again, order, size), order), again)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_go_the_way_back(order):
    x = jnp.asarray(numbered_map(5, 6))
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((2, 30, 3)), jnp.float32)
    gradient = jax.grad(lambda x: (flatten(x, order) * weights).sum())(x)
    np.testing.assert_array_equal(gradient, restore(weights, order, (5, 6)))


def test_routes_are_made_of_their_paths():
    counts = {name: len(paths) for name, paths in ROUTES.items()}
    assert counts == {"raster": 1, "reverse": 1, "bidirectional": 2, "column": 1, "cross": 4,
                      "windowed": 1, "snake": 1, "atrous": 1}  # fmt: skip
    assert set(paths_of("cross")) == {
        (order, reverse) for order in ("raster", "column") for reverse in (False, True)
    }


def test_unknown_names_are_errors_that_list_what_there_is():
    with pytest.raises(ValueError, match="routes='zigzag' is not known; allowed are raster, rev"):
        paths_of("zigzag")
    with pytest.raises(ValueError, match="order='spiral' is not known; allowed are raster, col"):
        token_order("spiral", 2, 2)
