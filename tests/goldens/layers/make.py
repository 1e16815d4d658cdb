# SPDX-License-Identifier: Apache-2.0
"""Writes the layer of every parameter of mambaout_femto as timm's layer decay counts them.

    python tests/goldens/layers/make.py

Needs PyTorch and timm (1.0.31 made the file that is here).
"""

import json
from pathlib import Path

import timm
from timm.models import group_parameters

NAME = "mambaout_femto"

if __name__ == "__main__":
    model = timm.create_model(NAME)
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    text = json.dumps(layers, indent=0, sort_keys=True)
    (Path(__file__).parent / f"{NAME}.json").write_text(text + "\n")
