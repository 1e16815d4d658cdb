# SPDX-License-Identifier: Apache-2.0
"""Small layers that model families share, with PyTorch's numerics.

    linear       matrix products over channels        activations  functions by name
    conv         dense and depthwise convolutions     mlp          two linear layers
    norms        layer and batch normalisation        residual     layer scale, drop path
    positions    position tables and relative biases  downsample   convolutions with norms
    initializers as in PyTorch code                   precision    float32 as "at least float32"
    conv_norm    convolutions with batch norms        resize       interpolation and pooling
    mbconv       inverted residuals                   channel_gates  channels weighed by their means

`dtype` is the dtype of a layer's computation, None to promote its inputs and parameters; the
parameters themselves are float32. A layer states its multiply-accumulates in `macs`, which
`analysis.cost` adds up: for parameters whose cost nobody states, counting raises.
"""
