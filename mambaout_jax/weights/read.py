# SPDX-License-Identifier: Apache-2.0
"""Reads files of `torch.save` without PyTorch and without running code from them.

Such a file is a zip archive of one pickle and one raw file per storage; before PyTorch 1.6 it was
several pickles, the numbers of all storages behind them. A pickle is a program: it can name any
function of any module and call it. The reader here (`_Reader`) knows a handful of names, none of
which can do more than build a container or view numbers; a file that names anything else is
refused. `argparse.Namespace` is among them, as a plain record, because the training scripts of
timm and MambaOut store their arguments next to the weights, and numpy's numbers, because others
store their best accuracy.

Memory stays within a small multiple of the file's size: sizes are compared before anything is read.
"""

import io
import math
import pickle
import pickletools
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mambaout_jax.weights.formats import format_of

_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_PICKLES_BEFORE_STORAGES = 5  # of the older format: magic number, version, system, object, keys
_LARGEST_EXPANSION = 1 << 20  # values of a tensor that repeats those of a smaller storage
# Instructions that torch.save does not use and that reserve memory or read what is kept elsewhere.
_REFUSED_OPCODES = {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4"}


def read_torch_file(path: Path | str) -> Any:
    """The object in a file of `torch.save`, with its tensors as read-only numpy arrays.

    Args:
        path: the file, in the format of any PyTorch since 0.1.10.

    Returns:
        Usually a dict from names to arrays, or a dict that holds one. The dtypes are those of the
        tensors; bfloat16 is `jnp.bfloat16`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has another format, is damaged, or holds more than tensors and
            containers, so that it might run code.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "safetensors":
        raise ValueError(f"{path} is a safetensors file, not one of torch.save")
    try:
        return _read_zip(path) if kind == "zip" else _read_legacy(path.read_bytes())
    except _RefusedError as error:
        raise ValueError(
            f"{path} is refused: {error}. Nothing of it was run. If you trust it, load it with "
            "PyTorch and save its state dict alone, torch.save(model.state_dict(), …)"
        ) from None
    except Exception as error:  # damage surfaces as anything from BadZipFile to IndexError
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged: {type(error).__name__}: {reason}. Download or copy it again"
        ) from error


class _RefusedError(Exception):
    """The file holds something that the reader does not know; says what."""


class _Storage(NamedTuple):
    values: np.ndarray  # one axis, read-only


# The raw bytes of a storage, by its key, number of values and bytes of each.
_Fetch = Callable[[str, int, int], bytes | memoryview]


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickled = [name for name in names if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise _RefusedError("it is a zip file, but holds no data.pkl as torch.save writes it")
        folder = pickled[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and _stored(archive, f"{folder}byteorder") != b"little":
            raise _RefusedError("its numbers are big-endian, and only little-endian ones are read")
        left = path.stat().st_size  # storages may not overlap either

        def fetch(key: str, count: int, itemsize: int) -> bytes:
            nonlocal left
            name = f"{folder}data/{key}"
            size = archive.getinfo(name).file_size
            if size != count * itemsize:
                raise EOFError(f"storage {key} has {size / itemsize:g} of {count} values")
            left -= size
            if left < 0:
                raise EOFError(f"storage {key} is larger than the file")
            return _stored(archive, name)

        return _Reader(_one_pickle(_stored(archive, pickled[0]), 0)[0], fetch).load()


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A file of the archive, which torch.save never compresses: a few bytes could be gigabytes."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise _RefusedError(f"its {name} is compressed, as torch.save never writes it")
    return archive.read(name)


def _read_legacy(raw: bytes) -> Any:
    pickles, end = [], 0
    for _ in range(_PICKLES_BEFORE_STORAGES):
        one, end = _one_pickle(raw, end)
        pickles.append(one)
    *_, system, pickled, keys = pickles
    if not _Reader(system, _no_storages).load().get("little_endian", True):
        raise _RefusedError("its numbers are big-endian, and only little-endian ones are read")
    # Where a storage begins follows from the sizes of those before it, which the object tells.
    outline = _Outline(pickled, _no_storages)
    outline.load()
    places: dict[str, memoryview] = {}
    for key in _Reader(keys, _no_storages).load():
        count, itemsize = outline.sizes[key]
        begin, end = end + 8, end + 8 + count * itemsize
        if int.from_bytes(raw[begin - 8 : begin], "little") != count or end > len(raw):
            raise EOFError(f"storage {key} has not the {count} values it should have")
        places[key] = memoryview(raw)[begin:end]
    return _Reader(pickled, lambda key, count, itemsize: places[key]).load()


def _no_storages(key: str, count: int, itemsize: int) -> bytes:
    raise EOFError(f"storage {key} stands where there are none")


def _one_pickle(raw: bytes, begin: int) -> tuple[bytes, int]:
    """The pickle that begins there, and where it ends; its instructions are read and not run."""
    file = io.BytesIO(raw)
    file.seek(begin)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _REFUSED_OPCODES:
            raise _RefusedError(f"its pickle has the instruction {opcode.name}")
        if opcode.name.endswith("PUT") and int(argument or 0) > count:
            raise _RefusedError("its pickle counts its objects wrongly")
    return raw[begin : file.tell()], file.tell()


class _Reader(pickle.Unpickler):
    """Unpickler that knows tensors and plain containers only."""

    def __init__(self, pickled: bytes, fetch: _Fetch):
        super().__init__(io.BytesIO(pickled))
        self._fetch = fetch
        self._storages: dict[str, _Storage] = {}
        # A pickle can also set attributes on these objects. So that this changes nothing outside,
        # all of them are immutable, or made for this file alone.
        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("collections", "defaultdict"): lambda *_: {},
            ("argparse", "Namespace"): types.SimpleNamespace,
            ("torch", "Size"): tuple,
            ("torch", "device"): lambda *names: ":".join(map(str, names)),
            ("torch._utils", "_rebuild_tensor"): lambda *args: self._tensor(*args),
            # Behind these four: requires_grad, hooks and metadata, which an array does not have.
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: self._tensor(*args[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
            ("numpy", "dtype"): type("Dtype", (_Dtype,), {}),
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
            **{("torch", name): name for name in _DTYPES.values()},
            **{(module, "set"): lambda items: set(items) for module in ("builtins", "__builtin__")},
            **{
                (f"numpy.{core}.multiarray", "scalar"): lambda dtype, raw: dtype.number(raw)
                for core in ("core", "_core")
            },
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _RefusedError(
                f"it names {module}.{name}, which is neither a tensor nor a plain container, and "
                "might run code"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or dtype not in _DTYPES.values() or any(view):
            raise _RefusedError(
                f"it holds a {kind!r} of {dtype!r}, which is not a known kind of storage"
            )
        if not isinstance(size, int) or size < 0:
            raise _RefusedError(f"storage {key} in it has {size!r} values")
        if key not in self._storages:
            # numpy knows bfloat16 by its type, not by its name.
            dtype = np.dtype(jnp.bfloat16 if dtype == "bfloat16" else dtype)
            self._storages[key] = self._storage(key, size, dtype)
        return self._storages[key]

    def _storage(self, key: str, size: int, dtype: np.dtype) -> _Storage:
        return _Storage(np.frombuffer(self._fetch(key, size, dtype.itemsize), dtype))

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> np.ndarray | None:
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise _RefusedError("a tensor in it is not made of a storage")
        values = storage.values
        # numpy does not check strides: a tensor beyond its storage would read any memory.
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        inside = offset >= 0 and all(n >= 0 for n in (*shape, *strides))
        if not inside or (0 not in shape and last >= values.size):
            raise _RefusedError("a tensor in it reaches beyond its storage")
        if math.prod(shape) > max(values.size, _LARGEST_EXPANSION):
            raise _RefusedError(
                f"a tensor in it has the shape {tuple(shape)} and a storage of {values.size} values"
            )
        return np.lib.stride_tricks.as_strided(
            values[offset:], shape, [step * values.itemsize for step in strides], writeable=False
        )


class _Outline(_Reader):
    """Learns the size of every storage, as (values, bytes of each), and reads none."""

    def __init__(self, pickled: bytes, fetch: _Fetch):
        super().__init__(pickled, fetch)
        self.sizes: dict[str, tuple[int, int]] = {}

    def _storage(self, key: str, size: int, dtype: np.dtype) -> _Storage:
        self.sizes[key] = size, dtype.itemsize
        return _Storage(np.empty(0, dtype))

    def _tensor(self, *_: Any) -> None:
        return None


class _Dtype:
    """What stands for a `numpy.dtype` in a pickle: enough to read one number."""

    def __init__(self, code: str, *_: Any):
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
            raise _RefusedError(f"it holds numbers of numpy's type {code!r}")
        self._code = code

    def __setstate__(self, state: Any) -> None:
        """Its byte order and alignment; torch.save's files are little-endian throughout."""

    def number(self, raw: bytes) -> Any:
        return np.frombuffer(raw, f"<{self._code}", count=1)[0]
