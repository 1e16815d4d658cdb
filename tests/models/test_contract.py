# SPDX-License-Identifier: Apache-2.0
"""What every family promises, asked of its smallest model or of a tiny one.

Shapes, names and costs are traced, and as seldom as can be, so that a family adds about a second;
numbers against its reference are in test_goldens.py.
"""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from support.small import FAMILY_NAMES, IMAGE, small_options
from support.variables import randomised

from mambaout_jax.analysis.cost import count, count_by_formula
from mambaout_jax.backbone import subtree
from mambaout_jax.models import (
    FAMILIES,
    create_backbone,
    create_model,
    find_variant,
    list_models,
    parameter_rules,
    takes_option,
)
from mambaout_jax.train.optimizer import decay_mask, layer_depths
from mambaout_jax.weights.catalog import CATALOG
from mambaout_jax.weights.convert import from_torch, model_variables, namings, to_torch
from mambaout_jax.weights.load import load_pretrained, save_variables

every_family = pytest.mark.parametrize("name", FAMILY_NAMES)


# A convolution, an attention and an SSM; what others add has no derivatives of its own.
OF_EACH_MIXER = ("mambaout_femto", "swin_tiny_patch4_window7_224", "vim_tiny")
of_each_mixer = pytest.mark.parametrize("name", OF_EACH_MIXER)
of_each_mixer_by_default = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in OF_EACH_MIXER else pytest.mark.slow)
        for name in FAMILY_NAMES
    ],
)


def small(name, **options):
    return create_model(name, **{**small_options(name), **options})


