# SPDX-License-Identifier: Apache-2.0
"""Writes the files next to it with PyTorch itself: `python tests/goldens/torch_files/make.py`.

Made with torch 2.14; the tests read them without it and know what is in them.
"""

import argparse
import sys
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1]))

from goldens.fill import value_of  # noqa: E402

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")

# Tensors of mambaout_tiny with depths (1, 1), dims (8, 16) and 3 classes, in the official naming.
SHAPES = {
    "downsample_layers.0.conv1.weight": (4, 3, 3, 3),
    "downsample_layers.0.conv1.bias": (4,),
    "downsample_layers.0.norm1.weight": (4,),
    "downsample_layers.0.norm1.bias": (4,),
    "downsample_layers.0.conv2.weight": (8, 4, 3, 3),
    "downsample_layers.0.conv2.bias": (8,),
    "downsample_layers.0.norm2.weight": (8,),
    "downsample_layers.0.norm2.bias": (8,),
    "downsample_layers.1.conv.weight": (16, 8, 3, 3),
    "downsample_layers.1.conv.bias": (16,),
    "downsample_layers.1.norm.weight": (16,),
    "downsample_layers.1.norm.bias": (16,),
    **{
        f"stages.{i}.0.{leaf}": shape
        for i, (dim, hidden) in enumerate(((8, 21), (16, 42)))
        for leaf, shape in {
            "norm.weight": (dim,),
            "norm.bias": (dim,),
            "fc1.weight": (2 * hidden, dim),
            "fc1.bias": (2 * hidden,),
            "conv.weight": (dim, 1, 7, 7),
            "conv.bias": (dim,),
            "fc2.weight": (dim, hidden),
            "fc2.bias": (dim,),
        }.items()
    },
    "norm.weight": (16,),
    "norm.bias": (16,),
    "head.fc1.weight": (64, 16),
    "head.fc1.bias": (64,),
    "head.norm.weight": (64,),
    "head.norm.bias": (64,),
    "head.fc2.weight": (3, 64),
    "head.fc2.bias": (3,),
}


def state_dict(seed=0):
    return OrderedDict(
        (name, torch.from_numpy(value_of(name, shape, seed))) for name, shape in SHAPES.items()
    )


def main():
    ramp = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 4
    arrays = {dtype: ramp.to(getattr(torch, dtype)) for dtype in DTYPES}
    torch.save({**arrays, "bool": ramp > 1}, HERE / "dtypes.pth")

    views = {
        "whole": ramp,
        "transposed": ramp.T,
        "columns": ramp[:, 1::2],
        "expanded": ramp[0, 3].expand(2, 2),
        "scalar": ramp[2, 3],
        "empty": ramp[:0],
        "size": ramp.size(),
    }
    torch.save(views, HERE / "views.pth")

    model = torch.nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(ramp)
    optimizer = torch.optim.AdamW(model.parameters())
    model(ramp).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.weight.copy_(ramp)
    checkpoint = {
        "epoch": 3,
        "arch": "linear",
        "model": model.state_dict(),  # an OrderedDict with an attribute
        "parameter": model.weight,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.004, model="linear", betas=(0.9, 0.999)),
    }
    torch.save(checkpoint, HERE / "checkpoint.pth")

    torch.save({"w": ramp}, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(state_dict(), HERE / "mambaout_tiny.pth")
    both = {"state_dict": state_dict(), "state_dict_ema": state_dict(1), "epoch": 3}
    torch.save({**both, "args": argparse.Namespace(lr=0.004)}, HERE / "with_average.pth")


if __name__ == "__main__":
    main()
