# SPDX-License-Identifier: Apache-2.0
"""The selective scan: values, all gradients, and what becomes of it in compiled programs."""

import contextlib
import functools
import json

import hypothesis
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import strategies
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support import oracles, scan_kernels
from support.closeness import assert_close
from support.interpreters import INTERPRETERS
from support.places import GOLDENS

from mambaout_jax.kernels import selective_scan as module
from mambaout_jax.kernels.dispatch import plain_implementations
from mambaout_jax.kernels.selective_scan import IMPLEMENTATIONS, selective_scan

FOLDER = GOLDENS / "mamba"
PORTABLE = ("sequential", "associative", "chunked")  # of which "auto" is one, but on TPUs
# "pallas" is interpreted on CPUs, for seconds; other files test its kernels in every run.
INTERPRETED = ("pallas for cuda", "pallas for tpu", "auto for tpu")


def by_default(*names):
    """Every implementation, of which all but `names` run with the slow tests."""
    marks = {name: () if name in names else pytest.mark.slow for name in PORTABLE + INTERPRETED}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


EVERY = by_default("sequential", "chunked")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
# (B, L, D, N), groups (0: no such axis), optional arrays, softplus, reverse
CASES = {
    "plain": ((2, 6, 6, 4), 0, (), False, False),
    "everything": ((2, 7, 6, 3), 2, OPTIONAL, True, False),
    "one-channel-per-group-reverse": ((2, 5, 3, 4), 3, OPTIONAL, True, True),
    "bias-without-softplus-reverse": ((1, 6, 3, 2), 1, ("delta_bias",), False, True),
    "prime-length": ((1, 23, 4, 2), 0, ("D", "initial_state"), True, False),
    "one-token": ((2, 1, 4, 3), 0, ("initial_state",), True, False),
    "one-state": ((2, 9, 6, 1), 2, OPTIONAL, True, False),
}
# Of the largest value: a few roundings per product, and sums of up to a few hundred products.
EPSILON = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 1e-5}
ROUNDING = {"float64": 0.0, "float32": 0.0, "bfloat16": 2.0**-8}  # of a result, relative


def draw(rng, case, dtype):
    """Arguments by name, options, and the cotangents of y and the state, float32 at least."""
    (batch, L, D, N), groups, optional, softplus, reverse = case
    weights = (batch, L, groups, N) if groups else (batch, L, N)
    shapes = {"u": (batch, L, D), "delta": (batch, L, D), "A": (D, N), "B": weights, "C": weights}
    extra = {"D": (D,), "z": (batch, L, D), "delta_bias": (D,), "initial_state": (batch, D, N)}
    shapes |= {name: extra[name] for name in optional}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays["A"] = -np.exp(arrays["A"] / 2)
    if not softplus:  # a negative step size lets the states grow without bound
        arrays["delta"] = np.abs(arrays["delta"])
        if "delta_bias" in arrays:
            arrays["delta_bias"] = np.abs(arrays["delta_bias"])
    arrays = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    wide = jnp.promote_types(dtype, jnp.float32)
    dy = jnp.asarray(rng.standard_normal((batch, L, D)), dtype)
    dstate = jnp.asarray(rng.standard_normal((batch, D, N)), wide)
    return arrays, {"delta_softplus": softplus, "reverse": reverse}, (dy, dstate)


def outputs(arrays, **options):
    required = (arrays[name] for name in ("u", "delta", "A", "B", "C"))
    optional = {name: arrays.get(name) for name in OPTIONAL}
    return selective_scan(*required, **optional, return_state=True, **options)


def value_and_gradients(arrays, cotangents, **options):
    (y, state), vjp = jax.vjp(lambda arrays: outputs(arrays, **options), arrays)
    (gradients,) = vjp(cotangents)
    return y, state, gradients


def reference(arrays, cotangents, delta_softplus, reverse):
    return oracles.selective_scan(arrays, *cotangents, softplus=delta_softplus, reverse=reverse)


