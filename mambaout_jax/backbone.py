# SPDX-License-Identifier: Apache-2.0
"""The contract between model families and what uses them: images in, stage maps out.

A family's backbone is a `Backbone`: it says how many `channels` and which `strides` its maps have
and computes them in `forward`. Its parameters never depend on who consumes the maps: norms of a
consumer live with the consumer. A classifier is a backbone and a head, hence ``{"backbone": ...,
"head": ...}``, and moving a backbone to another task means taking one key (`subtree`).
"""

import contextlib
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.kernels.dispatch import plain_implementations
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import normal_init, uniform_fan_in_init
from mambaout_jax.layers.positions import height_and_width, patch_grid, resize_positions
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.residual import drop_path_rates


class Features(NamedTuple):
    """What a backbone makes of a batch of images.

    Attributes:
        maps: one (B, H, W, C) array per stage, finest first.
        token: (B, C) class token, None for families without one.
    """

    maps: tuple[Float[Array, "B _ _ _"], ...]
    token: Float[Array, "B C"] | None = None


class Variant(NamedTuple):
    """One row of a family's table of sizes.

    Attributes:
        backbone: fields of the family's backbone, and of its block options.
        head: fields of the family's head.
        parameters: number of parameters with 1000 classes.
        macs: multiply-accumulates of one image of 224 pixels, with 1000 classes.
        drop_path: rate of the last block in the published training, 0 where none is published.
        image_size: side in pixels that the published weights were trained at.
        hand_macs: `macs` by the formula "hand" of `analysis.cost`, where the published figure is
            counted so; 0 elsewhere.
        top1: published accuracy in percent on ImageNet-1k's validation set, at `image_size`, after
            training on ImageNet-1k alone: that of Table 1 of the MambaOut paper and, for Kobe, of
            the README of its code; 0 where neither has the model.
    """

    backbone: Mapping[str, Any]
    head: Mapping[str, Any]
    parameters: int
    macs: int
    drop_path: float = 0.0
    image_size: int = 224
    hand_macs: int = 0
    top1: float = 0.0


