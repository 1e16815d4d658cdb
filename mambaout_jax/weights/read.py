# SPDX-License-Identifier: Apache-2.0
"""Reads files of `torch.save` without PyTorch and without running code from them.

A `.pth` file is a zip archive of one pickle and one raw file per storage. A pickle is a program: it
can name any function of any module and call it. The reader here (`_Reader`) knows a handful of
names, none of which can do more than build a container or view numbers; a file that names anything
else is refused. `argparse.Namespace` is among them, as a plain record, because the training scripts
of timm and MambaOut store their arguments next to the weights.
"""

import io
import pickle
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_torch_file(path: Path | str) -> Any:
    """The object in a file of `torch.save`, with its tensors as read-only numpy arrays.

    Args:
        path: the file, in the zip format that PyTorch has written since version 1.6.

    Returns:
        Usually a dict from names to arrays, or a dict that holds one. The dtypes are those of the
        tensors; bfloat16 is `jnp.bfloat16`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is in the older format, is damaged, or holds more than tensors and
            containers, so that it might run code.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    if start == _LEGACY_MAGIC:
        raise ValueError(
            f"{path} is in the format of PyTorch before 1.6, which can only be read by running it; "
            "if you trust it, load it with PyTorch and save it again with torch.save"
        )
    if not start.startswith(_ZIP_MAGIC):
        raise ValueError(
            f"{path} is not a file of torch.save; it begins with {start[:4]!r}. A download may "
            "have ended as an error page: look into it, or download it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive).load()
    except _RefusedError as error:
        raise ValueError(
            f"{path} is refused: {error}. Nothing of it was run. If you trust it, load it with "
            "PyTorch and save its state dict alone, torch.save(model.state_dict(), …)"
        ) from None
    except Exception as error:  # damage surfaces as anything from BadZipFile to IndexError
        raise ValueError(
            f"{path} is damaged: {type(error).__name__}: {error}. Download or copy it again"
        ) from error


class _RefusedError(Exception):
    """The file holds something that the reader does not know; says what."""


class _Storage(NamedTuple):
    values: np.ndarray  # one axis, read-only


class _Reader(pickle.Unpickler):
    """Unpickler that knows tensors and plain containers only."""

    def __init__(self, archive: zipfile.ZipFile):
        names = archive.namelist()
        pickled = [name for name in names if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise _RefusedError("it is a zip file, but holds no data.pkl as torch.save writes it")
        folder = pickled[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise _RefusedError("its numbers are big-endian, and only little-endian ones are read")
        super().__init__(io.BytesIO(archive.read(pickled[0])))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, _Storage] = {}
        # A pickle can also set attributes on these objects. So that this changes nothing outside,
        # all of them are immutable, or made for this file alone.
        self._allowed: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("argparse", "Namespace"): types.SimpleNamespace,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _tensor(*args),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            **{("torch", name): dtype for name, dtype in _DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _RefusedError(
                f"it names {module}.{name}, which is neither a tensor nor a plain container, and "
                "might run code"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size = pid
        if kind != "storage" or dtype not in _DTYPES.values():
            raise _RefusedError(
                f"it holds a {kind!r} of {dtype!r}, which is not a known kind of storage"
            )
        if key not in self._storages:
            raw = self._archive.read(f"{self._folder}data/{key}")
            # numpy knows bfloat16 by its type, not by its name.
            values = np.frombuffer(raw, jnp.bfloat16 if dtype == "bfloat16" else dtype)
            if values.size != size:
                raise EOFError(f"storage {key} has {values.size} of {size} values")
            self._storages[key] = _Storage(values)
        return self._storages[key]


def _tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,  # requires_grad, hooks and metadata, which a numpy array does not have
) -> np.ndarray:
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise _RefusedError("a tensor in it is not made of a storage")
    # numpy does not check strides: a tensor that reached beyond its storage would read any memory.
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    inside = offset >= 0 and all(n >= 0 for n in (*shape, *strides))
    if not inside or (0 not in shape and last >= storage.values.size):
        raise _RefusedError("a tensor in it reaches beyond its storage")
    return np.lib.stride_tricks.as_strided(
        storage.values[offset:],
        shape,
        [step * storage.values.itemsize for step in strides],
        writeable=False,
    )
