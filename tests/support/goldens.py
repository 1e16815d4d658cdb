# SPDX-License-Identifier: Apache-2.0
"""Reads what a reference implementation computed (see goldens/fill.py)."""

import json
import re

import numpy as np
from goldens.fill import value_of
from support.places import GOLDENS

NOT_MODELS = ("dense", "mamba", "recipe")
MODELS = [path for path in sorted(GOLDENS.glob("*/*.npz")) if path.parent.name not in NOT_MODELS]


def model_of(path):
    """The model of a golden; some endings of its name say how it was made."""
    return re.sub(r"_(official|f64|256)$", "", path.stem)


def logit_error(logits, expected):
    """The largest difference, in standard deviations of what the reference computed."""
    return float(np.abs(np.asarray(logits) - expected).max() / expected.std())


def load(path):
    """The arrays of a golden, its notes, and the state dict that it was computed with."""
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    state_dict = {
        name: value_of(name, tuple(shape), meta["seed"])
        for name, shape in (*meta["params"], *meta.get("buffers", ()))
    }
    if path.stem.endswith("_kqv025"):  # its "source" says so
        for name in state_dict:
            if ".kqv." in name:
                state_dict[name] *= np.float32(0.25)
    return arrays, meta, state_dict
