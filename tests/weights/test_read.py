# SPDX-License-Identifier: Apache-2.0
"""Files that PyTorch wrote, read without it; files that attack, refused."""

import argparse
import os
import pickle
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from support.places import GOLDENS
from support.weight_files import write_legacy_torch_file

from mambaout_jax.weights.read import read_torch_file

FILES = GOLDENS / "torch_files"
RAMP = np.arange(12).reshape(3, 4) / 4


@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8"],
)
def test_every_dtype_is_read_exactly(dtype):
    read = read_torch_file(FILES / "dtypes.pth")[dtype]
    assert read.dtype == jnp.dtype(dtype)
    # Quarters up to 3 are exact in all floats; integers are rounded towards zero.
    wanted = RAMP if np.issubdtype(read.dtype, np.floating) or dtype == "bfloat16" else RAMP // 1
    np.testing.assert_array_equal(read.astype(np.float64), wanted)


def test_bool_is_read():
    np.testing.assert_array_equal(read_torch_file(FILES / "dtypes.pth")["bool"], RAMP > 1)


def test_views_of_a_shared_storage_have_their_own_strides():
    read = read_torch_file(FILES / "views.pth")
    np.testing.assert_array_equal(read["whole"], RAMP)
    np.testing.assert_array_equal(read["transposed"], RAMP.T)
    np.testing.assert_array_equal(read["columns"], RAMP[:, [1, 3]])
    np.testing.assert_array_equal(read["expanded"], [[0.75, 0.75], [0.75, 0.75]])
    np.testing.assert_array_equal(read["scalar"], np.float32(2.75))
    assert read["scalar"].shape == ()
    assert read["empty"].shape == (0, 4)
    assert read["size"] == (3, 4)
    assert np.shares_memory(read["whole"], read["transposed"])


def test_arrays_cannot_be_written_to():
    read = read_torch_file(FILES / "views.pth")["columns"]
    with pytest.raises(ValueError, match="read-only"):
        read[0, 0] = 1


def test_training_checkpoint_is_read_with_its_arguments():
    read = read_torch_file(FILES / "checkpoint.pth")
    assert list(read["model"]) == ["weight", "bias"]
    np.testing.assert_array_equal(read["model"]["weight"], RAMP)
    np.testing.assert_array_equal(read["parameter"], RAMP)
    assert read["epoch"] == 3
    assert vars(read["args"]) == {"lr": 0.004, "model": "linear", "betas": (0.9, 0.999)}
    assert not isinstance(read["args"], argparse.Namespace)
    # The gradient of a sum over the ramp's rows is the sum of the rows; AdamW keeps a tenth.
    average = read["optimizer"]["state"][0]["exp_avg"]
    np.testing.assert_allclose(average, np.tile(RAMP.sum(0) / 10, (3, 1)), rtol=1e-6)


def test_older_format_is_read():
    read = read_torch_file(FILES / "legacy.pth")
    assert list(read) == ["w"]
    assert (read["w"].dtype, read["w"].flags.writeable) == (np.float32, False)
    np.testing.assert_array_equal(read["w"], RAMP)


LEGACY = (FILES / "legacy.pth").read_bytes()


def test_older_format_has_the_storages_in_the_order_of_its_keys(tmp_path):
    arrays = {"a": np.array([5, 6]), "b": np.array([[1, 0.5]], jnp.bfloat16), "c": np.float32([3])}
    read = read_torch_file(write_legacy_torch_file(tmp_path / "old.pth", arrays))
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].tolist()) == (array.dtype, array.tolist())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (LEGACY[:-1], "damaged: EOFError: storage"),
        (LEGACY[:60], "damaged"),
        (LEGACY[:-56] + b"\x0d" + LEGACY[-55:], "damaged.*not the 12 values"),
        (LEGACY.replace(b"K\x0cN", b"K\x0dN"), "damaged.*not the 13 values"),
        (LEGACY.replace(b"K\x0cN", b"J\xff\xff\xff\x7fN"), "damaged.*not the 2147483647 values"),
        (LEGACY.replace(b"\x88", b"\x89", 1), "big-endian"),
        (LEGACY.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"), "names torch._utils._reb"),
    ],
)
def test_damaged_or_foreign_file_of_the_older_format(tmp_path, raw, message):
    path = tmp_path / "old.pth"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"old\.pth is .*{message}"):
        read_torch_file(path)


