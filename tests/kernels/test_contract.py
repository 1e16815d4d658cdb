# SPDX-License-Identifier: Apache-2.0
"""What every operation promises: its values, derivatives of every kind, and plain programs.

Oracles are float64 numpy functions; derivatives are compared with their central differences.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support import oracles

from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.kernels.dispatch import plain_implementations
from mambaout_jax.kernels.gelu import gelu
from mambaout_jax.kernels.layer_norm import layer_norm
from mambaout_jax.kernels.matmul import join_matmul, matmul, split_matmul
from mambaout_jax.kernels.selective_scan import selective_scan
from mambaout_jax.kernels.strided_conv import strided_conv


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of arrays of these shapes, and its oracle."""

    function: Callable
    oracle: Callable
    shapes: tuple[tuple[int, ...], ...]


def split(x, weight):
    return jnp.concatenate(split_matmul(x, weight, (1, 0, 2)), axis=1)


def join(left, right, weight):
    return join_matmul((left, right), weight)


def scan(reverse, *arrays):
    u, delta, A, B, C, D, z, delta_bias, initial_state = arrays
    y, state = selective_scan(
        u, delta, -jnp.exp(A), B, C, D, z=z, delta_bias=delta_bias, delta_softplus=True,
        reverse=reverse, initial_state=initial_state, return_state=True,
    )  # fmt: skip
    return jnp.concatenate([y.ravel(), state.ravel()])


def scan_oracle(reverse, *arrays):
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    named = dict(zip(names, arrays, strict=True))
    named["A"] = -np.exp(named["A"])
    nothing = np.zeros_like(named["u"]), np.zeros_like(named["initial_state"])
    y, state, _ = oracles.selective_scan(named, *nothing, softplus=True, reverse=reverse)
    return np.concatenate([y.ravel(), state.ravel()])


def strided(side, stride, padding, shape):
    options = {"stride": stride, "padding": padding}
    kernel = (side, side, shape[3], 2)
    return Case(
        functools.partial(strided_conv, **options),
        functools.partial(oracles.strided_conv, **options),
        (shape, kernel),
    )


def norm(*shapes):
    options = {"epsilon": 1e-2}
    return Case(
        functools.partial(layer_norm, **options),
        functools.partial(oracles.layer_norm, **options),
        shapes,
    )


SCAN = ((2, 5, 4), (2, 5, 4), (4, 3), (2, 5, 2, 3), (2, 5, 2, 3), (4,), (2, 5, 4), (4,), (2, 4, 3))
CASES = {
    "gelu": Case(gelu, oracles.gelu, ((3, 5),)),
    "layer_norm": norm((2, 3, 6), (6,), (6,)),
    "layer_norm-without-bias": norm((3, 6), (6,)),
    "matmul": Case(matmul, np.matmul, ((5, 4), (4, 3))),
    "split_matmul": Case(split, np.matmul, ((5, 4), (4, 3))),
    "join_matmul": Case(
        join, lambda a, b, w: np.concatenate([a, b], 1) @ w, ((5, 1), (5, 3), (4, 3))
    ),
    "strided_conv-3x3": strided(3, 2, 1, (2, 5, 6, 3)),
    "strided_conv-7x7": strided(7, 4, 3, (1, 9, 8, 2)),
    "strided_conv-disjoint": strided(2, 2, 0, (2, 5, 6, 3)),
    "depthwise_conv": Case(depthwise_conv, oracles.depthwise_conv, ((2, 4, 5, 2), (3, 5, 2))),
    "depthwise_conv-one-tap": Case(
        depthwise_conv, oracles.depthwise_conv, ((2, 3, 2, 2), (1, 1, 2))
    ),
    "depthwise_conv-dilated": Case(
        functools.partial(depthwise_conv, dilation=2),
        functools.partial(oracles.depthwise_conv, dilation=2),
        ((1, 4, 5, 2), (3, 5, 2)),
    ),
    "selective_scan": Case(
        functools.partial(scan, False), functools.partial(scan_oracle, False), SCAN
    ),
    "selective_scan-reverse": Case(
        functools.partial(scan, True), functools.partial(scan_oracle, True), SCAN
    ),
}


def draw(case, rng):
    """Arguments, a direction to move them in, and a cotangent of the result."""
    arrays, direction = ([rng.standard_normal(s) for s in case.shapes] for _ in range(2))
    return arrays, direction, rng.standard_normal(case.oracle(*arrays).shape)


def derivatives(function, twice, arrays, direction, weights):
    """By name, everything that is compared below; `plain` is traced within the switch."""

    def total(*arrays):
        return jnp.vdot(weights, function(*arrays))

    def slope(*arrays):
        gradients = jax.grad(total, argnums=tuple(range(len(arrays))))(*arrays)
        return sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))

    def curvature(*arrays):
        gradients = jax.grad(slope, argnums=tuple(range(len(arrays))))(*arrays)
        return sum(jnp.vdot(g, d) for g, d in zip(gradients, direction, strict=True))

    found = {
        "value": function(*arrays),
        "slope": slope(*arrays),
    }
    if twice:
        found["curvature"] = curvature(*arrays)
    with plain_implementations():
        found["plain value"], found["plain tangent"] = jax.jvp(function, arrays, direction)
        found["plain slope"] = slope(*arrays)
        found["plain curvature"] = jax.jvp(slope, arrays, direction)[1]  # forward over reverse
        jacobians = jax.jacfwd(function, argnums=tuple(range(len(arrays))))(*arrays)
        found["plain jacobian"] = sum(
            jnp.tensordot(jacobian, d, d.ndim)
            for jacobian, d in zip(jacobians, direction, strict=True)
        )
    return found


