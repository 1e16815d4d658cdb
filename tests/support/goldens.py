# SPDX-License-Identifier: Apache-2.0
"""Reads what a reference implementation computed (see goldens/fill.py)."""

import json

import numpy as np
from goldens.fill import value_of


def read_golden(path):
    with np.load(path) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    state_dict = {
        name: value_of(name, tuple(shape), meta["seed"]) for name, shape in meta["params"]
    }
    return arrays, meta, state_dict