def image(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.cache
def shapes_of(name):
    """Shapes and dtypes of the variables of `small(name)`."""
    # Of the size that conversions ask for, so that they know the shapes already.
    return model_variables(small(name), small_options(name).get("image_size", 224))


def random_variables(name):
    """Values that tell every two parameters apart."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes_of(name))


def run(name, variables, images, **options):
    """Features and logits."""
    logits, captured = small(name, **options).apply(
        variables,
        images,
        mutable=["intermediates"],
        capture_intermediates=lambda _, method: method == "features",
    )
    return captured["intermediates"]["backbone"]["features"][0], logits


OTHER = (2, 96, 64, 3)


@functools.cache
def traced(name):
    """The program of `run` in bfloat16, every block recomputed, and what it returns.

    Of variables in float32.
    """
    program = functools.partial(run, name, remat=True, dtype=jnp.bfloat16)
    return jax.make_jaxpr(program, return_shape=True)(shapes_of(name), image(*OTHER))


def assert_are_as_said(name, features, shape, dtype):
    backbone = small(name).backbone
    assert len(features.maps) == len(backbone.channels) == len(backbone.strides)
    for found, channels, stride in zip(
        features.maps, backbone.channels, backbone.strides, strict=True
    ):
        assert found.shape == (shape[0], shape[1] // stride, shape[2] // stride, channels)
        assert found.dtype == dtype


@every_family
def test_maps_are_as_said_before_initialisation_and_logits_are_at_least_float32(name):
    _, (features, logits) = traced(name)
    assert_are_as_said(name, features, OTHER, jnp.bfloat16)
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.float32)


@of_each_mixer_by_default
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_float32_and_float64_stay_what_they_are(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        variables = jax.tree.map(lambda x: image(*x.shape, dtype=dtype), shapes_of(name))
        images = image(*IMAGE, dtype=dtype)
        features, logits = jax.eval_shape(functools.partial(run, name), variables, images)
    assert_are_as_said(name, features, IMAGE, dtype)
    assert (logits.shape, logits.dtype) == ((1, 3), dtype)


def families_with(field):
    """The families whose backbones have a field."""
    return [
        name
        for name in FAMILY_NAMES
        if field in {f.name for f in dataclasses.fields(find_variant(name)[0].BACKBONE)}
    ]


@pytest.mark.parametrize("name", families_with("out_blocks"))
def test_plain_backbones_give_a_map_of_each_block_asked_for(name):
    options = {**small_options(name), "depth": 3}
    if "directions" in options:
        options["directions"] *= 3
    del options["num_classes"]
    backbone = create_backbone(name, **options, out_blocks=(0, 2))
    _, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image(*IMAGE))
    maps = jax.eval_shape(backbone.apply, variables, image(*IMAGE))
    assert len(maps) == len(backbone.channels) == len(backbone.strides) == 2
    for found, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert found.shape == (1, IMAGE[1] // stride, IMAGE[2] // stride, channels)
    for blocks in ((), (2, 0), (3,), (0, 0)):
        wrong = create_backbone(name, **options, out_blocks=blocks)
        with pytest.raises(ValueError, match=r"must be blocks from 0 to 2, in rising order"):
            jax.eval_shape(wrong.apply, variables, image(*IMAGE))


@pytest.mark.slow
@pytest.mark.parametrize("name", families_with("scan_implementation"))
def test_all_scan_implementations_compute_the_same(name, rng):
    images = rng.standard_normal((2, *IMAGE[1:]), np.float32)
    variables = randomised(small(name), images)
    logits = [
        jax.jit(small(name, scan_implementation=word).apply)(variables, images)
        for word in ("sequential", "associative", "chunked")
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], rtol=1e-4, atol=1e-4 * np.abs(logits[0]).max())
    with pytest.raises(ValueError, match="has no implementation='none'"):
        jax.eval_shape(small(name, scan_implementation="none").apply, variables, images)


@every_family
def test_without_classes_the_head_returns_what_its_classifier_would_read(name):
    _, (features, _) = traced(name)
    whole = subtree(shapes_of(name), "head")
    params = dict(whole["params"])
    classifier = params.pop("classifier")
    head = small(name, num_classes=0).head
    read = jax.eval_shape(head.apply, {**whole, "params": params}, features)
    assert read.shape == (OTHER[0], classifier["kernel"].shape[0])


@every_family
def test_remat_recomputes_every_block_under_the_same_names(name):
    program, _ = traced(name)
    blocks = {path for path in shapes_of(name)["params"]["backbone"] if "block_" in path}
    outermost = [equation.primitive.name for equation in program.eqns]
    assert sum(word in ("remat", "remat2", "checkpoint") for word in outermost) == len(blocks) > 0


@every_family
def test_every_layer_states_its_cost(name):
    parameters = sum(x.size for x in jax.tree.leaves(shapes_of(name)["params"]))
    cost = count(small(name), IMAGE[1:])
    assert (cost.parameters, cost.macs > 0) == (parameters, True)


@every_family
def test_another_number_of_image_channels_is_refused(name):
    options = {**small_options(name), "in_chans": 1}
    with pytest.raises(ValueError, match="made for 1 channels; pass in_chans=3"):
        jax.eval_shape(create_backbone(name, **options).init, jax.random.key(0), image(*IMAGE))


def test_backbone_reads_as_many_image_channels_as_asked_for():
    backbone = create_backbone(FAMILY_NAMES[0], **small_options(FAMILY_NAMES[0]), in_chans=1)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image(1, 32, 32, 1))
    assert shapes["params"]["stem"]["conv1"]["kernel"].shape[:3] == (3, 3, 1)


@every_family
def test_unknown_options_name_the_fields(name):
    with pytest.raises(TypeError, match=rf"{name} has no option 'colour'.* Fields of its backbone"):
        create_model(name, colour=1)


@every_family
def test_decay_and_layers_are_known_of_every_parameter(name):
    params, rules = shapes_of(name)["params"], parameter_rules(name)
    decays = flatten_dict(decay_mask(params, rules.decay), sep="/")
    kernels = {path for path in decays if path.endswith("/kernel")}
    assert {path for path, decay in decays.items() if decay} == kernels
    depths = flatten_dict(layer_depths(params, rules.layer_of), sep="/")
    blocks = {path.split("/")[1] for path in depths if "/block_" in path or "_block_" in path}
    assert set(depths.values()) == set(range(len(blocks) + 2))  # before them, and the head
    assert {depths[path] for path in depths if path.startswith("head/")} == {len(blocks) + 1}


@every_family
def test_saved_variables_load_bit_for_bit(name, tmp_path):
    variables, path = random_variables(name), tmp_path / "weights.safetensors"
    save_variables(variables, path, {"model": name})
    options = small_options(name)
    del options["num_classes"]
    _, loaded = load_pretrained(path, **options)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


NAMINGS = [
    (name, naming)
    for name in FAMILY_NAMES
    if find_variant(name)[0].TORCH_NAMES
    for naming in namings(name)
]


@pytest.mark.parametrize(("name", "naming"), NAMINGS)
def test_names_convert_there_and_back_strictly(name, naming):
    variables, options = random_variables(name), small_options(name)
    state = to_torch(name, variables, naming, **options)
    again = from_torch(name, state, **options)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    for tree in (again, variables):  # training one side must not change the other
        for leaf in jax.tree.leaves(tree):
            assert not any(np.shares_memory(leaf, tensor) for tensor in state.values())


def scalar(name, rest, images, **options):
    """A function of the parameters, in training mode."""
    model = small(name, **options)

    def loss(params):
        logits, _ = model.apply(
            {"params": params, **rest},
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=list(rest),
        )
        return (logits**2).sum()

    return loss


@of_each_mixer_by_default
def test_plain_models_have_hessian_vector_products(name):
    variables = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes_of(name))
    params = variables.pop("params")
    loss = scalar(name, variables, jnp.ones((2, *IMAGE[1:])), plain=True)
    product = jax.eval_shape(lambda p: jax.jvp(jax.grad(loss), (p,), (p,))[1], params)
    assert jax.tree.map(jnp.shape, product) == jax.tree.map(jnp.shape, params)


@of_each_mixer
@pytest.mark.slow
def test_plain_models_have_the_right_forward_and_second_derivatives(name, rng):
    images = rng.standard_normal((2, *IMAGE[1:]), np.float32)
    variables = randomised(small(name), images)
    params = variables.pop("params")
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)  # noqa: E731
        params, step = wide(params), 1e-5
        loss = scalar(name, wide(variables), wide(images), plain=True)

        @jax.jit
        def derivatives(params):
            value, linear = jax.linearize(loss, params)
            slope = jax.jacfwd(lambda s: loss(jax.tree.map(lambda x: s * x, params)))(1.0)
            _, product = jax.jvp(jax.grad(loss), (params,), (params,))
            return value, linear(params), slope, product

        value_and_gradient = jax.jit(jax.value_and_grad(loss))
        _, along, slope, product = jax.tree.map(np.asarray, derivatives(params))
        (high, later), (low, sooner) = (
            jax.tree.map(np.asarray, value_and_gradient(jax.tree.map(lambda x, s=s: s * x, params)))
            for s in (1 + step, 1 - step)
        )
    expected = (high - low) / (2 * step)
    np.testing.assert_allclose([along, slope], expected, rtol=1e-4)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(product))
    assert np.isfinite(largest)
    jax.tree.map(
        lambda x, a, b: np.testing.assert_allclose(x, (a - b) / (2 * step), atol=1e-3 * largest),
        product, later, sooner,
    )  # fmt: skip


@of_each_mixer
@pytest.mark.slow
def test_plain_models_compute_the_same_logits_and_gradients(name, rng):
    images = rng.standard_normal((2, *IMAGE[1:]), np.float32)
    variables = randomised(small(name), images)

    def logits_and_gradient(model):
        def loss(variables):
            logits = model.apply(variables, images)
            return jnp.sum(logits**2), logits

        return jax.jit(jax.grad(loss, has_aux=True))(variables)

    ours, plain = (logits_and_gradient(small(name, plain=p)) for p in (False, True))
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * scale), ours, plain)


@every_family
@pytest.mark.slow
def test_every_parameter_has_a_gradient(name, rng):
    images = rng.standard_normal((2, *IMAGE[1:]), np.float32)
    variables = randomised(small(name), images)
    gradients = jax.jit(jax.grad(lambda p, rest: (
        small(name).apply({**rest, "params": p}, images) ** 2
    ).sum()))(variables.pop("params"), variables)  # fmt: skip
    frozen = getattr(find_variant(name)[0], "FROZEN", ())
    for path, gradient in flatten_dict(gradients, sep="/").items():
        assert np.isfinite(gradient).all(), path
        assert bool(np.abs(gradient).max()) != any(re.search(f, path) for f in frozen), path


def sized(name):
    """By default one of each mixer: the rules by which layers count do not depend on sizes."""
    return pytest.param(name, marks=() if name in OF_EACH_MIXER else pytest.mark.goldens)


@functools.cache
def costs(name):
    quick = {"conv_implementation": "lax"} if takes_option(name, "conv_implementation") else {}
    return count_by_formula(create_model(name, **quick), (224, 224, 3))  # the same by any


@pytest.mark.parametrize("name", [sized(name) for name in list_models()])
def test_parameters_and_macs_are_those_of_the_table(name):
    _, variant = find_variant(name)
    assert costs(name)["parallel"] == (variant.parameters, variant.macs)


# Table 1 of the MambaOut paper, as printed: parameters in millions, multiply-accumulates in 10⁹.
TABLE_1 = {
    "vim_tiny": (7, 1.5), "vim_small": (26, 5.1), "local_vim_tiny": (8, 1.5),
    "local_vim_small": (28, 4.8), "local_vmamba_tiny": (26, 5.7), "local_vmamba_small": (50, 11.4),
    "efficientvmamba_tiny": (6, 0.8), "efficientvmamba_small": (11, 1.3),
    "efficientvmamba_base": (33, 4.0), "vmamba_v0_tiny": (22, 5.6), "vmamba_v0_small": (44, 11.2),
    "vmamba_v0_base": (75, 18.0), "vmamba_v9_tiny": (31, 4.9), "vmamba_v9_small": (50, 8.7),
    "vmamba_v9_base": (89, 15.4), "plainmamba_l1": (7, 3.0), "plainmamba_l2": (25, 8.1),
    "plainmamba_l3": (50, 14.4), "mamba2d_small": (24, None), "mamba2d_base": (92, None),
    "van_b0": (4, 0.9), "van_b2": (27, 5.0), "van_b3": (45, 9.0), "poolformer_s24": (21, 3.4),
    "caformer_s18": (26, 4.1), "caformer_s36": (39, 8.0), "caformer_m36": (56, 13.2),
    "convformer_s18": (27, 3.9), "convformer_s36": (40, 7.6), "convformer_m36": (57, 12.8),
    "inception_next_atto": (4, 0.5), "inception_next_tiny": (28, 4.2), "moganet_tiny": (5, 1.1),
    "moganet_small": (25, 5.0), "moganet_base": (44, 9.9), "moganet_large": (83, 15.9),
    "hornet_base_gf": (88, 15.5), "replknet_31b": (79, 15.3), "replknet_31b_merged": (79, 15.3),
    "emo_6m": (6.5, 1.0),
    "cswin_tiny": (23, 4.3), "cswin_small": (35, 6.9), "cswin_base": (78, 15.0),
    "pvt_v2_b0": (3, 0.6), "coatnet_0_224_stride1x1": (25, 4.2),
    "coatnet_1_224_stride1x1": (42, 8.4), "coatnet_2_224_stride1x1": (75, 15.7),
    "moat_0": (28, 5.7), "moat_2": (73, 17.2), "mvitv2_small": (35, 7.0), "mvitv2_base": (52, 10.2),
    "focal_tiny": (29, None), "focal_small": (51, None),  # 4.9 and 9.1, by a count of their own
    "internimage_t": (30, 5), "internimage_s": (50, 8), "internimage_b": (97, 16),
    "t2t_vit_7": (4, 1.1), "t2t_vit_14": (22, 4.8), "t2t_vit_19": (39, 8.5),
    "t2t_vit_24": (64, 13.8), "uniformer_base_ls": (50, 8.3),
    "iformer_small": (20, 4.8), "iformer_large": (87, 14.0), "sgformer_s": (23, 4.8),
    "sgformer_m": (39, 7.5), "transnext_tiny": (28, 5.7), "transnext_small": (50, 10.3),
    "transnext_base": (90, 18.4),
}  # fmt: skip
# Millions of parameters that may be missing, where rounding does not tell: MogaNet-L's 82.48 are
# 82.5 in its paper and 83 there; CSWin and MViTv2-B are printed larger than their code makes them.
LARGER = {"moganet_large": 0.52, "cswin_tiny": 0.7, "cswin_base": 0.7, "mvitv2_base": 0.7}
HEADLESS = 1.2  # million at most: some of its rows leave the classifier out
MERGING = {"mamba2d_base": 2.4}  # and the merging, too
CUT = {"replknet_31b": 0.14, "replknet_31b_merged": 0.06}  # 15.43 and 15.35, printed as 15.3


@pytest.mark.parametrize("name", TABLE_1)
def test_costs_are_those_of_table_1(name):
    parameters, macs = TABLE_1[name]
    _, variant = find_variant(name)
    more = variant.parameters / 1e6 - parameters
    assert -LARGER.get(name, 0.5) <= more <= 0.5 + MERGING.get(name, HEADLESS)
    if macs is not None:  # norms, up to 2 % of it, are counted there and not here
        counted = (variant.hand_macs or variant.macs) / 1e9
        rounding = 0.5 if isinstance(macs, int) else 0.05
        assert macs - rounding - 0.02 * macs <= counted <= macs + CUT.get(name, rounding)


@pytest.mark.goldens
def test_mobilevit_is_printed_at_its_own_size():
    name = "mobilevitv3_xs"
    side = find_variant(name)[1].image_size
    macs = count(create_model(name), (side, side, 3)).macs
    assert (side, macs) == (256, 966_618_112)  # 0.9 in Table 1, 0.927 in its authors' own


@pytest.mark.parametrize(
    "name", [sized(name) for name in list_models() if find_variant(name)[1].hand_macs]
)
def test_macs_by_hand_are_those_of_the_table(name):
    assert costs(name)["hand"].macs == find_variant(name)[1].hand_macs


def test_a_model_says_which_options_it_takes():
    named = {"token_mixer", "depths", "dropout", "dims", "num_classes", "dtype", "depth"}
    assert {option for option in named if takes_option("mambaout_micro", option)} == {
        "token_mixer", "depths", "dropout", "dims",
    }  # fmt: skip
    assert not takes_option("convnext_tiny", "token_mixer")
    with pytest.raises(ValueError, match="no model is called 'mambaout_mikro'; did you mean"):
        takes_option("mambaout_mikro", "depths")


def test_names_of_models_and_weights_are_unique():
    assert len(set(list_models())) == sum(len(family.VARIANTS) for family in FAMILIES)
    assert len(CATALOG) == sum(len(family.WEIGHTS) for family in FAMILIES)
    for key, weights in CATALOG.items():
        assert key.startswith(weights.model)
        assert weights.naming in namings(weights.model)
        assert math.isfinite(weights.image_size)


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("mambaout_micro", "depths", "abc", "each a whole number from 1 to 65,536"),
        ("mambaout_micro", "depths", (1, -1), "each a whole number from 1"),
        ("mambaout_micro", "dims", 5, "it must be a tuple of numbers"),
        ("mambaout_micro", "kernel_size", 7.5, "a whole number from 1"),
        ("mambaout_micro", "expansion_ratio", float("nan"), "a number from 0 to 1,000,000"),
        ("mambaout_micro", "routes", 5, "None, or text"),
        ("mambaout_micro", "causal", "no", "True or False"),
        ("deit_tiny_patch16_224", "depth", 0, "a whole number from 1"),
        ("fasternet_t1", "hidden", None, "a whole number from 1"),
    ],
)
def test_options_of_a_wrong_kind_are_named(name, option, value, words):
    with pytest.raises(ValueError, match=rf"^{name}: {option}=.* is not allowed; .*{words}"):
        create_model(name, **{option: value})
