# SPDX-License-Identifier: Apache-2.0
"""LocalVMamba: VMamba along four paths a block, each chosen from eight, windows among them.

Paper: Huang et al., "LocalMamba: Visual State Space Model with Windowed Selective Scan", 2024,
arXiv 2403.09338. Sizes, names and directions: classification/lib/models/local_vmamba.py of
github.com/hunto/LocalMamba at 75e5d1f; the frame is that of VMamba's v0.
"""

import flax.linen as nn
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.channel_gates import NormGate
from mambaout_jax.layers.downsample import ConvNorm, PatchMerging
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.routes import directions_of
from mambaout_jax.mixers.ss2d import SS2D
from mambaout_jax.mixers.ssm import SSM_DECAY, STATE_SIZE
from mambaout_jax.models.vmamba import ENDS_NAMES, MERGING_NAMES, SS2D_NAMES
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm

# Directions of each block, as they were found by search.
TINY = (
    "h h_flip w7 w7_flip", "h_flip v_flip w2 w2_flip",
    "h_flip v_flip w2_flip w7", "h_flip v v_flip w2",
    "h h_flip v_flip w2_flip", "h_flip v_flip w2 w2_flip", "h w2_flip w7 w7_flip",
    "h h_flip v v_flip", "h v_flip w7 w7_flip", "h_flip v w2 w7_flip", "v v_flip w2 w7_flip",
    "h h_flip v_flip w2_flip", "v_flip w2_flip w7 w7_flip",
    "h_flip v_flip w2_flip w7_flip", "h_flip v w7 w7_flip",
)  # fmt: skip
SMALL = (
    "h v v_flip w7_flip", "h h_flip v w7",
    "h_flip v v_flip w7", "h_flip v w2_flip w7",
    "h_flip v w2_flip w7", "h_flip v_flip w2 w7_flip", "h_flip v v_flip w7", "h v v_flip w7",
    "h v v_flip w7", "h v v_flip w7_flip", "h h_flip v v_flip", "h v v_flip w2",
    "v v_flip w2_flip w7", "h h_flip v w2", "h_flip v v_flip w7_flip", "h h_flip v v_flip",
    "h v v_flip w7_flip", "h v v_flip w7_flip", "h h_flip v_flip w7", "h_flip v_flip w2_flip w7",
    "h_flip v v_flip w7_flip", "v v_flip w7 w7_flip", "h v v_flip w7_flip", "h_flip v v_flip w2",
    "h v v_flip w2_flip", "h h_flip v w7", "h h_flip w7 w7_flip", "h v_flip w2 w2_flip",
    "h v_flip w2 w7", "h v v_flip w7_flip", "h_flip v w2_flip w7",
    "h_flip v_flip w7 w7_flip", "h v w7 w7_flip",
)  # fmt: skip


class LocalVMambaBlock(nn.Module):
    """x + ss2d(norm1(x)), the results of the paths weighed by their channels before they are added.

    Attributes:
        directions: names of the paths, see `mixers.routes.DIRECTIONS`.
        state_size, scan_implementation: see `SS2D`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    directions: str
    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(EPSILON, dtype=dtype, name="norm1")(x)
        y = SS2D(
            directions_of(self.directions),
            expand=2,
            state_size=self.state_size,
            scan_implementation=self.scan_implementation,
            gated=True,
            dtype=dtype,
            weigh=NormGate(dtype=dtype, name="gate"),
            name="ss2d",
        )(y)
        return x + DropPath(self.drop_path, name="drop_path1")(y, train)


class LocalVMamba(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        directions: for each block the names of its paths, see `mixers.routes.DIRECTIONS`.
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
    """

    directions: tuple[str, ...]
    state_size: int = STATE_SIZE
    scan_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps of all stages.

        Raises:
            ValueError: there are not as many `directions` as blocks, or a field has a value that is
                not allowed.
        """
        if len(self.directions) != sum(self.depths):
            raise ValueError(
                f"directions={self.directions} must be given for each of the {sum(self.depths)} "
                f"blocks; they are {len(self.directions)}"
            )
        block = self.block_class(LocalVMambaBlock)
        norm = {"epsilon": EPSILON, "dtype": self.layer_dtype}
        directions = iter(self.directions)
        maps = []
        x = ConvNorm(self.dims[0], 4, 4, **norm, name="patch_embed")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = PatchMerging(self.dims[i], **norm, name=f"merging_{i}")(x)
            for j, rate in enumerate(rates):
                options = (self.state_size, self.scan_implementation, rate, self.layer_dtype)
                name = f"stage_{i}_block_{j:02d}"
                x = block(next(directions), *options, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = LocalVMamba
HEAD = PooledHead

# fmt: off
_HEAD = {"norm_first": True, "epsilon": EPSILON}

VARIANTS = {
    "local_vmamba_tiny": Variant(
        {"depths": (2, 2, 9, 2), "dims": (96, 192, 384, 768), "directions": TINY},
        _HEAD, 25_527_160, 5_613_717_504, 0.2, top1=82.7),
    "local_vmamba_small": Variant(
        {"depths": (2, 2, 27, 2), "dims": (96, 192, 384, 768), "directions": SMALL},
        _HEAD, 49_748_536, 11_203_000_320, 0.2, top1=83.7),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY)

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_GATE = r"layers.\1.blocks.\2.op.multi_scan.attn"
TORCH_NAMES = {
    "official": (
        *ENDS_NAMES,
        *MERGING_NAMES,
        *SS2D_NAMES,
        (rf"{_BLOCK}/gate/norm", rf"{_GATE}.norm"),
        (rf"{_BLOCK}/gate/reduce", rf"{_GATE}.global_reduce"),
        (rf"{_BLOCK}/gate/expand", rf"{_GATE}.channel_select"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
