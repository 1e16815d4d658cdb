# SPDX-License-Identifier: Apache-2.0
"""MambaOut in JAX/Flax: does this vision task need an SSM, or is a gated convolution enough?

Letters used in every shape annotation and shape comment of the package:

    B    batch                      D    inner channels of the SSM
    H W  height and width           N    state size of the SSM
    C    channels                   R    rank of the SSM's time step
    L    tokens (H * W)             G    groups
    K    kernel side                P    paths (scan routes)

Images are NHWC. A model's parameters are ``{"backbone": ..., "head": ...}``.
"""

__version__ = "0.1.0"
