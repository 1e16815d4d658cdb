# SPDX-License-Identifier: Apache-2.0
"""Files of small weights in PyTorch's names, and how variables are compared."""

import pickle
import zipfile

import jax
import numpy as np
import safetensors.numpy
from goldens.fill import value_of
from support.places import GOLDENS

from mambaout_jax.models import create_model
from mambaout_jax.weights.convert import model_variables, to_torch

FILES = GOLDENS / "torch_files"
MODEL = {"depths": (1, 1), "dims": (8, 16)}


def random_variables():
    """Of a mambaout_tiny with `MODEL` and three classes."""
    rng = np.random.default_rng(0)
    shapes = model_variables(create_model("mambaout_tiny", num_classes=3, **MODEL), 32)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


def logits(model, variables, images):
    return np.asarray(jax.jit(model.apply)(variables, images))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def write_torch_names(path, variables, naming="timm"):
    state = to_torch("mambaout_tiny", variables, naming=naming, num_classes=3, **MODEL)
    safetensors.numpy.save_file(state, path)
    return path


def torch_values(seed=0):
    """What tests/goldens/torch_files/make.py has put into its state dicts, as variables."""
    shapes = model_variables(create_model("mambaout_tiny", num_classes=3, **MODEL), 32)
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    state = to_torch("mambaout_tiny", empty, naming="official", num_classes=3, **MODEL)
    return {name: value_of(name, value.shape, seed) for name, value in state.items()}


_STORAGES = {"float32": "Float", "bfloat16": "BFloat16", "int64": "Long", "int8": "Char"}


def torch_pickle(arrays, *wrappers):
    """The pickle of a dict of tensors in dicts under `wrappers`, each with a storage "0", "1", …"""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    items = b""
    for key, (name, array) in enumerate(arrays.items()):
        strides = [step // array.itemsize for step in array.strides]
        kind = _STORAGES[array.dtype.name].encode()
        items += b"V%s\nctorch._utils\n_rebuild_tensor_v2\n(" % name.encode()
        items += b"(Vstorage\nctorch\n%sStorage\nV%d\nVcpu\nI%d\ntQI0\n" % (kind, key, array.size)
        items += numbers(array.shape) + numbers(strides) + b"I00\nNtRs"
    opened = b"".join(b"V%s\n}" % wrapper.encode() for wrapper in wrappers)
    return b"\x80\x02}" + opened + items + b"s" * len(wrappers) + b"."


def write_torch_file(path, arrays, *wrappers):
    """A file as torch.save writes it, of contiguous arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", torch_pickle(arrays, *wrappers))
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy_torch_file(path, arrays):
    """A file as PyTorch before 1.6 writes it; the storages from the last to the first."""
    keys = list(range(len(arrays)))[::-1]
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [pickle.dumps({"little_endian": True}, 2), torch_pickle(arrays)]
    parts += [pickle.dumps([str(key) for key in keys], 2)]
    for key in keys:
        array = list(arrays.values())[key]
        parts += [array.size.to_bytes(8, "little"), array.tobytes()]
    path.write_bytes(b"".join(parts))
    return path
