# SPDX-License-Identifier: Apache-2.0
"""Normalisation, mixing and erasing: each pixel against its definition, each draw against its law.

The draws are recovered from what comes out: the weight of an example from its target, the method
from its pixels, the rectangle from where the pixels changed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from ml_collections import FrozenConfigDict
from support.small_steps import task_of

from mambaout_jax.config import IMAGENET_MEAN, IMAGENET_STD, default_config
from mambaout_jax.tasks.augment import erase, mix, normalise

# LLVM would take most of the tests' time to optimise programs that run for milliseconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def mixing(mixup_alpha=0.0, cutmix_alpha=0.0, **values):
    config = default_config().augment
    config.update(mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, **values)
    return config


def mix_pairs(key, count, size, config):
    """Mixes black images, each with a white one: weights (count,) and the shares of white."""
    images = jnp.zeros((count, 2, *size, 1)).at[:, 1].set(1.0).reshape(2 * count, *size, 1)
    targets = jnp.tile(jnp.eye(2), (count, 1))
    mixed, targets = jit(functools.partial(mix, group_size=2, config=config))(
        key, images, targets, jnp.arange(2 * count)
    )
    return np.asarray(targets)[::2, 0], np.asarray(mixed)[::2, :, :, 0]


def assert_mean(sample, mean, errors=5):
    """The mean of a sample, within `errors` standard errors."""
    standard_error = np.std(sample) / np.sqrt(len(sample))
    assert abs(np.mean(sample) - mean) < errors * standard_error


def assert_rectangle(inside):
    """All of the rows and columns that hold any pixel cross in pixels."""
    np.testing.assert_array_equal(inside, np.outer(inside.any(1), inside.any(0)))
    for side in (inside.any(1), inside.any(0)):
        assert (np.diff(np.flatnonzero(side)) == 1).all()


def method_of(images, mixed, targets, group_size):
    """Checks every pixel and target of a mixed batch; the method and weight of each group."""
    found = []
    for start in range(0, len(images), group_size):
        own = np.arange(start, start + group_size)
        mirror = own[::-1]
        x, y = images[own].astype(np.float64), images[mirror].astype(np.float64)
        weight = targets[own[0], own[0]]
        blended = weight * x + (1 - weight) * y
        pasted = (mixed[own] == y) & (x != y)  # (group_size, H, W, C)
        inside = pasted[0, :, :, 0]
        if np.allclose(mixed[own], blended, rtol=0, atol=1e-6):
            found.append(("blend" if weight < 1 else "none", weight))
        else:
            np.testing.assert_array_equal(
                mixed[own], np.where(inside[None, :, :, None], images[mirror], images[own])
            )
            assert_rectangle(inside)
            assert weight == pytest.approx(1 - inside.mean(), abs=1e-6)
            found.append(("paste", weight))
        expected = np.zeros((group_size, len(images)))
        expected[np.arange(group_size), own] += weight
        expected[np.arange(group_size), mirror] += 1 - weight
        np.testing.assert_allclose(targets[own], expected, rtol=0, atol=1e-6)
    return found


def test_normalise_is_the_formula(rng):
    images = rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    images[0, :, :16] = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    out = normalise(jnp.asarray(images), IMAGENET_MEAN, IMAGENET_STD)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, normalised(images), rtol=0, atol=6e-7)


@pytest.mark.parametrize(
    ("config", "group_size", "methods"),
    [
        (mixing(mixup_alpha=0.8), 5, {"blend"}),
        (mixing(cutmix_alpha=1.0), 3, {"paste"}),
        (mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mix_probability=0.7), 6, {"blend", "paste"}),
    ],
)
def test_mix_blends_or_pastes_each_example_with_its_mirror(rng, config, group_size, methods):
    images = rng.standard_normal((30, 17, 22, 3), np.float32)
    step = jit(functools.partial(mix, group_size=group_size, config=config))
    found = []
    for seed in range(6):
        mixed, targets = step(jax.random.key(seed), images, jnp.eye(30), jnp.arange(30))
        # In an odd group the example in the middle is its own mirror.
        found += method_of(images, np.asarray(mixed), np.asarray(targets), group_size)
    assert {method for method, _ in found} - {"none"} == methods
    weights = [weight for method, weight in found if method != "none"]
    assert len(set(weights)) > 0.5 * len(weights)  # a draw per group and key


@pytest.mark.parametrize("alpha", [0.4, 1.5])
def test_mixup_weights_follow_the_beta_distribution(alpha):
    count = 4096
    weights, shares = mix_pairs(jax.random.key(1), count, (1, 1), mixing(mixup_alpha=alpha))
    np.testing.assert_allclose(shares[:, 0, 0], 1 - weights, atol=1e-6)
    assert_mean(weights, 1 / 2)
    assert_mean((weights - 0.5) ** 2, 1 / (4 * (2 * alpha + 1)))
    assert scipy.stats.kstest(weights, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(weights[1:], weights[:-1])[0, 1]) < 5 / np.sqrt(count)


def test_mix_draws_its_methods_at_the_configured_rates():
    config = mixing(mixup_alpha=0.8, cutmix_alpha=1.0, mix_probability=0.6, cutmix_share=0.25)
    _, shares = mix_pairs(jax.random.key(2), 4096, (16, 16), config)
    uniform = np.ptp(shares, axis=(1, 2)) == 0
    blended = uniform & (shares[:, 0, 0] > 0)
    assert_mean(blended, 0.6 * 0.75)
    # Of cutmix with Beta(1, 1), sides below two pixels leave nothing to paste.
    assert_mean(~uniform, 0.6 * 0.25 * (1 - (2 / 16) ** 2))


def test_cutmix_pastes_rectangles_as_published(rng):
    """Against a loop that draws them as in the paper's appendix and in timm."""
    count, (height, width) = 4096, (8, 12)
    config = mixing(cutmix_alpha=0.7)
    weights, pasted = mix_pairs(jax.random.key(3), count, (height, width), config)
    np.testing.assert_allclose(weights, 1 - pasted.mean((1, 2)), atol=1e-6)

    expected = np.zeros((4 * count, height, width))
    for image in expected:
        share = np.sqrt(1 - rng.beta(0.7, 0.7))
        rows, columns = int(height * share) // 2, int(width * share) // 2
        row, column = rng.integers(height), rng.integers(width)
        image[max(row - rows, 0) : row + rows, max(column - columns, 0) : column + columns] = 1
    for statistic in (
        lambda x: x.mean((1, 2)),
        lambda x: x.mean((1, 2)) ** 2,
        lambda x: x.any(2).sum(1),
        lambda x: x.any(1).sum(1),
        lambda x: x[:, 0, 0],
        lambda x: x[:, 4, 11],
    ):
        got, want = statistic(pasted), statistic(expected)
        error = np.sqrt(got.var() / len(got) + want.var() / len(want))
        assert abs(got.mean() - want.mean()) < 5 * error


