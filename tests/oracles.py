# SPDX-License-Identifier: Apache-2.0
"""Plain float64 numpy versions of what the package computes, for tests to compare with.

They are written from the definitions, as loops, and share nothing with the package.
"""

import numpy as np


def depthwise_conv(x, kernel):
    """y[b, h, w, c] = Σ_ij kernel[i, j, c] x[b, h + i - KH // 2, w + j - KW // 2, c]."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    y = np.zeros_like(x)
    for i, j, to, at in _taps(x.shape, kernel.shape):
        y[to] += kernel[i, j] * x[at]
    return y


def depthwise_conv_gradients(x, kernel, dy):
    """Gradients of Σ dy · depthwise_conv(x, kernel) with respect to x and kernel."""
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
    for i, j, to, at in _taps(x.shape, kernel.shape):
        dx[at] += kernel[i, j] * dy[to]
        dkernel[i, j] = (dy[to] * x[at]).sum(axis=(0, 1, 2))
    return dx, dkernel


def _taps(x_shape, kernel_shape):
    """Per tap that meets the map: its indices, and the regions of y and x which it connects."""
    (_, height, width, _), (kernel_height, kernel_width, _) = x_shape, kernel_shape
    for i in range(kernel_height):
        for j in range(kernel_width):
            down, right = i - kernel_height // 2, j - kernel_width // 2
            if abs(down) < height and abs(right) < width:
                rows, columns = _overlap(height, down), _overlap(width, right)
                to = (slice(None), rows[0], columns[0])
                yield i, j, to, (slice(None), rows[1], columns[1])


def _overlap(size, offset):
    """Slices of the positions p and p + offset which both lie in [0, size)."""
    start, stop = max(0, -offset), min(size, size - offset)
    return slice(start, stop), slice(start + offset, stop + offset)
