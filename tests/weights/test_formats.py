# SPDX-License-Identifier: Apache-2.0
"""Files are judged by their first bytes, and what is not weights is said to be what it is."""

import os
import shutil

import numpy as np
import pytest
import safetensors.numpy
from support.weight_files import FILES

from mambaout_jax.weights.files import read_safetensors
from mambaout_jax.weights.formats import format_of
from mambaout_jax.weights.locate import locate
from mambaout_jax.weights.read import read_torch_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth.tar", ".ckpt", ".bin", ".npz", ""])
def test_formats_are_told_whatever_the_suffix(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
    assert format_of(path) == "safetensors"
    for name, kind in (("legacy.pth", "legacy"), ("dtypes.pth", "zip")):
        assert format_of(shutil.copy(FILES / name, path)) == kind


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (POINTER, "Git LFS pointer; fetch the file itself with `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "a page of the web, perhaps a download's error"),
        (b"<html>404</html>", "begins with b'<html>404</html'"),
        (b"\x93NUMPY\x01", "an array of numpy"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b'{"error": {}}', "not a file of weights; it begins with"),
        (b"\x80\x02}q\x00.", r"not a file of weights; it begins with b'\\x80"),
    ],
)
def test_what_is_not_weights_is_said_to_be_what_it_is(tmp_path, content, suffix, message):
    path = tmp_path / f"mambaout_tiny{suffix}"
    path.write_bytes(content)
    for read in (format_of, locate, read_torch_file, read_safetensors):
        with pytest.raises(ValueError, match=rf"mambaout_tiny\{suffix} is .*{message}.*; allowed"):
            read(path)


def test_a_pipe_does_not_hang(tmp_path):
    path = tmp_path / "mambaout_tiny.safetensors"
    os.mkfifo(path)
    for read in (format_of, locate, read_torch_file):
        with pytest.raises(ValueError, match="is not a regular file"):
            read(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        format_of(tmp_path / "absent")
