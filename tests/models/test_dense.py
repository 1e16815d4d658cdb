# SPDX-License-Identifier: Apache-2.0
"""Dense models: any backbone under a head."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from support.small import FAMILY_NAMES
from support.without_kernels import leave_kernels_out

from mambaout_jax.analysis.cost import count
from mambaout_jax.models import create_backbone, create_detector, create_segmenter, parameter_rules
from mambaout_jax.train.optimizer import decay_mask, layer_depths

# A pyramid, maps of one stride, and those beside a class token.
REPRESENTATIVES = {
    "mambaout_femto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "isotropic_mambaout_tiny": {"depth": 1, "dim": 16},
    "deit_tiny_patch16_224": {"depth": 1, "dim": 16, "heads": 2},
}


def by_default(name):
    """The representatives, tiny; of all other families their smallest model as it is."""
    marks = () if name in REPRESENTATIVES else pytest.mark.slow
    return pytest.param(name, REPRESENTATIVES.get(name, {}), id=name, marks=marks)


every_family = pytest.mark.parametrize(
    ("name", "options"), [by_default(name) for name in FAMILY_NAMES]
)


@pytest.fixture(autouse=True)
def _quickly_traced(monkeypatch):
    leave_kernels_out(monkeypatch)


def traced(model):
    """Shapes and dtypes of what a model makes of an image, and of its variables."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


@every_family
def test_detectors_of_every_family(name, options):
    outputs, variables = traced(create_detector(name, 7, **options))
    assert {key: (x.shape, x.dtype.name) for key, x in outputs.items()} == {
        "boxes": ((1, 100, 4), "float32"),
        "scores": ((1, 100), "float32"),
        "labels": ((1, 100), "int32"),
        "masks": ((1, 100, 28, 28), "float32"),
    }
    params = variables["params"]
    assert set(params) == {"backbone", "neck", "fpn", "rpn", "roi_head", "mask_head"}
    shapes = {path: x.shape for path, x in flatten_dict(params, sep="/").items()}
    channels = create_detector(name, 7, **options).neck.channels
    assert tuple(shapes[f"fpn/lateral_{i}/kernel"] for i in range(4)) == tuple(
        (1, 1, width, 256) for width in channels
    )
    assert shapes["roi_head/classifier/kernel"] == (1024, 8)
    assert shapes["roi_head/delta/kernel"] == (1024, 28)
    assert shapes["mask_head/predictor/kernel"] == (1, 1, 256, 7)

    rules = parameter_rules(name)
    decays = flatten_dict(decay_mask(params, rules.decay), sep="/")
    layers = flatten_dict(layer_depths(params, rules.layer_of), sep="/")
    for path in shapes:
        if not path.startswith("backbone/"):
            assert decays[path] == path.endswith("/kernel"), path
            assert layers[path] == max(layers.values()), path


@pytest.mark.slow
@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_backbones_do_not_depend_on_who_reads_them(name):
    options = REPRESENTATIVES[name]
    alone = traced(create_backbone(name, **options))[1]["params"]
    for create in (create_detector, create_segmenter):
        inside = traced(create(name, **options))[1]["params"]["backbone"]
        assert jax.tree.map(jnp.shape, inside) == jax.tree.map(jnp.shape, alone)


# Table 2 of the MambaOut paper: millions of parameters and 10⁹ multiply-accumulates at 1280 x 800,
# with 1000 proposals and 100 masks.
TABLE_2 = {
    "mambaout_tiny": (43, 262, 43_132_176, 262_084_272_640),
    "mambaout_small": (65, 354, 65_075_152, 353_242_800_640),
    "mambaout_base": (100, 495, 99_704_620, 494_129_904_640),
}
# Table 3, at 2048 x 512.
TABLE_3 = {
    "mambaout_tiny": (54, 938, 54_050_636, 937_809_936_384),
    "mambaout_small": (76, 1032, 75_993_612, 1_031_156_269_056),
    "mambaout_base": (112, 1178, 112_204_136, 1_177_224_740_864),
}


@pytest.mark.parametrize(
    ("create", "shape", "name", "row"),
    [
        pytest.param(
            create, shape, name, row, id=f"{create.__name__}-{name}",
            marks=() if (create, name) == (create_detector, "mambaout_tiny") else pytest.mark.slow,
        )
        for create, shape, table in (
            (create_detector, (800, 1280, 3), TABLE_2),
            (create_segmenter, (512, 2048, 3), TABLE_3),
        )
        for name, row in table.items()
    ],
)  # fmt: skip
def test_costs_are_those_of_the_paper(create, shape, name, row):
    millions, billions, parameters, macs = row
    assert count(create(name), shape) == (parameters, macs)
    assert round(parameters / 1e6) == millions
    # Norms, a thousandth of it, are counted there and not here.
    assert billions - 0.5 - 0.001 * billions <= macs / 1e9 <= billions + 0.5


def test_options_that_only_a_classifier_reads_are_refused():
    for create in (create_detector, create_segmenter):
        with pytest.raises(TypeError, match=r"\['hidden_norm'\] are fields of the head .* leave"):
            create("mambaout_femto", hidden_norm=True)
        with pytest.raises(TypeError, match="no option 'dept'; did you mean depths"):
            create("mambaout_femto", dept=(1, 1, 1, 1))
        with pytest.raises(ValueError, match="no model is called 'mambaout_fento'; did you mean"):
            create("mambaout_fento")
        with pytest.raises(ValueError, match="dense heads take strides"):
            create("mambaout_femto", depths=(1, 1), dims=(8, 16))


def test_detector_takes_options_of_both():
    model = create_detector(
        "mambaout_femto", 7, dtype=jnp.bfloat16, drop_path=0.25, channels=8, box_hidden=16,
        proposals=30, detections=5,
    )  # fmt: skip
    assert model.backbone.drop_path == 0.25
    assert (model.num_classes, model.channels, model.box_hidden) == (7, 8, 16)
    assert (model.proposals, model.detections) == (30, 5)
    assert {part.dtype for part in (model, model.backbone, model.neck)} == {jnp.bfloat16}


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
