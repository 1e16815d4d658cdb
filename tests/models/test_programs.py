# SPDX-License-Identifier: Apache-2.0
"""Programs that users build around models: shard_map, meshes, export with symbolic sizes.

Traced for a tiny model of every family; run for MambaOut and for one with a scan.
"""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support.small import FAMILY_NAMES, small_options

from mambaout_jax.models import create_model

BATCH = (8, 64, 32, 3)
DEFAULT = ("mambaout_femto", "vmamba_v9_tiny")  # a convolution, and an SSM over a map
OPTIONS = {"swin_tiny_patch4_window7_224": {"depths": (2, 1)}}  # a block of shifted windows, too
every_family = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow)
        for name in FAMILY_NAMES
    ],
)


@functools.cache
def small(name):
    """The loss of a tiny model, and the shapes of its variables."""
    model = create_model(name, **{**small_options(name), **OPTIONS.get(name, {})})
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *BATCH[1:])))

    def loss(params, rest, images):
        return (model.apply({"params": params, **rest}, images) ** 2).sum()

    rest = {name: tree for name, tree in shapes.items() if name != "params"}
    return loss, {"params": shapes["params"], "rest": rest}


def mesh_of(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def sharded(loss):
    """Loss and gradient, each device with its part of the batch, under shard_map's defaults."""

    def part(params, rest, images):
        value, gradient = jax.value_and_grad(loss)(params, rest, images)
        return jax.lax.psum(value, "data"), gradient  # the gradient of a replicated tree is a sum

    return jax.shard_map(
        part, mesh=mesh_of(AxisType.Auto), in_specs=(P(), P(), P("data")), out_specs=P()
    )


def images(*shape, **options):
    return jax.ShapeDtypeStruct(shape, jnp.float32, **options)


@every_family
def test_shard_map_with_its_defaults_takes_models_and_their_gradients(name):
    loss, shapes = small(name)
    value, gradient = jax.eval_shape(sharded(loss), *shapes.values(), images(*BATCH))
    assert value.shape == ()
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, shapes["params"])


@every_family
def test_explicit_axes_are_an_error_that_says_which_mesh_is_needed(name):
    loss, shapes = small(name)
    mesh = mesh_of(AxisType.Explicit)
    spread = NamedSharding(mesh, P("data"))
    message = r"spread over \['data'\] of a mesh whose axes are Explicit.*AxisType\.Auto"
    with jax.set_mesh(mesh):
        for function in (loss, jax.grad(loss)):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(function, *shapes.values(), images(*BATCH, sharding=spread))
        # Nothing is spread over the axes: the mesh does not matter.
        jax.eval_shape(loss, *shapes.values(), images(*BATCH))


def test_parameters_on_explicit_axes_are_an_error_too():
    loss, shapes = small("mambaout_femto")
    mesh = mesh_of(AxisType.Explicit)
    kernel = shapes["params"]["head"]["hidden"]["kernel"]
    spread = kernel.update(sharding=NamedSharding(mesh, P(None, "data")))
    head = {**shapes["params"]["head"], "hidden": {**shapes["params"]["head"]["hidden"]}}
    head["hidden"]["kernel"] = spread
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="Explicit"):
        jax.eval_shape(loss, {**shapes["params"], "head": head}, shapes["rest"], images(*BATCH))


ANY_SIZE = "b, h, w, 3"
MULTIPLES = "b, 32*h, 32*w, 3"
PATCHED = {  # families whose patches have to fill the image, and by what they are to be divided
    **dict.fromkeys(
        ("deit_tiny_patch16_224", "vim_tiny", "local_vim_tiny", "plainmamba_l1", "t2t_vit_7"),
        r"16\*h",
    ),
    "mamba2d_small": r"8\*h",
    **dict.fromkeys(("poolformer_s24", "caformer_s18", "cswin_tiny"), r"4\*h"),
    **dict.fromkeys(("sgformer_s", "transnext_tiny"), r"32\*h"),
}


@pytest.fixture
def symbols(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a symbol is no int


@every_family
def test_symbolic_batch_height_and_width(name, symbols):
    loss, shapes = small(name)
    sizes = ANY_SIZE
    if name in PATCHED:
        sizes, message = MULTIPLES, f"h x w pixels are not known.*such as {PATCHED[name]}"
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(loss, *shapes.values(), images(*export.symbolic_shape(ANY_SIZE)))
    symbolic = images(*export.symbolic_shape(sizes))
    gradient = jax.eval_shape(jax.grad(loss), *shapes.values(), symbolic)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, shapes["params"])


def random_variables(shapes, rng):
    """Small values; variances, the squares of such, are positive."""
    arrays = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x**2 if path[-1].key == "var" else x, arrays
    )


def assert_close(found, wanted):
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    # Some gradients are 0 but for rounding: what PoolFormer pools loses the biases before it.
    rounding = 1e-7 * max(np.abs(x).max() for x in wanted)
    for one, other in zip(found, wanted, strict=True):
        atol = 1e-4 * np.abs(other).max() + rounding
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mambaout_femto", "vmamba_v9_tiny"])
def test_sharded_programs_compute_what_plain_calls_do(name, rng):
    loss, shapes = small(name)
    arrays = random_variables(shapes, rng)
    x = rng.standard_normal(BATCH, np.float32)
    own = jax.jit(jax.value_and_grad(loss))
    assert_close(jax.jit(sharded(loss))(*arrays.values(), x), own(*arrays.values(), x))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_programs_of_symbolic_sizes_compute_what_plain_calls_do(name, rng, symbols):
    loss, shapes = small(name)
    arrays = jax.tree.map(jnp.asarray, random_variables(shapes, rng))
    own = jax.jit(jax.value_and_grad(loss))
    symbolic = images(*export.symbolic_shape(MULTIPLES if name in PATCHED else ANY_SIZE))
    program = export.export(own)(*arrays.values(), symbolic)
    sizes = ((2, 32, 64), (1, 96, 32)) if name in PATCHED else ((2, 64, 50), (1, 33, 47))
    for shape in sizes[: 2 if name in DEFAULT else 1]:
        x = rng.standard_normal((*shape, 3), np.float32)
        assert_close(program.call(*arrays.values(), x), own(*arrays.values(), x))