def test_call_in_the_older_format_is_refused_and_not_made(tmp_path):
    marker = tmp_path / "was_run"
    attack = pickle.dumps({"w": Call(os.mkdir, str(marker))}, 2)
    path = tmp_path / "attack.pth"
    for place in range(5):  # any of the pickles
        parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), *[pickle.dumps({}, 2)] * 4]
        parts[place] = attack if place else parts[0]
        path.write_bytes(b"".join(parts))
        if place >= 2:
            with pytest.raises(ValueError, match=r"refused.*mkdir.*Nothing of it was run"):
                read_torch_file(path)
    assert not marker.exists()


def test_numbers_of_numpy_and_containers_beside_the_weights_are_read(tmp_path):
    best = {"best": np.float64(81.25), "seen": {1, 2}, "count": np.int32(7)}
    assert read_torch_file(write(tmp_path / "t.pth", pickle.dumps(best, 2))) == best
    assert read_torch_file(write(tmp_path / "t.pth", pickle.dumps(best, 4))) == best
    other = pickle.dumps(np.datetime64("2020-01-01"), 2)
    with pytest.raises(ValueError, match="refused: it holds numbers of numpy's type 'M8'"):
        read_torch_file(write(tmp_path / "t.pth", other))


def write(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, raw in storages:
            archive.writestr(f"archive/data/{key}", raw)
    return path


class Call:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {}, "args": [x]}])
def test_call_of_a_function_is_refused_and_not_made(tmp_path, protocol, wrap):
    marker = tmp_path / "was_run"
    attack = wrap(Call(os.mkdir, str(marker)))
    pickle.loads(pickle.dumps(attack, protocol))
    marker.rmdir()  # so it would have worked
    path = write(tmp_path / "attack.pth", pickle.dumps(attack, protocol))
    with pytest.raises(ValueError, match=r"attack\.pth is refused.*mkdir.*Nothing of it was run"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "function", [eval, exec, getattr, __import__, open, np.load, pickle.loads, zipfile.ZipFile]
)
def test_functions_of_any_module_are_refused(tmp_path, function):
    pickled = pickle.dumps({"x": Call(function, "1")}, 2)
    with pytest.raises(ValueError, match=r"refused: it names .*neither a tensor nor"):
        read_torch_file(write(tmp_path / "attack.pth", pickled))


def test_allowed_names_cannot_be_changed_for_the_next_file(tmp_path):
    # BUILD with a (dict, slots) pair sets attributes on what the file was given.
    name = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for state in (b"}V__doc__\nVattacked\ns", b"N}V__doc__\nVattacked\ns\x86"):
        pickled = b"\x80\x02" + name + state + b"b."
        given = read_torch_file(write(tmp_path / "attack.pth", pickled))
        again = read_torch_file(write(tmp_path / "next.pth", b"\x80\x02" + name + b"."))
        assert again.__doc__ is None
        assert again is not given
    for name in (b"ccollections\nOrderedDict\n", b"cargparse\nNamespace\n", b"ctorch\nSize\n"):
        pickled = b"\x80\x02" + name + b"N}V__doc__\nVattacked\ns\x86b."
        with pytest.raises(ValueError, match="immutable"):
            read_torch_file(write(tmp_path / "attack.pth", pickled))


def tensor_pickle(offset, shape, strides):
    """The pickle of one tensor of a storage of four float32."""
    body = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nK\x04tQ"

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    arguments = storage + b"I%d\n" % offset + numbers(shape) + numbers(strides) + b"I00\nN"
    return b"\x80\x02" + body + b"(" + arguments + b"tR."