@contextlib.contextmanager
def runnable(implementation):
    """Gives the word for the argument; inside, kernels of other platforms are interpreted."""
    word, _, platform = implementation.partition(" for ")
    with contextlib.ExitStack() as stack:
        if platform:
            stack.enter_context(INTERPRETERS[platform]())
            patch = stack.enter_context(pytest.MonkeyPatch.context())

            def interpreted(*arrays, **options):
                return scan_kernels.interpreted(*arrays, **options | {"platform": platform})

            patch.setattr(module, "scan_pallas", interpreted)
        if word == "auto" and platform:  # what stands in a TPU's program
            patch.setattr(module, "_values_by_platform", module._fused_values)
            patch.setattr(module, "_gradients_by_platform", module._fused_gradients)
        yield word


def assert_match_oracle(drawn, implementation):
    """All cases in one program, but each in its own where kernels are interpreted: several at a
    time may wait for each other forever.
    """
    if implementation not in PORTABLE and len(drawn) > 1:
        for one in drawn:
            assert_match_oracle([one], implementation)
        return

    def run(inputs):
        return [
            value_and_gradients(*arrays, **options, implementation=word)
            for arrays, (_, options, _) in zip(inputs, drawn, strict=True)
        ]

    with runnable(implementation) as word:
        results = jax.jit(run)([(arrays, cotangents) for arrays, _, cotangents in drawn])
    for (arrays, options, cotangents), (y, state, gradients) in zip(drawn, results, strict=True):
        dtype = arrays["u"].dtype.name
        expected_y, expected_state, expected = reference(arrays, cotangents, **options)
        assert y.dtype == dtype
        assert state.dtype == jnp.promote_types(dtype, jnp.float32)
        assert_close(y, expected_y, EPSILON[dtype], ROUNDING[dtype])
        assert_close(state, expected_state, EPSILON[dtype])
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            assert gradient.dtype == dtype
            assert_close(gradient, expected[name], EPSILON[dtype], ROUNDING[dtype])


@pytest.mark.parametrize("implementation", EVERY)
def test_selective_scan_matches_oracle(rng, implementation):
    dtype = "float64" if implementation in PORTABLE else "float32"  # the most that it takes
    with jax.enable_x64(dtype == "float64"):
        assert_match_oracle([draw(rng, case, dtype) for case in CASES.values()], implementation)


@pytest.mark.parametrize("implementation", EVERY)
def test_selective_scan_keeps_at_least_float32_inside(rng, implementation):
    # Without D: the gradient of u has a part from the skip, which is rounded on its own.
    case = ((2, 11, 12, 4), 2, OPTIONAL[1:], True, False)
    drawn = [draw(rng, case, dtype) for dtype in ("float32", "bfloat16")]
    assert_match_oracle(drawn, implementation)


def test_selective_scan_stays_accurate_over_long_sequences(rng):
    case = ((1, 3136, 6, 4), 0, OPTIONAL, True, False)
    assert_match_oracle([draw(rng, case, "float32")], "chunked")


@pytest.mark.parametrize(
    ("implementation", "examples"),
    [
        ("chunked", 2),
        *(pytest.param(word, 8, marks=pytest.mark.slow) for word in PORTABLE),
    ],
)
def test_selective_scan_matches_oracle_at_any_shape(implementation, examples):
    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @hypothesis.given(
        shape=strategies.tuples(*(strategies.integers(1, top) for top in (3, 20, 3, 5))),
        groups=strategies.integers(0, 3),
        optional=strategies.sets(strategies.sampled_from(OPTIONAL)),
        softplus=strategies.booleans(),
        reverse=strategies.booleans(),
    )
    def check(shape, groups, optional, softplus, reverse):
        batch, L, width, N = shape
        case = ((batch, L, width * max(1, groups), N), groups, sorted(optional), softplus, reverse)
        with jax.enable_x64(True):
            drawn = draw(np.random.default_rng(0), case, "float64")
            assert_match_oracle([drawn], implementation)

    check()


