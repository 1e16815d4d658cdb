# SPDX-License-Identifier: Apache-2.0
"""Routes: every walk by hand on a small map, and that restoring undoes flattening."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from mambaout_jax.mixers.routes import (
    DIRECTIONS,
    PAD,
    ROUTES,
    Path,
    directions_of,
    flatten,
    paths_of,
    restore,
    steps_of,
    token_order,
    walk,
)

# Raster numbers of a map of 3 rows and 4 columns, as they are met; -1 where nothing is.
BY_HAND = {
    "raster": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    "column": [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11],
    "snake": [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11],
    "column_snake": [0, 4, 8, 9, 5, 1, 2, 6, 10, 11, 7, 3],
    "atrous": [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 5, 7],
    "window_2": [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, -1, -1, 10, 11, -1, -1],
    "window_3": [0, 1, 2, 4, 5, 6, 8, 9, 10, 3, -1, -1, 7, -1, -1, 11, -1, -1],
    "phase_00": [0, 2, 8, 10],
    "phase_10": [4, -1, 6, -1],
    "phase_01": [1, 3, 9, 11],
    "phase_11": [5, -1, 7, -1],
}
WHOLE = [order for order in BY_HAND if not order.startswith("phase")]  # they meet every token
SIZES = [(3, 4), (7, 7), (14, 14), (1, 9), (9, 1), (8, 15), (1, 1), (16, 5)]


def numbered_map(H, W, batch=2, channels=3):
    tokens = 1 + np.arange(batch * H * W * channels, dtype=np.float32)
    return tokens.reshape(batch, H, W, channels)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("order", BY_HAND)
def test_order_is_the_one_written_by_hand(order, reverse):
    by_hand = BY_HAND[order][::-1] if reverse else BY_HAND[order]
    assert walk(Path(order, reverse), 3, 4).tolist() == by_hand
    x = numbered_map(3, 4)
    tokens = np.concatenate((x.reshape(2, 12, 3), np.zeros((2, 1, 3), np.float32)), axis=1)
    found = flatten(jnp.asarray(x), Path(order, reverse))
    np.testing.assert_array_equal(found, tokens[:, by_hand])


def test_windows_are_walked_one_after_the_other():
    order = token_order("window_7", 14, 21)
    rows, columns = np.divmod(order, 21)
    windows = np.stack((rows // 7, columns // 7), 1).reshape(6, 49, 2)
    for number, window in enumerate(windows):
        assert (window == (number // 3, number % 3)).all()
    inside = (rows % 7 * 7 + columns % 7).reshape(6, 49)
    assert (inside == np.arange(49)).all()


@pytest.mark.parametrize("order", ["snake", "column_snake"])
def test_a_snake_never_jumps(order):
    rows, columns = np.divmod(token_order(order, 6, 5), 5)
    steps = np.abs(np.diff(rows)) + np.abs(np.diff(columns))
    assert (steps == 1).all()


@pytest.mark.parametrize("size", [(3, 4), (7, 7), (8, 6), (1, 1)], ids=str)
def test_phases_meet_every_token_once(size):
    met = np.concatenate([walk(path, *size) for path in paths_of("phases")])
    assert sorted(met[met != PAD]) == list(range(size[0] * size[1]))
    assert len(met) == 4 * -(-size[0] // 2) * -(-size[1] // 2)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("order", WHOLE)
def test_restoring_undoes_flattening(order, size, reverse):
    x = jnp.asarray(numbered_map(*size))
    tokens = np.asarray(flatten(x, Path(order, reverse)))
    met = tokens[0, :, 0][tokens[0, :, 0] != 0]
    assert sorted(met) == sorted(np.asarray(x)[0, ..., 0].ravel())
    np.testing.assert_array_equal(restore(jnp.asarray(tokens), Path(order, reverse), size), x)


@pytest.mark.slow
def test_orders_of_a_symbolic_map_are_those_of_a_known_one():
    def orders_and_steps(x):
        walks = [walk(Path(order, True), *x.shape) for order in BY_HAND]
        return [(order, steps_of(order, x.shape[0] * x.shape[1])) for order in walks]

    sizes = jax.ShapeDtypeStruct(export.symbolic_shape("h, w"), jnp.float32)
    program = export.export(jax.jit(orders_and_steps))(sizes)
    for size in SIZES[-3:]:
        x = np.zeros(size, np.float32)
        for found, known in zip(program.call(x), orders_and_steps(x), strict=True):
            np.testing.assert_array_equal(found[0], known[0])
            np.testing.assert_array_equal(found[1], known[1])


def test_restoring_leaves_zeros_where_nothing_was_met():
    x = numbered_map(3, 4)
    path = Path("phase_10")
    expected = np.zeros_like(x)
    expected[:, 1, ::2] = x[:, 1, ::2]
    np.testing.assert_array_equal(restore(flatten(jnp.asarray(x), path), path, (3, 4)), expected)


@pytest.mark.parametrize("order", BY_HAND)
def test_gradients_go_the_way_back(order):
    x = jnp.asarray(numbered_map(5, 6))
    steps = len(token_order(order, 5, 6))
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((2, steps, 3)), jnp.float32)
    gradient = jax.grad(lambda x: (flatten(x, Path(order)) * weights).sum())(x)
    np.testing.assert_array_equal(gradient, restore(weights, Path(order), (5, 6)))


def test_routes_are_made_of_their_paths():
    counts = {name: len(paths) for name, paths in ROUTES.items()}
    assert counts == {"raster": 1, "reverse": 1, "bidirectional": 2, "column": 1, "cross": 4,
                      "windowed": 1, "snake": 1, "snakes": 4, "atrous": 1, "phases": 4}  # fmt: skip
    assert paths_of("cross") == (  # VMamba's parameters are stacked in this order
        ("raster", False), ("column", False), ("raster", True), ("column", True),
    )  # fmt: skip


def test_directions_are_those_of_localmamba():
    assert directions_of("h v_flip w2 w7_flip") == (
        ("raster", False), ("column", True), ("window_2", False), ("window_7", True),
    )  # fmt: skip
    assert len(DIRECTIONS) == 8


def test_unknown_names_are_errors_that_list_what_there_is():
    with pytest.raises(ValueError, match="routes='zigzag' is not known; allowed are raster, rev"):
        paths_of("zigzag")
    for order in ("spiral", "window_0", "phase_2"):
        with pytest.raises(ValueError, match=f"order='{order}' is not known; allowed are raster"):
            token_order(order, 2, 2)
    for names in ("h w3", ""):
        with pytest.raises(ValueError, match=rf"directions='{names}' must be names of h, h_flip"):
            directions_of(names)
