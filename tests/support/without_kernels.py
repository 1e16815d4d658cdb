# SPDX-License-Identifier: Apache-2.0
"""Detectors that are traced quickly, for tests of names, shapes and costs alone."""

import jax.numpy as jnp

from mambaout_jax.heads import mask_rcnn, roi, rpn


def leave_kernels_out(monkeypatch):
    """Nothing is traced that takes longest and depends on no parameter; what is computed is wrong.

    Args:
        monkeypatch: of the test, which takes it back.
    """

    def roi_align(maps, boxes, levels, points, strides):
        return jnp.zeros((*boxes.shape[:2], points, points, maps[0].shape[-1]), maps[0].dtype)

    def nms(boxes, scores, threshold, *, groups=None, max_outputs):
        return jnp.zeros(max_outputs, jnp.int32)

    monkeypatch.setattr(mask_rcnn, "roi_align", roi_align)
    monkeypatch.setattr(roi, "nms", nms)
    monkeypatch.setattr(rpn, "nms", nms)
