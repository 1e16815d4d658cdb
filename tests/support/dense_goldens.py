# SPDX-License-Identifier: Apache-2.0
"""Reads the reference outputs of detection and segmentation (see goldens/fill.py)."""

import json

import numpy as np
from goldens.fill import value_of
from support.places import GOLDENS


def load_dense(name):
    """Arrays of a golden, its notes, and the state dict that a network in it was computed with."""
    with np.load(GOLDENS / "dense" / f"{name}.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    state_dict = {key: value_of(key, tuple(shape)) for key, shape in meta.get("params", ())}
    return arrays, meta, state_dict