class Backbone(nn.Module, kw_only=True):
    """Images (B, H, W, in_chans) to stage maps. A family's backbone derives from it.

    It adds its own fields, the properties `channels` and `strides` (one entry per map, known before
    initialisation) and the compact method `forward`. One with a table of absolute positions is
    `Positioned` and calls the table `pos_embed`.

    Attributes:
        in_chans: image channels.
        drop_path: rate of the last block; linear over the depth from 0.
        remat: recompute each block in the backward pass instead of keeping its activations.
        plain: compute with the plain implementations everywhere, which differentiate in forward
            mode and any number of times; the results are the same up to rounding.
        dtype: dtype of the computation; float32 means at least float32.
    """

    in_chans: int = 3
    drop_path: float = 0.0
    remat: bool = False
    plain: bool = False
    dtype: Dtype = jnp.float32

    def features(self, images: Float[ArrayLike, "B H W I"], train: bool = False) -> Features:
        """Maps of all stages, finest first, and the class token where there is one.

        Raises:
            ValueError: the images have another number of channels than `in_chans`, or they or the
                parameters are spread over a mesh with Explicit axes.
        """
        _check_mesh((images, self.variables))
        shape = jnp.shape(images)
        if shape[-1] != self.in_chans:
            raise ValueError(
                f"the images have shape {shape} (B, H, W, C), but the model was made for "
                f"{self.in_chans} channels; pass in_chans={shape[-1]} to create_model, or "
                "transpose the images to channels last"
            )
        with self.implementations():
            return self.forward(images, train)

    def __call__(
        self, images: Float[ArrayLike, "B H W I"], train: bool = False
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        return self.features(images, train).maps

    @nn.nowrap
    def implementations(self) -> contextlib.AbstractContextManager[None]:
        """Inside it, while a program is traced, operations are plain where `plain` says so."""
        return plain_implementations() if self.plain else contextlib.nullcontext()

    @nn.nowrap
    def block_class(self, block: type[nn.Module]) -> type[nn.Module]:
        """`block`, called with (x, train); with `remat` recomputed in the backward pass."""
        return nn.remat(block, static_argnums=(2,)) if self.remat else block

    @property
    def layer_dtype(self) -> Dtype | None:
        """The `dtype` argument of the layers."""
        return compute_dtype(self.dtype)


def _check_mesh(arrays: Any) -> None:
    """Raises ValueError where XLA is not to choose the layout of what is computed from arrays."""
    for array in jax.tree.leaves(arrays):
        sharding = jax.typeof(array).sharding
        used = {axis for axes in sharding.spec if axes for axis in jax.tree.leaves(axes)}
        explicit = sorted(used & set(sharding.mesh.explicit_axes))
        if explicit:
            raise ValueError(
                f"an array of shape {array.shape} is spread over {explicit} of a mesh whose axes "
                "are Explicit, and models run on Auto axes only: make the mesh with jax.make_mesh("
                "shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names)), or call the "
                "model inside jax.shard_map"
            )


class Pyramid(Backbone):
    """A backbone of stages, each of half the resolution of the one before: maps of stride 4, 8, …

    Attributes:
        depths: blocks of each stage.
        dims: channels of each stage.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.dims)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(4 * 2**i for i in range(len(self.dims)))

    @property
    def stage_rates(self) -> list[list[float]]:
        """Drop-path rate of every block, by stage.

        Raises:
            ValueError: there are not as many depths as dims, or `drop_path` is out of range.
        """
        if len(self.depths) != len(self.dims):
            raise ValueError(
                f"depths={self.depths} and dims={self.dims} must have one entry per stage each"
            )
        return drop_path_rates(self.drop_path, self.depths)

    @nn.nowrap
    def check_words(self, field: str, words: tuple[str, ...], allowed: tuple[str, ...]) -> None:
        """Raises ValueError unless a field has an allowed word for each stage."""
        if len(words) != len(self.depths) or not set(words) <= set(allowed):
            raise ValueError(
                f"{field}={words!r} is not allowed; it must have one of "
                f"{', '.join(map(repr, allowed))} for each of the {len(self.depths)} stages"
            )


def closing_norm(stage: int, stages: int) -> str:
    """Name of the norm that closes a stage of so many: the last one is the norm of the backbone."""
    return "norm" if stage == stages - 1 else f"norm_{stage}"


class Positioned(Backbone, kw_only=True):
    """A backbone with one table of absolute positions, `pos_embed`.

    Attributes:
        image_size: side or (height, width) in pixels that the position table is made for; for
            images of another size the table is interpolated.
    """

    image_size: int | tuple[int, int] = 224

    antialias: ClassVar[bool] = False  # see `resize_positions`

    @property
    def class_token(self) -> str | None:
        """Where its position stands in the table: "first", in the "middle", or None: no token."""
        return None

    @property
    def position_stride(self) -> int:
        """Pixels from one position to the next."""
        return self.strides[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        return patch_grid(*height_and_width(self.image_size), self.position_stride)

    @nn.nowrap
    def init_positions(
        self, key: Array, shape: tuple[int, ...], dtype: Dtype
    ) -> Float[ArrayLike, "1 L C"]:
        """The position table's initial values."""
        return normal_init(key, shape, dtype)

    @nn.nowrap
    def resize_positions(
        self, table: Float[ArrayLike, "1 L C"], grid: tuple[int, int], new_grid: tuple[int, int]
    ) -> Float[ArrayLike, "1 _ C"]:
        """`layers.positions.resize_positions`, as the family's own code does it."""
        middle = self.class_token == "middle"
        return resize_positions(table, grid, new_grid, antialias=self.antialias, middle=middle)

    @nn.nowrap
    def macs(self, inputs: tuple, output: object) -> int:
        return 0  # positions and the class token are added


class Columnar(Positioned, kw_only=True):
    """A backbone of one resolution: blocks over the patches of the image, and perhaps a token.

    Attributes:
        dim: channels.
        depth: blocks.
        patch_size: side of the patches.
        out_blocks: blocks, from 0 and in rising order, whose tokens become maps; None: the last.
    """

    dim: int
    depth: int
    patch_size: int = 16
    out_blocks: tuple[int, ...] | None = None

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.dim,) * len(self.map_blocks)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch_size,) * len(self.map_blocks)

    @property
    def position_stride(self) -> int:
        return self.patch_size

    @property
    def map_blocks(self) -> tuple[int, ...]:
        """The blocks whose tokens become maps.

        Raises:
            ValueError: `out_blocks` are not blocks in rising order.
        """
        if self.out_blocks is None:
            return (self.depth - 1,)
        blocks = tuple(self.out_blocks)
        if not blocks or list(blocks) != sorted(set(blocks) & set(range(self.depth))):
            raise ValueError(
                f"out_blocks={blocks} must be blocks from 0 to {self.depth - 1}, in rising order"
            )
        return blocks

    @property
    def block_rates(self) -> list[float]:
        """Drop-path rate of every block.

        Raises:
            ValueError: `drop_path` is out of range.
        """
        return drop_path_rates(self.drop_path, (self.depth,))[0]

    def patches(self, images: Float[ArrayLike, "B H W I"]) -> Float[Array, "B L C"]:
        """Patches of images, row by row, to be called in `forward`.

        Raises:
            ValueError: the patches do not fill the images.
        """
        init = uniform_fan_in_init(self.patch_size**2 * self.in_chans)
        patches = Conv(
            self.dim,
            self.patch_size,
            self.patch_size,
            dtype=self.layer_dtype,
            kernel_init=init,
            bias_init=init,
            name="patch_embed",
        )(images)
        return patches.reshape(patches.shape[0], -1, self.dim)

    def with_positions(
        self, patches: Float[Array, "B L C"], size: tuple[int, int]
    ) -> Float[Array, "B _ C"]:
        """Adds the class token, where there is one, and then the positions; called in `forward`.

        Args:
            patches: those of a map, row by row.
            size: (H, W) of the map.
        """
        rows, columns = self.grid
        tokens = int(self.class_token is not None)
        shape = (1, tokens + rows * columns, self.dim)
        if tokens:
            token = self.param("cls_token", normal_init, (1, 1, self.dim), jnp.float32)
            at = patches.shape[1] // 2 if self.class_token == "middle" else 0
            token = jnp.broadcast_to(token.astype(patches.dtype), (patches.shape[0], 1, self.dim))
            patches = jnp.concatenate((patches[:, :at], token, patches[:, at:]), axis=1)
        table = self.param("pos_embed", self.init_positions, shape, jnp.float32)
        positions = self.resize_positions(table, self.grid, size)
        patches, positions = nn.dtypes.promote_dtype(patches, positions, dtype=self.layer_dtype)
        return patches + positions


