# SPDX-License-Identifier: Apache-2.0
"""Augmentation of whole batches on the device, inside jit.

Normalised images are mixed (mixup or cutmix), then partly erased; a setting puts erasing first. All
draws are keyed by positions in the global batch, so that
splitting a batch over devices or, between groups that mix, into micro-batches changes nothing.

What is drawn and what is done with it are functions apart; on the same draws the latter give what
timm's `Mixup` and `RandomErasing` do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mambaout_jax.config import Config

# Random erasing (Zhong et al. 2020) with timm's defaults: area and shape of the rectangle.
_ERASE_AREA = (0.02, 1 / 3)
_ERASE_RATIO = (0.3, 1 / 0.3)
_ERASE_TRIES = 10

Box = tuple[Float[Array, "2"], Float[Array, "2"]]  # first corner and end, (row, column)


def normalise(
    images: UInt8[Array, "B H W C"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "B H W C"]:
    """float32 images: (pixel / 255 - mean) / std, per channel."""
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    offset = jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] - offset[None, None, None]


def augment_batch(
    key: Key[Array, ""],
    images: Float[Array, "B H W C"],
    targets: Float[Array, "B num_classes"],
    position: Int[Array, "B"],
    config: Config,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B num_classes"]]:
    """Mixes and erases as the config says.

    Args:
        key: random key of this update.
        images: normalised.
        targets: soft targets, mixed like the images.
        position: place of each example in the global batch.
        config: the section `augment`.
    """
    mix_key, erase_key = jax.random.split(key)

    def erased(images):
        if not config.erase_probability:
            return images
        return erase(erase_key, images, position, config.erase_probability)

    if not config.erase_after_mixing:
        images = erased(images)
    if (config.mixup_alpha or config.cutmix_alpha) and config.mix_probability:
        group_size = config.mix_group_size or images.shape[0]
        images, targets = mix(mix_key, images, targets, position, group_size, config)
    if config.erase_after_mixing:
        images = erased(images)
    return images, targets


def mix(
    key: Key[Array, ""],
    images: Float[Array, "B H W C"],
    targets: Float[Array, "B num_classes"],
    position: Int[Array, "B"],
    group_size: int,
    config: Config,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B num_classes"]]:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019) of each example with its mirror.

    Every group of `group_size` neighbours draws one method and one weight, as timm's "batch" mode
    does for a whole batch; example i of a group is mixed with example group_size - 1 - i.

    Args:
        config: the section `augment`.
    """
    groups = images.shape[0] // group_size

    def mix_group(images, targets, position):
        # No two groups share a first position, also where micro-batches interleave in the batch.
        draws = _draw_mixing(jax.random.fold_in(key, position[0]), images.shape[1:3], config)
        return mix_with_mirror(images, targets, *draws)

    grouped = [x.reshape(groups, group_size, *x.shape[1:]) for x in (images, targets, position)]
    mixed_images, mixed_targets = jax.vmap(mix_group)(*grouped)
    return mixed_images.reshape(images.shape), mixed_targets.reshape(targets.shape)


def mix_with_mirror(
    images: Float[Array, "B H W C"],
    targets: Float[Array, "B num_classes"],
    use_cutmix: Bool[Array, ""],
    weight: Float[Array, ""],
    box: Box,
) -> tuple[Float[Array, "B H W C"], Float[Array, "B num_classes"]]:
    """Mixes example i of a group with example B - 1 - i.

    Args:
        use_cutmix: paste the other image's `box`, else blend the images.
        weight: weight of an example itself, as drawn. With cutmix it becomes the share of its image
            that is truly left, as the border may have cut the box.
        box: first corner and end, (row, column).
    """
    inside = _rectangle((images.shape[1], images.shape[2]), *box)
    weight = jnp.where(use_cutmix, 1 - inside.mean(), weight)
    other = images[::-1]
    pasted = jnp.where(inside[None, :, :, None], other, images)
    blended = weight * images + (1 - weight) * other
    mixed_targets = weight * targets + (1 - weight) * targets[::-1]
    return jnp.where(use_cutmix, pasted, blended), mixed_targets


