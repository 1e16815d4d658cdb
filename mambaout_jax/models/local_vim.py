# SPDX-License-Identifier: Apache-2.0
"""LocalVim: Vim along four paths a block, each chosen from eight, window by window among them.

Paper: Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", 2024,
arXiv 2403.09338. Sizes, names and directions: classification/lib/models/local_vim.py of
github.com/hunto/LocalMamba at 75e5d1f. That file defines `local_vim_small` twice: what can be
imported, with the same four directions in each block, is the model of this name; the other one,
with the directions searched for the tiny model, is `local_vim_small_searched`. Which of them made
the published weights is not known; the published accuracy stands at the first.

The multiply-accumulates that the MambaOut paper's Table 1 prints, 1.5 and 4.8 G, are those of the
formula "hand" of `analysis.cost`; "parallel" gives 2.2 and 6.3 G.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Backbone, Columnar, Features, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.channel_gates import NormGate
from mambaout_jax.layers.norms import RMSNorm
from mambaout_jax.layers.positions import patch_grid, rotate, rotation_tables
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.mamba import PathMamba
from mambaout_jax.mixers.routes import directions_of
from mambaout_jax.mixers.ssm import SSM_DECAY, STATE_SIZE
from mambaout_jax.models.vim import middle_of, without_middle
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm
_SIDE = 14  # of the map of patches at the published size, which rotations are scaled to

# Directions of each block: those of LocalVim-T's search, and the ones before it.
SEARCHED = (
    "h v_flip w7 w7_flip", "h_flip w2_flip w7 w7_flip", "h h_flip v w7", "h h_flip v v_flip",
    "h h_flip v v_flip", "h h_flip v v_flip", "h_flip v v_flip w7", "h_flip v v_flip w2_flip",
    "h h_flip v v_flip", "h h_flip v v_flip", "h v v_flip w2", "h v v_flip w2_flip",
    "h h_flip v_flip w7", "h_flip v v_flip w2", "h h_flip v v_flip", "h v w2 w2_flip",
    "v v_flip w2 w7", "h h_flip v w2", "h h_flip w2_flip w7", "v v_flip w2 w2_flip",
)  # fmt: skip
UNSEARCHED = ("h h_flip w2 w2_flip",) * 20


class LocalVimBlock(nn.Module):
    """x + mixer(norm(x)), the results of the paths weighed by their channels and added.

    Attributes:
        directions: names of the paths, see `mixers.routes.DIRECTIONS`.
        size: (H, W) of the map of patches.
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    directions: str
    size: tuple[int, int]
    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], train: bool) -> Float[Array, "B L C"]:
        y = RMSNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        y = PathMamba(
            directions_of(self.directions),
            self.size,
            state_size=self.state_size,
            implementation=self.scan_implementation,
            dtype=self.dtype,
            weigh=NormGate(dtype=self.dtype, name="gate"),
            name="mixer",
        )(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class LocalVim(Columnar):
    """Backbone of one resolution: maps of stride `patch_size`.

    Attributes:
        directions: for each block the names of its paths, see `mixers.routes.DIRECTIONS`.
        token: put a class token into the middle of the patches, and rotate nothing; else the tokens
            are rotated by their positions before each block.
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
    """

    directions: tuple[str, ...]
    token: bool = False
    state_size: int = STATE_SIZE
    scan_implementation: str = "auto"

    @property
    def class_token(self) -> str | None:
        return "middle" if self.token else None

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps after `out_blocks`, and the class token after the last block, before any norm.

        Raises:
            ValueError: the patches do not fill the images, there are not as many `directions` as
                blocks, or a field has a value that is not allowed.
        """
        if len(self.directions) != self.depth:
            raise ValueError(
                f"directions={self.directions} must be given for each of the {self.depth} blocks; "
                f"they are {len(self.directions)}"
            )
        _, height, width, _ = jnp.shape(images)
        size = patch_grid(height, width, self.patch_size)
        block = self.block_class(LocalVimBlock)
        tables = self._rotations(size)
        x = self.with_positions(self.patches(images), size)
        maps = []
        for i, rate in enumerate(self.block_rates):
            options = (size, self.state_size, self.scan_implementation, rate, self.layer_dtype)
            if not self.token:
                x = rotate(x, *tables)
            x = block(self.directions[i], *options, name=f"block_{i:02d}")(x, train)
            if i in self.map_blocks:
                patches = without_middle(x) if self.token else x
                maps.append(patches.reshape(-1, *size, self.dim))
        return Features(tuple(maps), middle_of(x) if self.token else None)

    def _rotations(self, size: tuple[int, int]) -> tuple[ArrayLike, ArrayLike]:
        """Those of the grid of positions; others are interpolated, as in LocalVim's code."""
        cosines, sines = (
            jnp.asarray(self.resize_positions(table[None], self.grid, size))[0]
            for table in rotation_tables(self.dim, self.grid, _SIDE)
        )
        return cosines, sines


class LocalVimHead(PooledHead):
    """`PooledHead`, which reads the class token alone where there is one."""

    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        if features.token is not None:
            features = Features((features.token[:, None, None],))
        return super().__call__(features, train)


BACKBONE = LocalVim
HEAD = LocalVimHead

# fmt: off
_HEAD = {"norm_first": True, "rms_norm": True, "epsilon": EPSILON}

VARIANTS = {
    "local_vim_tiny": Variant(
        {"dim": 192, "depth": 20, "directions": SEARCHED},
        _HEAD, 7_994_152, 2_139_434_496, 0.1, hand_macs=1_489_153_536, top1=76.2),
    "local_vim_tiny_middle_cls_token": Variant(
        {"dim": 192, "depth": 20, "directions": SEARCHED, "token": True},
        _HEAD, 7_994_536, 2_150_186_496, 0.1, hand_macs=1_496_587_776),
    "local_vim_small": Variant(
        {"dim": 384, "depth": 20, "directions": UNSEARCHED},
        _HEAD, 27_783_784, 6_307_863_552, 0.1, hand_macs=4_790_541_312, top1=81.2),
    "local_vim_small_searched": Variant(
        {"dim": 384, "depth": 20, "directions": SEARCHED},
        _HEAD, 27_783_784, 6_307_863_552, 0.1, hand_macs=4_790_541_312),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY, (r"/(cls_token|pos_embed)$", False))

_MIXER = r"backbone/block_0*(\d+)/mixer"
TORCH_NAMES = {
    "official": (
        (r"backbone/(cls_token|pos_embed)", r"\1"),
        (r"backbone/patch_embed", r"patch_embed.proj"),
        (r"backbone/block_0*(\d+)/norm", r"layers.\1.norm"),
        (rf"{_MIXER}/(in_proj|out_proj)", r"layers.\1.mixer.\2"),
        (r"backbone/block_0*(\d+)/gate/norm", r"layers.\1.mixer.attn.norm"),
        (r"backbone/block_0*(\d+)/gate/reduce", r"layers.\1.mixer.attn.global_reduce"),
        (r"backbone/block_0*(\d+)/gate/expand", r"layers.\1.mixer.attn.channel_select"),
        (rf"{_MIXER}/path_(\d)/conv", r"layers.\1.mixer.conv1d_\2"),
        (rf"{_MIXER}/path_(\d)/selection/(\w+)", r"layers.\1.mixer.\3_\2"),
        (r"head/norm", r"norm_f"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}


def torch_buffers(backbone: Backbone, naming: str) -> dict[str, np.ndarray]:
    """The tables that PyTorch's model saves beside its parameters: cosines and sines."""
    if backbone.class_token is not None:
        return {}
    cosines, sines = rotation_tables(backbone.dim, backbone.grid, _SIDE)
    return {"rope.freqs_cos": cosines, "rope.freqs_sin": sines}
