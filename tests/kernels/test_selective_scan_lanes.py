# SPDX-License-Identifier: Apache-2.0
"""The scan by segments side by side: against float64 loops, cut in every awkward way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import oracles
from support.closeness import assert_close

from mambaout_jax.kernels.selective_scan import selective_scan
from mambaout_jax.kernels.selective_scan_lanes import Cut, cut_of, lane_gradients, lane_values

# (B, L, D, N, G), the cut, softplus, reverse
CASES = {
    "one-token-chunks": ((2, 6, 4, 3, 1), Cut(2, 3, 1), True, False),
    "filled-up": ((2, 13, 6, 2, 3), Cut(3, 5, 2), True, False),
    "filled-up-reverse": ((2, 13, 6, 2, 3), Cut(3, 5, 2), False, True),
    "an-empty-segment": ((1, 9, 4, 1, 2), Cut(4, 3, 3), True, True),
}


def draw(rng, shape, softplus, dtype="float64"):
    B, L, D, N, G = shape
    shapes = {"u": (B, L, D), "delta": (B, L, D), "A": (D, N), "B": (B, L, G, N), "C": (B, L, G, N)}
    arrays = {name: rng.standard_normal(size) for name, size in shapes.items()}
    arrays |= {"initial_state": rng.standard_normal((B, D, N))}
    arrays["A"] = -np.exp(arrays["A"] / 2)
    if not softplus:
        arrays["delta"] = np.abs(arrays["delta"])
    cotangents = rng.standard_normal((B, L, D)), rng.standard_normal((B, D, N))
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (arrays, cotangents))


def in_lanes(arrays, cotangents, softplus, reverse, cut):
    names = ("u", "delta", "A", "B", "C", "initial_state")
    u, delta, A, B, C, state = (arrays[name] for name in names)
    step = jax.nn.softplus(delta) if softplus else delta
    y, last, entering = lane_values(u, step, A, B, C, state, reverse, cut)
    gradients = lane_gradients(u, step, A, B, C, entering, *cotangents, reverse, softplus, cut)
    return y, last, dict(zip(names, gradients, strict=True))


def assert_matches_oracle(results, arrays, cotangents, softplus, reverse, epsilon):
    y, last, gradients = results
    wanted_y, wanted_last, wanted = oracles.selective_scan(
        arrays, *cotangents, softplus=softplus, reverse=reverse
    )
    assert_close(y, wanted_y, epsilon)
    assert_close(last, wanted_last, epsilon)
    for name, gradient in gradients.items():
        assert_close(gradient, wanted[name], epsilon)


def test_lanes_match_oracle_however_they_are_cut(rng):
    with jax.enable_x64(True):
        drawn = [draw(rng, shape, softplus) for shape, _, softplus, _ in CASES.values()]

        def run(drawn):
            return [
                in_lanes(*inputs, softplus, reverse, cut)
                for inputs, (_, cut, softplus, reverse) in zip(drawn, CASES.values(), strict=True)
            ]

        results = jax.jit(run)(drawn)
        for found, inputs, case in zip(results, drawn, CASES.values(), strict=True):
            assert_matches_oracle(found, *inputs, *case[2:], epsilon=1e-13)


def scan_and_gradients(arrays, cotangents):
    scan = functools.partial(selective_scan, delta_softplus=True, return_state=True)

    def outputs(arrays):
        required = (arrays[name] for name in ("u", "delta", "A", "B", "C"))
        return scan(*required, initial_state=arrays["initial_state"])

    (y, last), vjp = jax.vjp(outputs, arrays)
    return y, last, vjp(cotangents)[0]


def test_a_narrow_scan_keeps_a_sharded_batch_in_place(rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arrays, cotangents = draw(rng, (16, 130, 4, 3, 2), True, "float32")
    assert cut_of(*arrays["u"].shape, *arrays["B"].shape[2:]) == Cut(4, 33, 6)
    where = {name: whole if name == "A" else batch for name in arrays}
    arrays, cotangents = jax.device_put((arrays, cotangents), (where, batch))
    compiled = jax.jit(scan_and_gradients).lower(arrays, cotangents).compile()
    results = compiled(arrays, cotangents)
    assert_matches_oracle(results, arrays, cotangents, True, False, epsilon=1e-5)
    program = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program


@pytest.mark.slow
def test_a_narrow_scan_runs_inside_shard_map(rng):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("data")
    arrays, cotangents = draw(rng, (4, 130, 4, 3, 1), True, "float32")
    split = {name: PartitionSpec() if name == "A" else spec for name in arrays}
    results = jax.jit(
        jax.shard_map(
            scan_and_gradients, mesh=mesh, in_specs=(split, spec), out_specs=(spec, spec, split)
        )
    )(arrays, cotangents)
    assert_matches_oracle(results, arrays, cotangents, True, False, epsilon=1e-5)


@pytest.mark.slow
def test_narrow_inputs_keep_their_dtypes(rng):
    arrays, cotangents = draw(rng, (2, 130, 4, 3, 1), True, "bfloat16")
    cotangents = cotangents[0], cotangents[1].astype("float32")
    y, last, gradients = scan_and_gradients(arrays, cotangents)
    assert y.dtype == "bfloat16"
    assert last.dtype == "float32"
    wanted_y, wanted_last, wanted = oracles.selective_scan(arrays, *cotangents, softplus=True)
    assert_close(y, wanted_y, 1e-5, 2.0**-8)
    assert_close(last, wanted_last, 1e-5)
    for name, gradient in gradients.items():
        assert gradient.dtype == "bfloat16"
        assert_close(gradient, wanted[name], 1e-5, 2.0**-8)


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((16, 256, 16, 16, 1), Cut(4, 64, 8)),
        ((2, 3136, 32, 16, 1), Cut(32, 98, 10)),
        ((2, 256, 64, 1, 4), Cut(8, 32, 6)),  # sixteen channels in each group
        ((64, 256, 16, 16, 1), Cut(2, 128, 12)),
        ((2, 3136, 96, 16, 1), None),
        ((16, 256, 32, 16, 1), None),  # a token has enough to do
        ((16, 100, 16, 16, 1), None),
    ],
)
def test_what_counts_as_narrow(shape, cut):
    B, L, D, N, G = shape
    assert cut_of(B, L, D, G, N) == cut


def test_a_narrow_gradient_needs_a_fraction_of_the_memory():
    B, L, D, N = 16, 256, 16, 16
    tokens, weights = jax.ShapeDtypeStruct((B, L, D), "float32"), (B, L, 1, N)
    arrays = {"u": tokens, "delta": tokens, "A": jax.ShapeDtypeStruct((D, N), "float32")}
    arrays |= {name: jax.ShapeDtypeStruct(weights, "float32") for name in ("B", "C")}
    arrays["initial_state"] = jax.ShapeDtypeStruct((B, D, N), "float32")
    cotangents = (tokens, arrays["initial_state"])
    compiled = jax.jit(scan_and_gradients).lower(arrays, cotangents).compile()
    states = B * L * D * N * 4  # bytes, of which automatic differentiation needs several
    assert compiled.memory_analysis().temp_size_in_bytes < states
