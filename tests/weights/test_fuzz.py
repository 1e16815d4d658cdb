# SPDX-License-Identifier: Apache-2.0
"""Damaged and hostile files of weights: one sentence each, no code run, bounded memory."""

import contextlib
import re
import sys
import tracemalloc
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from support.weight_files import torch_pickle, write_legacy_torch_file, write_torch_file

from mambaout_jax.weights.files import read_tensors
from mambaout_jax.weights.load import load_pretrained, read_variables

pytestmark = pytest.mark.slow

bounded = settings(max_examples=150, deadline=None, derandomize=True, database=None)
ARRAYS = {
    "stem.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "stem.bias": np.array([1, -0.5], jnp.bfloat16),
    "count": np.array([7]),
}
MEMORY = 1 << 25  # of files of a kilobyte
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "compile", "ctypes.")
_watched: list[str] | None = None


def _watch(event, _):
    if _watched is not None and event.startswith(_FORBIDDEN):
        _watched.append(event)


sys.addaudithook(_watch)


@contextlib.contextmanager
def harmless():
    """Nothing of the system is called inside, and memory stays small."""
    global _watched
    tracemalloc.start()
    _watched = []
    try:
        yield
        assert _watched == []
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        _watched = None
        tracemalloc.stop()


def read(path):
    """What a file holds, None where it is refused in one sentence that names it."""
    with harmless():
        try:
            return read_tensors(path, ema=True)
        except ValueError as error:
            message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


def assert_same(found):
    assert list(found) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape)
        assert found[key].tobytes() == array.tobytes()


@st.composite
def mutations(draw):
    """A function of bytes: some are changed, removed or repeated, or the end is cut off."""
    kind = draw(st.sampled_from(["change", "change", "cut", "remove", "repeat"]))
    places = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
                           min_size=1, max_size=4))  # fmt: skip

    def mutate(raw):
        place, value = int(places[0][0] * len(raw)), places[0][1]
        if kind == "cut":
            return raw[:place]
        if kind == "remove":
            return raw[:place] + raw[place + 1 + value % 8 :]
        if kind == "repeat":
            return raw[:place] + raw[place : place + value] + raw[place:]
        changed = bytearray(raw)
        for place, value in places:
            changed[int(place * len(raw))] = value
        return bytes(changed)

    return mutate


def write_safetensors(path, arrays):
    safetensors.numpy.save_file(arrays, path)


def write_npz(path, arrays):
    with path.open("wb") as file:
        np.savez(file, **{key: x.astype(np.float32) for key, x in arrays.items()})


WRITERS = [write_safetensors, write_torch_file, write_legacy_torch_file, write_npz]


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@bounded
@given(mutate=mutations())
def test_mutated_file_is_read_or_refused(tmp_path_factory, write, mutate):
    path = tmp_path_factory.getbasetemp() / f"{write.__name__}.bin"
    write(path, ARRAYS)
    whole = path.read_bytes()
    if write is write_npz:
        assert read(path) is None
    path.write_bytes(mutate(whole))
    found = read(path)
    if found is not None and write is write_torch_file:  # the others have no checksums
        assert_same(found)


@bounded
@given(mutate=mutations())
def test_mutated_pickle_is_read_or_refused(tmp_path_factory, mutate):
    path = tmp_path_factory.getbasetemp() / "pickle.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", mutate(torch_pickle(ARRAYS, "model")))
        for key, array in enumerate(ARRAYS.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
    read(path)


INSTRUCTIONS = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cnumpy\ndtype\n", b"cargparse\nNamespace\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"c_codecs\nencode\n",
    b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n", b"Vecho\n", b"I1\n", b"K\x04", b"N", b"(",
    b"t", b")", b"}", b"]", b"R", b"\x81", b"b", b"s", b"u", b"a", b"e", b"Q", b"0", b"1", b"2",
    b"q\x00", b"h\x00", b"\x85", b"\x86", b"\x87", b"\x94", b"\x93", b"\x8c\x02os",
    b"r\xff\xff\xff\x7f", b"\x96\xff\xff\xff\xff\x01\x00\x00\x00", b"P0\n",
    b"\x95\xff\xff\xff\xff\x01\x00\x00\x00",
]  # fmt: skip


@bounded
@given(program=st.lists(st.sampled_from(INSTRUCTIONS), max_size=20))
def test_programs_of_pickle_are_not_run(tmp_path_factory, program):
    path = tmp_path_factory.getbasetemp() / "program.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x04" + b"".join(program) + b".")
        archive.writestr("archive/data/0", bytes(16))
    read(path)


@settings(bounded, max_examples=40)
@given(names=st.sets(st.text("ab/.", max_size=5), min_size=1, max_size=5))
def test_any_names_are_a_tree_or_refused(tmp_path_factory, names):
    path: Path = tmp_path_factory.getbasetemp() / "names.safetensors"
    safetensors.numpy.save_file({name: np.zeros(1, np.float32) for name in names}, path)
    message = rf"^{re.escape(str(path))}: (the tensor|these weights are not those of)"
    refused = pytest.raises(ValueError, match=message)
    with contextlib.nullcontext() if are_paths(names) else refused:
        assert flatten_dict(read_variables(path)[0], sep="/").keys() == names
    with refused:
        load_pretrained(path, "mambaout_femto", depths=(1,), dims=(8,))


def are_paths(names):
    """Whether every name is a path of parts, and none the folder of another."""
    whole = not any("" in name.split("/") for name in names)
    return whole and not any(a != b and b.startswith(f"{a}/") for a in names for b in names)