@pytest.mark.parametrize("implementation", by_default("chunked"))
def test_selective_scan_equals_the_reference_implementation(implementation):
    cases = []
    for index in (1,) if "pallas" in implementation else range(5):  # interpreted: a minute for each
        golden, softplus = read_golden(index)
        arrays = {name: golden[name] for name in ("u", "delta", "A", "B", "C", *OPTIONAL[:3])}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        cotangents = (golden["w"], np.zeros_like(golden["last_state"]))
        cases.append((golden, arrays, cotangents, softplus))

    with runnable(implementation) as word:
        run = functools.partial(value_and_gradients, implementation=word)
        jitted = jax.jit(run, static_argnames="delta_softplus")
        results = [jitted(*case[1:3], delta_softplus=case[3]) for case in cases]
    for (golden, arrays, cotangents, softplus), ours in zip(cases, results, strict=True):
        # The oracle, too: every implementation is compared with it.
        for y, state, gradients in (ours, reference(arrays, cotangents, softplus, False)):
            assert_close(y, golden["y"], 5e-6)
            assert_close(state, golden["last_state"], 5e-6)
            assert gradients.keys() == arrays.keys()
            for name, gradient in gradients.items():
                assert_close(gradient, golden[f"grad_{name}"], 5e-6)


def read_golden(index):
    """Arrays in our layout, None where there is no such array; whether softplus is applied."""
    with np.load(FOLDER / f"selective_scan_{index}.npz") as file:
        stored = dict(file)
    golden = dict.fromkeys(OPTIONAL)
    for name, array in stored.items():
        tokens_last = array.ndim > 2 and name != "last_state"  # (B, D, N) there too
        golden[name] = np.moveaxis(array, -1, 1) if tokens_last else array
    return golden, json.loads(str(stored["meta"]))["softplus"]


def test_selective_scan_returns_y_alone_unless_asked_for_the_state(rng):
    arrays, options, _ = draw(rng, ((1, 5, 2, 2), 0, (), True, False), "float32")
    required = (arrays[name] for name in ("u", "delta", "A", "B", "C"))
    y = selective_scan(*required, **options)
    np.testing.assert_array_equal(y, outputs(arrays, **options)[0])


@pytest.mark.parametrize("implementation", PORTABLE)
def test_selective_scan_maps_over_an_extra_axis(rng, implementation):
    case = ((2, 6, 4, 3), 2, OPTIONAL, True, True)
    drawn = [draw(rng, case, "float32") for _ in range(3)]
    options = drawn[0][1]
    function = functools.partial(value_and_gradients, **options, implementation=implementation)
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *((d[0], d[2]) for d in drawn))
    y, state, gradients = jax.jit(jax.vmap(function))(*stacked)
    for index, (arrays, _, cotangents) in enumerate(drawn):
        expected_y, expected_state, expected = reference(arrays, cotangents, **options)
        assert_close(y[index], expected_y, 1e-5)
        assert_close(state[index], expected_state, 1e-5)
        for name, gradient in gradients.items():
            assert_close(gradient[index], expected[name], 1e-5)


@pytest.mark.parametrize("implementation", ["sequential", "associative"])
def test_selective_scan_has_a_forward_mode_without_own_gradients(rng, implementation):
    case = ((2, 6, 4, 3), 0, OPTIONAL, True, False)
    arrays, options, cotangents = draw(rng, case, "float32")
    directions, _, _ = draw(rng, case, "float32")
    scan = functools.partial(outputs, **options, implementation=implementation)
    _, tangents = jax.jit(lambda *at: jax.jvp(scan, *at))((arrays,), (directions,))
    _, _, gradients = reference(arrays, cotangents, **options)
    along = sum(np.vdot(np.float64(t), c) for t, c in zip(tangents, cotangents, strict=True))
    expected = sum(np.vdot(np.float64(directions[name]), gradients[name]) for name in gradients)
    size = sum(np.abs(directions[name] * gradients[name]).sum() for name in gradients)
    assert abs(along - expected) <= 1e-6 * size


@pytest.mark.parametrize("implementation", ["auto", "chunked"])
def test_selective_scan_chunked_refuses_forward_mode(rng, implementation):
    arrays, options, _ = draw(rng, ((1, 5, 2, 2), 0, (), True, False), "float32")
    scan = functools.partial(outputs, **options, implementation=implementation)
    with pytest.raises(TypeError, match=r"forward-mode.*custom_vjp"):
        jax.jvp(scan, (arrays,), (arrays,))