def erased_rectangles(count, size, probability):
    """Erases images whose pixels are near 100: the images, the results, where noise came in."""
    images = 100 + np.random.default_rng(4).random((count, *size, 3), np.float32)
    step = jit(functools.partial(erase, probability=probability))
    erased = np.asarray(step(jax.random.key(5), images, jnp.arange(count)))
    return images, erased, erased < 50


def test_erase_replaces_rectangles_by_noise():
    count, (height, width) = 1024, (12, 20)
    images, erased, inside = erased_rectangles(count, (height, width), 0.3)
    assert_mean(inside.any((1, 2, 3)), 0.3)
    np.testing.assert_array_equal(erased[~inside], images[~inside])
    for box in inside[inside.any((1, 2, 3))]:
        assert (box == box[:, :, :1]).all()
        assert_rectangle(box[:, :, 0])

    noise = erased[inside]
    assert scipy.stats.kstest(noise, scipy.stats.norm.cdf).pvalue > 1e-4
    channels = erased[inside.all(3)]  # (pixels, 3)
    limit = 5 / np.sqrt(len(channels))
    assert (np.abs(np.corrcoef(channels.T)[np.triu_indices(3, 1)]) < limit).all()
    assert abs(np.corrcoef(channels[1:, 0], channels[:-1, 0])[0, 1]) < limit
    assert len(np.unique(noise)) > 0.99 * len(noise)  # no two images share theirs