@pytest.mark.parametrize("name", CASES)
def test_operation_has_the_values_and_derivatives_of_its_oracle(rng, name):
    case, twice = CASES[name], not name.startswith("selective_scan")  # its fast form: once
    arrays, direction, weights = draw(case, rng)
    with jax.enable_x64(True):
        program = jax.jit(functools.partial(derivatives, case.function, twice))
        found = program(*(tuple(map(jnp.asarray, x)) for x in (arrays, direction)), weights)
        found = jax.tree.map(np.asarray, found)

    def moved(step):
        return case.oracle(*(a + step * d for a, d in zip(arrays, direction, strict=True)))

    value = moved(0)
    tangent = (moved(1e-5) - moved(-1e-5)) / 2e-5
    curvature = np.vdot(weights, moved(1e-3) - 2 * value + moved(-1e-3)) / 1e-6
    for kind in ("value", "plain value"):
        np.testing.assert_allclose(found[kind], value, rtol=1e-12, atol=1e-12)
    for kind in ("plain tangent", "plain jacobian"):
        np.testing.assert_allclose(found[kind], tangent, rtol=1e-6, atol=1e-6)
    for kind in ("slope", "plain slope"):
        np.testing.assert_allclose(found[kind], np.vdot(weights, tangent), rtol=1e-6, atol=1e-6)
    for kind in ("curvature", "plain curvature") if twice else ("plain curvature",):
        np.testing.assert_allclose(found[kind], curvature, rtol=1e-3, atol=1e-3)


def value_and_gradients(function, arrays, weights):
    y, vjp = jax.vjp(function, *arrays)
    return y, vjp(weights.astype(y.dtype))


def operations(program):
    """How often each arithmetic operation occurs in the text of a program."""
    found = collections.Counter(re.findall(r"(?:stablehlo|chlo)\.(\w+)", program))
    for bookkeeping in ("constant", "broadcast_in_dim", "case", "return"):
        del found[bookkeeping]
    return found


# selective_scan's fast form is that of every platform.
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("selective_scan")])
def test_on_accelerators_the_program_is_the_plain_one(rng, name):
    case = CASES[name]
    arrays, _, weights = draw(case, rng)
    arrays, weights = jax.tree.map(jnp.asarray, (arrays, weights))
    traced = jax.jit(functools.partial(value_and_gradients, case.function)).trace(arrays, weights)

    def apart(function, arrays, weights):
        # A backward pass that keeps the inputs alone computes the rest again, which XLA joins with
        # the forward pass where both are in one program.
        return function(*arrays), value_and_gradients(function, arrays, weights)[1]

    with plain_implementations():
        plain = [
            jax.jit(functools.partial(program, case.function)).trace(arrays, weights)
            for program in (value_and_gradients, apart)
        ]
    for platform in ("cuda", "tpu"):
        ours, *theirs = (
            operations(t.lower(lowering_platforms=(platform,)).as_text()) for t in (traced, *plain)
        )
        assert ours in theirs
        assert sum(ours.values()) > 0


@pytest.mark.parametrize("name", CASES)
def test_plain_programs_choose_by_no_platform(rng, name):
    case = CASES[name]
    arrays, _, weights = draw(case, rng)
    program = jax.jit(functools.partial(value_and_gradients, case.function))
    with plain_implementations():
        exported = jax.export.export(program)(arrays, weights)
    assert "stablehlo.case" not in exported.mlir_module()


@pytest.mark.parametrize("name", CASES)
def test_operation_keeps_bfloat16(name):
    case = CASES[name]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in case.shapes]
    result = jax.eval_shape(case.function, *arrays)
    if not name.startswith("selective_scan"):  # whose state is float32
        assert result.dtype == jnp.bfloat16
    y, gradients = jax.eval_shape(
        functools.partial(value_and_gradients, case.function), arrays, result
    )
    assert y.shape == result.shape
    assert [g.dtype for g in gradients] == [jnp.bfloat16] * len(arrays)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("strided_conv")])
def test_forward_mode_through_a_fast_form_is_an_error(rng, name):
    arrays, direction, _ = draw(CASES[name], rng)
    arrays, direction = (tuple(map(jnp.float32, x)) for x in (arrays, direction))
    with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
        jax.jvp(CASES[name].function, arrays, direction)


@pytest.mark.parametrize(
    ("function", "implementation", "allowed"),
    [
        (depthwise_conv, "shift", "'auto', 'lax'$"),
        (depthwise_conv, "pallas", "'auto', 'lax'$"),
        (selective_scan, "chunked", "'auto', 'sequential', 'associative'$"),
        (selective_scan, "pallas", "'auto', 'sequential', 'associative'$"),
    ],
)
def test_fast_forms_refuse_to_be_plain(rng, function, implementation, allowed):
    name = function.__name__
    arrays = draw(CASES[name], rng)[0][:5]  # the scan's required ones
    message = rf"{name}\(implementation='{implementation}'\).*no second form for plain.*{allowed}"
    with plain_implementations(), pytest.raises(ValueError, match=message):
        function(*map(jnp.float32, arrays), implementation=implementation)