def cutmix_box(size: tuple[int, int], weight: Float[Array, ""], centre: Float[Array, "2"]) -> Box:
    """The rectangle with (1 - weight) of the image's area around a centre, cut at the border.

    Half a side is rounded down, as in the paper and in the timm (0.6) of MambaOut; later versions
    of timm keep the last row and column of odd sides.

    Args:
        size: H and W of the image in pixels.
        weight: share of the image into which the box is pasted.
        centre: row and column.
    """
    sides = jnp.asarray(size, jnp.float32)
    half = jnp.floor(sides * jnp.sqrt(1 - weight)) // 2
    return jnp.maximum(centre - half, 0), jnp.minimum(centre + half, sides)


def _draw_mixing(
    key: Key[Array, ""], size: tuple[int, int], config: Config
) -> tuple[Bool[Array, ""], Float[Array, ""], Box]:
    """Whether to cut, the weight of an example itself, and the box that comes from the other."""
    keys = jax.random.split(key, 5)
    if config.mixup_alpha and config.cutmix_alpha:
        use_cutmix = jax.random.bernoulli(keys[0], config.cutmix_share)
    else:
        use_cutmix = jnp.asarray(bool(config.cutmix_alpha))
    alpha = jnp.where(use_cutmix, config.cutmix_alpha or 1.0, config.mixup_alpha or 1.0)
    weight = jax.random.beta(keys[1], alpha, alpha)
    weight = jnp.where(jax.random.bernoulli(keys[2], config.mix_probability), weight, 1.0)
    centre = jnp.floor(jax.random.uniform(keys[3], (2,)) * jnp.asarray(size))
    return use_cutmix, weight, cutmix_box(size, weight, centre)


def erase(
    key: Key[Array, ""],
    images: Float[Array, "B H W C"],
    position: Int[Array, "B"],
    probability: float,
) -> Float[Array, "B H W C"]:
    """Replaces a random rectangle of some images by normal noise, one draw per pixel."""

    def erase_one(image, position):
        chosen_key, box_key, noise_key = jax.random.split(jax.random.fold_in(key, position), 3)
        low, high = _draw_rectangle(box_key, image.shape[:2])
        inside = _rectangle(image.shape[:2], low, high)
        inside &= jax.random.bernoulli(chosen_key, probability)
        noise = jax.random.normal(noise_key, image.shape, image.dtype)
        return jnp.where(inside[:, :, None], noise, image)

    return jax.vmap(erase_one)(images, position)


def _draw_rectangle(key: Key[Array, ""], size: tuple[int, int]) -> Box:
    area_key, ratio_key, corner_key = jax.random.split(key, 3)
    tries = (_ERASE_TRIES,)
    area = jax.random.uniform(area_key, tries, minval=_ERASE_AREA[0], maxval=_ERASE_AREA[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, tries, minval=jnp.log(_ERASE_RATIO[0]),
                                       maxval=jnp.log(_ERASE_RATIO[1])))  # fmt: skip
    return erase_box(size, area, ratio, jax.random.uniform(corner_key, (2,)))


def erase_box(
    size: tuple[int, int],
    area: Float[Array, "tries"],
    ratio: Float[Array, "tries"],
    corner: Float[Array, "2"],
) -> Box:
    """The first rectangle that is smaller than the image, else an empty one.

    Args:
        size: H and W of the image in pixels.
        area: share of the image.
        ratio: height over width.
        corner: place of the first corner among those that fit, row and column in [0, 1).
    """
    limits = jnp.asarray([size], jnp.float32)
    area = limits.prod() * area
    sides = jnp.round(jnp.stack((jnp.sqrt(area * ratio), jnp.sqrt(area / ratio)), axis=-1))
    fits = jnp.all(sides < limits, axis=-1)  # (tries,)
    side = jnp.where(fits.any(), sides[jnp.argmax(fits)], 0.0)  # (2,)
    low = jnp.floor(corner * (limits[0] - side + 1))
    return low, low + side


def _rectangle(size: tuple[int, int], low: Array, high: Array) -> Bool[Array, "H W"]:
    """True from corner `low` to before corner `high`."""
    rows, columns = jnp.arange(size[0]), jnp.arange(size[1])
    return ((rows >= low[0]) & (rows < high[0]))[:, None] & (
        (columns >= low[1]) & (columns < high[1])
    )[None, :]
