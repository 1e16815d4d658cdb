# SPDX-License-Identifier: Apache-2.0
"""Loss and classes of pixels against mmseg's numbers, and crops against loops over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.dense_goldens import load_dense

from mambaout_jax.heads import pixels
from mambaout_jax.heads.pixels import Crops, cross_entropy_sums, enlarge, likeliest_classes


@pytest.fixture(scope="module")
def golden():
    arrays, _, _ = load_dense("segmentation")
    logits = jnp.asarray(arrays["logits"].transpose(0, 2, 3, 1))
    return arrays, logits


@pytest.fixture(params=["at once", "by rows"])
def blocks(request, monkeypatch):
    """All rows in one, and five at a time, which leaves some to be filled up."""
    if request.param == "by rows":
        monkeypatch.setattr(pixels, "_NUMBERS_AT_ONCE", 5 * 40 * 8)


def computed(view):
    x = np.einsum("Hh,bhwk->bHwk", view.rows, np.asarray(view.logits, np.float64))
    return np.einsum("Ww,bHwk->bHWk", view.columns, x)


def test_enlarged_logits_are_torchs(golden):
    arrays, logits = golden
    for name in ("upsampled", "resized_37x51", "resized_5x7"):
        expected = arrays[name].transpose(0, 2, 3, 1)
        found = computed(enlarge(logits, expected.shape[1:3]))
        step = -(-found.shape[-1] // expected.shape[-1])
        np.testing.assert_allclose(found[..., ::step], expected, atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_loss_and_gradient_are_those_of_mmseg(golden):
    arrays, logits = golden
    labels = jnp.asarray(arrays["seg_label"])

    def loss(logits):
        return cross_entropy_sums(logits, labels).sum() / labels.size

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    np.testing.assert_allclose(value, arrays["loss_mmseg"], rtol=1e-5)
    expected = arrays["loss_mmseg_grad"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
    valid = float(value) * labels.size / (arrays["seg_label"] != 255).sum()
    np.testing.assert_allclose(valid, arrays["loss_valid"], rtol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_likeliest_class_is_mmsegs(golden):
    arrays, logits = golden
    found, probability = jax.jit(lambda x: likeliest_classes([enlarge(x, (32, 40))]))(logits)
    np.testing.assert_array_equal(found, arrays["prediction_32x40"])
    exact = jax.nn.softmax(computed(enlarge(logits, (32, 40))), axis=-1).max(-1)
    np.testing.assert_allclose(probability, exact, atol=1e-5)


@pytest.mark.usefixtures("blocks")
def test_probabilities_of_several_views_are_averaged(rng):
    shapes = (2, 3, 4, 5), (2, 5, 6, 5)
    logits = [jnp.asarray(3 * rng.standard_normal(shape), jnp.float32) for shape in shapes]
    views = [enlarge(x, (9, 7), (13, 11)) for x in logits]
    mean = sum(np.asarray(jax.nn.softmax(computed(view), axis=-1)) for view in views)
    expected = mean.argmax(-1)
    assert (expected != computed(views[0]).argmax(-1)).any()
    found, probability = jax.jit(lambda: likeliest_classes(views))()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(probability, mean.max(-1) / 2, atol=1e-5)


def test_rows_of_logits_are_not_kept_for_the_gradient():
    """Of 64 x 64 pixels with 32 classes, the program keeps less than a quarter at a time."""
    logits = jax.ShapeDtypeStruct((1, 16, 16, 32), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, 64, 64), jnp.uint8)

    def temporary(numbers):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pixels, "_NUMBERS_AT_ONCE", numbers)
            step = jax.jit(jax.grad(lambda x, y: cross_entropy_sums(x, y).sum()))
            return step.lower(logits, labels).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4 * 64 * 32) < temporary(64 * 64 * 32) / 4


@pytest.mark.parametrize(
    ("size", "places"), [((20, 37), ((0, 4), (0, 11, 21))), ((9, 16), 2 * ((0,),))]
)
def test_crops_are_averaged_where_they_overlap(rng, size, places):
    crops = Crops.of(size, 16, 11)
    assert (crops.tops, crops.lefts) == places
    images = jnp.asarray(rng.standard_normal((2, *size, 3)), jnp.float32)
    height, width = crops.crop
    total, count = np.zeros((2, *size, 3)), np.zeros((1, *size, 1))
    for top in crops.tops:
        for left in crops.lefts:
            here = np.s_[:, top : top + height, left : left + width]
            small = images[here][:, ::4, ::4]  # stands for a model of stride 4
            total[here] += computed(enlarge(small, (height, width)))
            count[here] += 1
    mean = total / count
    small = crops.cut(images)[:, ::4, ::4]
    np.testing.assert_allclose(computed(crops.average(small)), mean, atol=1e-6)
    again = enlarge(jnp.asarray(mean, jnp.float32), (13, 29))
    found = crops.average(small, (13, 29))
    np.testing.assert_allclose(computed(found), computed(again), atol=1e-6)


def test_crops_of_mmseg():
    """512 x 683 pixels, crops of 512 every 341: as many as mmseg's formula says."""
    crops = Crops.of((512, 683), 512, 341)
    assert (crops.tops, crops.lefts) == ((0,), (0, 171))
    for width in range(500, 1800, 7):
        grids = max(width - 512 + 341 - 1, 0) // 341 + 1
        starts = [max(min(i * 341 + 512, width) - 512, 0) for i in range(grids)]
        assert Crops.of((512, width), 512, 341).lefts == tuple(starts)
