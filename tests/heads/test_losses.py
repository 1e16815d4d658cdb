# SPDX-License-Identifier: Apache-2.0
"""The five losses against loops in float64, and with their gradients against mmdet's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from goldens.fill import input_of
from support.detection_goldens import SAMPLED, load_objects, spaced_draw

from mambaout_jax.heads.losses import box_losses, detection_losses, mask_loss, rpn_losses
from mambaout_jax.heads.mask_rcnn import TORCH_NAMES, Detector
from mambaout_jax.heads.targets import SampledRegions, Samples
from mambaout_jax.models import create_detector
from mambaout_jax.weights.convert import Target, read_state, write_state


def cross_entropy(logit, target):
    """Binary, in float64."""
    return np.logaddexp(0, logit) - logit * target


@pytest.fixture
def samples(rng):
    """Of four images: usual ones, without positives, without any candidate, without negatives."""
    positive = np.zeros((4, 6), bool)
    positive[0, :2] = positive[3, :3] = True
    counted = np.arange(6)[None] < np.asarray([[6], [4], [0], [3]])
    matched = np.where(positive, rng.integers(0, 3, (4, 6)), 0)
    return Samples(rng.integers(0, 10, (4, 6)), matched, positive, counted)


def test_rpn_losses_are_divided_by_the_samples_of_the_batch(rng, samples):
    scores = rng.standard_normal((4, 10)).astype(np.float32)
    deltas, targets = (rng.standard_normal((4, n, 4)).astype(np.float32) for n in (10, 6))
    losses = rpn_losses(
        *map(jnp.asarray, (scores, deltas)),
        Samples(*map(jnp.asarray, samples)),
        jnp.asarray(targets),
    )
    entropy, distance = 0.0, 0.0
    for i, s in zip(*np.nonzero(samples.counted), strict=True):
        at = samples.index[i, s]
        entropy += cross_entropy(float(scores[i, at]), samples.positive[i, s])
        if samples.positive[i, s]:
            distance += np.abs(deltas[i, at].astype(float) - targets[i, s]).sum()
    divisor = (2 + 4) + (1 + 4) + (1 + 1) + (3 + 1)
    assert float(losses["rpn_class"]) == pytest.approx(entropy / divisor, rel=1e-5)
    assert float(losses["rpn_box"]) == pytest.approx(distance / divisor, rel=1e-5)


def regions_of(samples, rng, classes):
    labels = np.where(samples.positive, rng.integers(0, classes, (4, 6)), classes)
    labels = np.where(samples.counted, labels, -1)
    boxes, deltas = rng.standard_normal((2, 4, 6, 4)).astype(np.float32)
    return SampledRegions(*map(jnp.asarray, (boxes, labels, deltas, *samples[1:])))


def test_box_losses_are_divided_by_all_regions(rng, samples):
    regions = regions_of(samples, rng, 5)
    logits = rng.standard_normal((4, 6, 6)).astype(np.float32)
    deltas = rng.standard_normal((4, 6, 5, 4)).astype(np.float32)
    losses = box_losses(jnp.asarray(logits), jnp.asarray(deltas), regions)
    labels, targets = np.asarray(regions.labels), np.asarray(regions.deltas, np.float64)
    entropy, distance = 0.0, 0.0
    for i, s in zip(*np.nonzero(samples.counted), strict=True):
        row = logits[i, s].astype(np.float64)
        entropy += np.log(np.exp(row).sum()) - row[labels[i, s]]
        if samples.positive[i, s]:
            distance += np.abs(deltas[i, s, labels[i, s]] - targets[i, s]).sum()
    assert float(losses["class"]) == pytest.approx(entropy / 13, rel=1e-5)
    assert float(losses["box"]) == pytest.approx(distance / 13, rel=1e-5)


def test_mask_loss_is_the_mean_over_pixels_of_positives(rng, samples):
    logits = rng.standard_normal((4, 3, 4, 4)).astype(np.float32)
    targets, positive = rng.uniform(size=(4, 3, 4, 4)) < 0.4, samples.positive[:, :3]
    loss = mask_loss(*map(jnp.asarray, (logits, targets, positive)))["mask"]
    expected = cross_entropy(logits[positive].astype(np.float64), targets[positive]).mean()
    assert positive.sum() == 5
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_rows_that_do_not_count_have_no_gradient_and_none_is_no_division_by_zero(rng, samples):
    nothing = SampledRegions(*map(jnp.zeros_like, regions_of(samples, rng, 5)))
    logits, deltas, masks = (jnp.ones((4, 6, *rest)) for rest in ((6,), (5, 4), (2, 2)))
    targets = jnp.zeros((4, 6, 2, 2), bool)

    def total(logits, deltas, masks):
        losses = {
            **box_losses(logits, deltas, nothing),
            **mask_loss(masks, targets, targets[..., 0, 0]),
        }
        return sum(losses.values())

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(logits, deltas, masks)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


class Given(Detector):
    """A detector whose proposals are given."""

    def propose(self, outputs, image_shapes, train=False):
        return self.given


def heads(arrays):
    """A detector with the golden's proposals, and what is known of the variables of its heads."""
    rows = [arrays["proposals"][arrays["proposals"][:, 0] == i, 1:] for i in range(3)]
    most = max(map(len, rows))
    valid = np.arange(most)[None] < np.asarray([[len(row)] for row in rows])
    boxes = np.stack([np.pad(row, ((0, most - len(row)), (0, 0))) for row in rows])
    model = create_detector("mambaout_tiny", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    parts = ("rpn", "roi_head", "mask_head")
    inside = {path: leaf for path, leaf in flatten_dict(shapes).items() if path[1] in parts}
    target = Target("heads", inside, {"mmdet": TORCH_NAMES}, lambda naming: {})
    given = type("Given", (Given,), {"given": (jnp.asarray(boxes), jnp.asarray(valid))})
    return given(model.backbone, model.neck), target


@pytest.mark.goldens
@pytest.mark.optimised
def test_losses_and_their_gradients_are_mmdets():
    arrays, meta, state_dict, objects = load_objects()
    model, target = heads(arrays)
    params = read_state(target, state_dict)["params"]
    batch = {**objects, "image_shape": jnp.asarray(meta["image_shapes"])}
    maps = tuple(
        jnp.asarray(input_of((3, 256, *size), i).transpose(0, 2, 3, 1))
        for i, size in enumerate(meta["level_shapes"])
    )

    def total(params, maps):
        def losses_of(detector):
            return detection_losses(detector, maps, batch, spaced_draw, SAMPLED["regions"][0])

        losses = nn.apply(losses_of, model)({"params": params})
        return sum(losses.values()), losses

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)  # not jitted: the draw reads values
    (of_params, of_maps), losses = gradient(params, maps)
    ours = {"rpn_class": "rpn_cls", "rpn_box": "rpn_bbox", "class": "cls", "box": "bbox"}
    for name, value in losses.items():
        expected = meta["losses"][f"loss_{ours.get(name, name)}"]
        assert float(value) == pytest.approx(expected, rel=1e-5), name
    norms = write_state(target, {"params": of_params}, "mmdet")
    assert norms.keys() == meta["grad_norm"].keys()
    for name, expected in meta["grad_norm"].items():
        norm = np.linalg.norm(norms[name].astype(np.float64))
        assert norm == pytest.approx(expected, rel=2e-3), name
    found = [np.linalg.norm(np.asarray(gradient, np.float64)) for gradient in of_maps]
    np.testing.assert_allclose(found, meta["map_grad_norm"], rtol=2e-3)
    of_p4 = np.asarray(of_maps[2]).transpose(0, 3, 1, 2)[:, :: 256 // 8]
    assert of_p4.shape == arrays["map_grad_p4"].shape
    np.testing.assert_allclose(
        of_p4, arrays["map_grad_p4"], atol=2e-3 * np.abs(arrays["map_grad_p4"]).max()
    )