@pytest.mark.parametrize("implementation", ["auto", *PORTABLE])
def test_selective_scan_keeps_a_sharded_batch_in_place(rng, implementation):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arrays, options, cotangents = draw(rng, ((16, 6, 4, 3), 2, OPTIONAL, True, False), "float32")
    where = {name: whole if name in ("A", "D", "delta_bias") else batch for name in arrays}
    arrays, cotangents = jax.device_put((arrays, cotangents), (where, batch))
    function = functools.partial(value_and_gradients, **options, implementation=implementation)
    compiled = jax.jit(function).lower(arrays, cotangents).compile()
    y, state, gradients = compiled(arrays, cotangents)
    expected_y, expected_state, expected = reference(arrays, cotangents, **options)
    assert_close(y, expected_y, 1e-5)
    assert_close(state, expected_state, 1e-5)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], 1e-5)
        assert gradient.sharding.is_equivalent_to(where[name], gradient.ndim)
    assert y.sharding.is_equivalent_to(batch, 3)
    program = compiled.as_text()
    assert "all-reduce" in program  # of the gradients of A, D and the bias
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program


@pytest.mark.parametrize("implementation", ["auto", "chunked"])
def test_selective_scan_chunked_needs_a_fraction_of_the_memory(implementation):
    batch, L, D, N = 2, 784, 96, 16
    tokens, weights = jax.ShapeDtypeStruct((batch, L, D), "float32"), (batch, L, N)
    arrays = {"u": tokens, "delta": tokens, "A": jax.ShapeDtypeStruct((D, N), "float32")}
    arrays |= {name: jax.ShapeDtypeStruct(weights, "float32") for name in ("B", "C")}
    cotangents = (tokens, jax.ShapeDtypeStruct((batch, D, N), "float32"))
    function = functools.partial(
        value_and_gradients, delta_softplus=True, implementation=implementation
    )
    compiled = jax.jit(function).lower(arrays, cotangents).compile()
    states = batch * L * D * N * 4  # bytes, of which automatic differentiation needs several
    assert compiled.memory_analysis().temp_size_in_bytes < states / 2


def lowered(shape, dtype="float32", *, platforms, implementation="auto", wrap=lambda f: f):
    """The program of outputs and all gradients; `wrap` is put around the function."""
    batch, L, D, N = shape
    tokens, weights = (jax.ShapeDtypeStruct((batch, L, x), dtype) for x in (D, N))
    arrays = {"u": tokens, "delta": tokens, "B": weights, "C": weights}
    arrays["A"] = jax.ShapeDtypeStruct((D, N), jnp.promote_types(dtype, jnp.float32))

    def gradients(arrays):
        return jax.grad(lambda x: sum(y.sum() for y in outputs(x, implementation=implementation)))(
            arrays
        )

    traced = jax.jit(wrap(gradients)).trace(arrays)
    return traced.lower(lowering_platforms=platforms).as_text()


KERNEL = "custom_call @tpu_custom_call"


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_selective_scan_auto_is_chunked_off_tpus(platform):
    auto, chunked = (
        lowered((1, 9, 4, 3), platforms=(platform,), implementation=word)
        for word in ("auto", "chunked")
    )
    assert auto.count("stablehlo.while") == chunked.count("stablehlo.while") > 2
    assert "custom_call @" not in auto


@pytest.mark.parametrize("shape", [(1, 9, 4, 3), (1, 140, 4, 3)])  # the second in segments
def test_selective_scan_auto_is_the_kernel_on_tpus(shape):
    text = lowered(shape, platforms=("tpu",))
    assert text.count(KERNEL) == 3  # forward, and once more for the gradient
    assert "stablehlo.while" not in text


def test_selective_scan_auto_is_chunked_on_tpus_for_what_the_kernel_refuses():
    with jax.enable_x64(True):
        assert KERNEL not in lowered((1, 9, 4, 3), "float64", platforms=("tpu",))
    assert KERNEL not in lowered((1, 9, 4, 33), platforms=("tpu",))


def test_selective_scan_auto_is_chunked_in_a_program_for_several_platforms():
    text = lowered((1, 9, 4, 3), platforms=("cpu", "tpu"))
    assert KERNEL not in text
    assert "stablehlo.while" in text


def test_selective_scan_auto_of_many_devices_keeps_the_kernel_and_moves_nothing():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    data, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def spread(function):
        def run(arrays):
            given = {name: whole if name == "A" else data for name in arrays}
            return function(jax.lax.with_sharding_constraint(arrays, given))

        return run

    text = lowered((2, 9, 4, 3), platforms=("tpu",), wrap=spread)
    assert text.count(KERNEL) == 3
    assert 'manual_axes={"data"}' in text