def test_hand_written_tensor_is_read(tmp_path):
    raw = np.arange(4, dtype="<f4").tobytes()
    path = write(tmp_path / "t.pth", tensor_pickle(1, (1, 2), (9, 2)), [("0", raw)])
    np.testing.assert_array_equal(read_torch_file(path), [[1, 3]])


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (4, (), ()),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (2,), (10**15,)),
        (0, (-2,), (1,)),
        (0, (2,), ()),
    ],
)
def test_tensor_beyond_its_storage_is_refused(tmp_path, offset, shape, strides):
    path = write(tmp_path / "t.pth", tensor_pickle(offset, shape, strides), [("0", bytes(16))])
    with pytest.raises(ValueError, match="refused: a tensor in it"):
        read_torch_file(path)


def test_tensor_that_repeats_a_small_storage_beyond_reason_is_refused(tmp_path):
    pickled = tensor_pickle(0, (2**38,), (0,))
    path = write(tmp_path / "t.pth", pickled, [("0", bytes(16))])
    with pytest.raises(ValueError, match=r"shape \(274877906944,\) and a storage of 4 values"):
        read_torch_file(path)
    path = write(tmp_path / "t.pth", tensor_pickle(0, (3, 4), (0, 1)), [("0", bytes(16))])
    assert read_torch_file(path).shape == (3, 4)


def test_sizes_are_compared_before_anything_is_unpacked(tmp_path):
    storages, deflated = [("0", bytes(1 << 24))], zipfile.ZIP_DEFLATED
    path = write(tmp_path / "t.pth", tensor_pickle(0, (2,), (1,)), storages, deflated)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"t\.pth is refused: its archive/\w+ is compressed"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(0, (2,), (1,)))
        archive.writestr("archive/data/0", bytes(1 << 24), deflated)
    tracemalloc.reset_peak()
    with pytest.raises(ValueError, match=r"t\.pth is damaged.*storage 0 has 4\.1943e\+06 of 4"):
        read_torch_file(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


@pytest.mark.parametrize("pickled", [b"\x80\x02r\xff\xff\xff\x7f.", b"\x80\x05\x96" + b"\xff" * 8])
def test_pickle_that_would_reserve_memory_is_refused(tmp_path, pickled):
    with pytest.raises(ValueError, match=r"t\.pth is (refused: its pickle|damaged)"):
        read_torch_file(write(tmp_path / "t.pth", pickled))


def test_short_storage_is_damage(tmp_path):
    path = write(tmp_path / "t.pth", tensor_pickle(0, (2,), (1,)), [("0", bytes(12))])
    with pytest.raises(ValueError, match=r"damaged.*storage 0 has 3 of 4 values"):
        read_torch_file(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_file_is_damage(tmp_path, share):
    whole = (FILES / "mambaout_tiny.pth").read_bytes()
    path = tmp_path / "truncated.pth"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"truncated\.pth is damaged.*again"):
        read_torch_file(path)


def test_flipped_byte_is_damage(tmp_path):
    damaged = bytearray((FILES / "mambaout_tiny.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path = tmp_path / "flipped.pth"
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"flipped\.pth is damaged.*CRC"):
        read_torch_file(path)


def test_other_zip_files_say_what_they_are(tmp_path):
    other = tmp_path / "other.pth"
    np.savez(other.with_suffix(".npz"), a=RAMP)
    other.with_suffix(".npz").rename(other)
    with pytest.raises(ValueError, match=r"refused: it is a zip file, but holds no data\.pkl"):
        read_torch_file(other)


def test_big_endian_file_is_refused(tmp_path):
    path = tmp_path / "big.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(ValueError, match="big-endian"):
        read_torch_file(path)


def test_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        read_torch_file(tmp_path / "nothing_here.pth")