class Classifier(nn.Module):
    """Backbone and head; images (B, H, W, in_chans) to logits (B, num_classes), at least float32.

    Attributes:
        backbone: maps images to `Features`.
        head: maps `Features` to logits.
    """

    backbone: Backbone
    head: nn.Module

    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[Array, "B _"]:
        """Classifies images.

        Raises:
            ValueError: as `Backbone.features`.
        """
        _check_mesh(self.variables)
        features = self.backbone.features(images, train)
        with self.backbone.implementations():
            logits = self.head(features, train)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def subtree(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The variables of one submodule: `{"params": {name: x}}` to `{"params": x}`.

    Raises:
        KeyError: no collection holds `name`.
    """
    found = {collection: tree[name] for collection, tree in variables.items() if name in tree}
    if not found:
        inside = sorted({key for tree in variables.values() for key in tree})
        raise KeyError(f"no submodule {name!r} in these variables; they hold {inside}")
    return found


# Whether parameters decay, by the first pattern found in a path: what every family shares.
# Depthwise kernels decay, as in the paper's recipe.
DECAY = ((r"/kernel$", True), (r"/(bias|scale|gamma)$", False))


def layer_of(path: str) -> tuple[float, int] | None:
    """Stage and block in which a parameter of a backbone stands, for decay of rates by layer.

    What stands before the first block is (-1, 0); a downsampling belongs to the block behind it,
    and the norm that closes a stage to what reads it, the last one to the head.
    These are the groups of timm's `param_groups_layer_decay`, for a transformer those of BEiT (Bao
    et al. 2022). A family whose parts have other names defines a `layer_of` of its own.

    Args:
        path: below the backbone, such as "stage_0_block_00/fc1/kernel".

    Returns:
        None where the name does not tell.
    """
    if re.match(r"(stem(_\w+)?|patch_embed|cls_token|pos_embed)(/|$)", path):
        return -1, 0
    if block := re.match(r"(?:stage_(\d+)_)?block_(\d+)/", path):
        return int(block[1] or 0), int(block[2])
    if downsample := re.match(r"(?:downsample|merging)_(\d+)/", path):
        return int(downsample[1]), 0
    if norm := re.match(r"norm_(\d+)/", path):
        return int(norm[1]) + 1, 0
    return (math.inf, 0) if path.startswith("norm/") else None