def test_erased_rectangles_are_drawn_as_published(rng):
    """Against a loop that draws them as in Algorithm 1 of the paper, with timm's ranges."""
    height, width = 10, 24
    _, _, inside = erased_rectangles(2048, (height, width), 1.0)
    boxes = [inside[..., 0].any(axis) for axis in (2, 1)]
    got = np.stack([box.sum(1) for box in boxes] + [box.argmax(1) for box in boxes], axis=1)

    want = np.zeros((8192, 4))
    for row in want:
        for _ in range(10):
            area = height * width * rng.uniform(0.02, 1 / 3)
            ratio = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3)))
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if h < height and w < width:
                row[:] = h, w, rng.integers(height - h + 1), rng.integers(width - w + 1)
                break
    assert got[:, 0].max() < height
    assert got[:, 1].max() < width
    areas = got[:, 0] * got[:, 1]
    assert areas.min() >= 0.02 * height * width / 2  # sides are rounded
    assert areas.max() <= height * width / 3 * 1.2
    for i in range(4):
        error = np.sqrt(got[:, i].var() / len(got) + want[:, i].var() / len(want))
        assert abs(got[:, i].mean() - want[:, i].mean()) < 5 * error
        assert scipy.stats.ks_2samp(got[:, i], want[:, i]).pvalue > 1e-4


@pytest.fixture
def config():
    config = default_config()
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.loss.label_smoothing = 0.1
    config.augment.update(mixup_alpha=0.8, cutmix_alpha=1.0, mix_group_size=4)
    config.augment.erase_probability = 0.5
    return config


@pytest.fixture
def batch(rng):
    return {
        "image": rng.integers(0, 256, (32, 8, 6, 3), dtype=np.uint8),
        "label": np.arange(32, dtype=np.int32) % 5,
        "position": np.arange(32, dtype=np.int32),
    }


@functools.cache
def program(config, **options):
    """Compiled once for all tests of the same settings."""
    return jit(lambda key, batch: task_of(config, 5).prepare(batch, key), **options)


def augmenter(config, **options):
    step = program(FrozenConfigDict(config), **options)
    return lambda batch, key=0: jax.device_get(step(jax.random.key(key), batch))


def normalised(images):
    return (images / 255 - np.asarray(IMAGENET_MEAN)) / np.asarray(IMAGENET_STD)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-6)


def test_augment_with_everything_off_normalises_and_smooths(batch):
    config = default_config()
    config.augment.mixup_alpha, config.augment.mix_probability = 0.8, 0.0
    out = augmenter(config)(batch)
    assert out.keys() == {"image", "target"}
    np.testing.assert_allclose(out["image"], normalised(batch["image"]), rtol=0, atol=6e-7)
    np.testing.assert_allclose(out["target"], 0.9 * np.eye(5)[batch["label"]] + 0.02, atol=1e-6)