def test_selective_scan_auto_of_stacked_arguments_is_one_scan_each(rng):
    arrays, options, cotangents = draw(rng, CASES["everything"], "float32")
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (arrays, cotangents))
    run = functools.partial(value_and_gradients, **options, implementation="auto")
    found = jax.vmap(run)(*stacked)
    for number in range(2):
        alone = run(*jax.tree.map(lambda x, number=number: x[number], stacked))
        jax.tree.map(lambda x, y, n=number: assert_close(x[n], y, 1e-6), found, alone)
    traced = jax.jit(jax.vmap(run)).trace(*stacked)
    assert traced.lower(lowering_platforms=("tpu",)).as_text().count(KERNEL) == 3


FITTING = {"u": (2, 6, 4), "delta": (2, 6, 4), "A": (4, 3), "B": (2, 6, 3), "C": (2, 6, 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": (6, 4)}, r"u float32\(6, 4\).*u must be \(B, L, D\)"),
        ({"u": (2, 0, 4)}, r"u float32\(2, 0, 4\).*L >= 1"),
        ({"A": (4,)}, r"A float32\(4,\).*A \(D, N\)"),
        ({"A": (3, 4)}, r"A float32\(3, 4\).*A must be \(4, 4\)"),
        ({"B": (2, 6)}, r"B float32\(2, 6\).*B \(B, L, N\) or \(B, L, G, N\)"),
        ({"delta": (2, 5, 4)}, r"delta float32\(2, 5, 4\).*delta must be \(2, 6, 4\)"),
        ({"C": (2, 6, 5)}, r"C must be \(2, 6, 1, 3\) or \(2, 6, 3\)"),
        ({"B": (2, 6, 2, 3)}, r"C must be \(2, 6, 2, 3\)"),
        ({"B": (2, 6, 3, 3), "C": (2, 6, 3, 3)}, "3 groups of B and C must divide the 4 channels"),
        ({"D": (5,)}, r"D must be \(4,\)"),
        ({"delta_bias": (1,)}, r"delta_bias must be \(4,\)"),
        ({"z": (2, 6, 1)}, r"z must be \(2, 6, 4\)"),
        ({"initial_state": (2, 3, 4)}, r"initial_state must be \(2, 4, 3\)"),
    ],
)
def test_selective_scan_rejects_shapes(monkeypatch, change, message):
    # The annotations would speak first here; users run without that check.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arrays = {name: jnp.ones(shape) for name, shape in (FITTING | change).items()}
    with pytest.raises(ValueError, match=message):
        selective_scan(**arrays)


def test_selective_scan_rejects_integers_and_unknown_implementations(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arrays = {name: jnp.ones(shape) for name, shape in FITTING.items()}
    with pytest.raises(ValueError, match=r"delta int32\(2, 6, 4\).*delta must have a floating"):
        selective_scan(**arrays | {"delta": arrays["delta"].astype(jnp.int32)})
    allowed = ", ".join(map(repr, IMPLEMENTATIONS))
    with pytest.raises(ValueError, match=f"implementation='mamba'; allowed are {allowed}"):
        selective_scan(**arrays, implementation="mamba")


@pytest.mark.parametrize("implementation", ["auto", "chunked", "pallas"])
def test_second_derivatives_name_the_implementations_that_have_them(implementation):
    arrays = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in FITTING.items()}

    def total(u, implementation=implementation):
        rest = {name: jnp.ones(shape) for name, shape in FITTING.items() if name != "u"}
        return (selective_scan(u=u, **rest, implementation=implementation) ** 2).sum()

    def curvature(u):
        return jax.jvp(jax.grad(total), (u,), (u,))[1]

    def slope(u):
        return jax.grad(lambda u: jax.grad(total)(u).sum())(u)

    for function in (curvature, slope):
        with pytest.raises(ValueError, match=r"first derivatives only.*'sequential' or 'associ"):
            jax.eval_shape(function, arrays["u"])
    jax.eval_shape(jax.grad(total), arrays["u"])
    if implementation == "auto":
        with plain_implementations():
            jax.eval_shape(curvature, arrays["u"])