def test_augment_mixes_smoothed_targets_and_erases_last(batch, config):
    config.augment.cutmix_alpha = 0.0
    out = augmenter(config)(batch)
    config.augment.erase_probability = 0.0
    mixed = augmenter(config)(batch)
    config.augment.update(erase_probability=0.5, mix_probability=0.0)
    erased = augmenter(config)(batch)

    # Noise comes in on top of the mixture, so that no noise is ever mixed.
    inside = np.abs(erased["image"] - normalised(batch["image"])) > 1e-6
    assert 0.3 < inside.any((1, 2, 3)).mean() < 0.7
    assert_same(
        out,
        {"image": np.where(inside, erased["image"], mixed["image"]), "target": mixed["target"]},
    )
    own = 0.9 * np.eye(5)[batch["label"]] + 0.02
    mirror = own.reshape(8, 4, 5)[:, ::-1].reshape(32, 5)
    delta = own - mirror
    i = np.abs(delta).argmax(1)
    rows = np.arange(32)
    weight = ((mixed["target"] - mirror)[rows, i] / delta[rows, i])[:, None]
    np.testing.assert_allclose(mixed["target"], weight * own + (1 - weight) * mirror, atol=1e-6)
    assert ((weight > -1e-6) & (weight < 1 + 1e-6)).all()


def test_augment_draws_by_position_in_the_global_batch(batch, config):
    augment = augmenter(config)
    whole = augment(batch)
    halves = [
        augment({name: x[part] for name, x in batch.items()})
        for part in (slice(0, 16), slice(16, 32))
    ]
    assert_same({name: np.concatenate([half[name] for half in halves]) for name in whole}, whole)
    other = augment(batch, key=1)
    assert np.abs(other["image"] - whole["image"]).max() > 0.1
    assert np.abs(other["target"] - whole["target"]).max() > 0.1


def test_augment_is_the_same_on_eight_devices(batch, config):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    sharded = augmenter(config, in_shardings=(None, split), out_shardings=split)
    assert_same(sharded(batch), augmenter(config)(batch))


def test_group_size_zero_mixes_the_whole_batch(batch, config):
    config.augment.update(mix_group_size=0, erase_probability=0.0, cutmix_alpha=0.0)
    config.loss.label_smoothing = 0.0
    batch["label"] = np.arange(32, dtype=np.int32)
    images = normalise(jnp.asarray(batch["image"]), config.data.mean, config.data.std)
    out = jit(task_of(config, 32).prepare)(batch, jax.random.key(7))
    ((method, weight),) = method_of(
        np.asarray(images), np.asarray(out["image"]), np.asarray(out["target"]), 32
    )
    assert method == "blend"
    assert 0 < weight < 1


def test_groups_of_interleaved_micro_batches_draw_apart(rng):
    """A micro-batch takes a share of every device, so its groups start anywhere in the batch."""
    images = rng.standard_normal((32, 2, 2, 1), np.float32)
    step = jit(functools.partial(mix, group_size=8, config=mixing(mixup_alpha=0.8)))
    weights = []
    for micro in range(4):  # of eight devices with four examples each
        position = (4 * np.arange(8) + micro).astype(np.int32)
        _, targets = step(jax.random.key(0), images[position], jnp.eye(8), position)
        weights.append(float(targets[0, 0]))
    assert len(set(weights)) == 4


# On timm's draws.


def test_erasing_before_mixing_mixes_the_noise(batch, config):
    config.augment.cutmix_alpha = 0.0
    config.augment.erase_after_mixing = False
    out = augmenter(config)(batch)
    config.augment.erase_after_mixing = True  # which is nothing to either alone
    config.augment.mix_probability = 0.0
    erased = augmenter(config)(batch)["image"].reshape(8, 4, 8, 6, 3)
    config.augment.update(mix_probability=1.0, erase_probability=0.0)
    mixed = augmenter(config)(batch)["image"].reshape(8, 4, 8, 6, 3)

    images = normalised(batch["image"]).reshape(8, 4, 8, 6, 3)
    delta, change = images - images[:, ::-1], mixed - images[:, ::-1]
    weight = (change * delta).sum((1, 2, 3, 4), keepdims=True)  # change = weight * delta
    weight /= (delta**2).sum((1, 2, 3, 4), keepdims=True)
    want = weight * erased + (1 - weight) * erased[:, ::-1]
    assert np.abs(erased - images).max() > 1
    np.testing.assert_allclose(out["image"].reshape(want.shape), want, rtol=0, atol=1e-5)
