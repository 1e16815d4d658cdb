# SPDX-License-Identifier: Apache-2.0
"""Which format a file of weights has, judged by its first bytes: names and suffixes prove nothing.

safetensors   the length of a JSON header, 8 bytes, then the header
zip           `torch.save` since PyTorch 1.6
legacy        `torch.save` before that
"""

from pathlib import Path

_MAGIC_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's own, as a pickle ends with it
_ZIP = b"PK\x03\x04"
_LARGEST_HEADER = 100_000_000  # bytes of JSON that safetensors allows
_START = 512

# What is found in place of weights: how it begins, and what it is.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
    (b"\x93NUMPY", "an array of numpy"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "compressed by gzip; decompress it first"),
)
_ALLOWED = "allowed are safetensors and files of torch.save"


def format_of(path: Path | str) -> str:
    """ "safetensors", "zip" or "legacy", as above.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a regular file, or has none of these formats; says what it is.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the path")
    if not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path} is not a regular file; {_ALLOWED}")
    with path.open("rb") as file:
        start = file.read(_START)
    if start[:4] == _ZIP:
        return "zip"
    if _MAGIC_NUMBER in start[:32]:
        return "legacy"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    raise ValueError(
        f"{path} is {_describe(start)}; {_ALLOWED}. Look into it, or download it again"
    )


def _describe(start: bytes) -> str:
    if not start:
        return "empty"
    for magic, what in _OTHERS:
        if start.startswith(magic):
            return what
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a page of the web, perhaps a download's error; it begins with {start[:15]!r}"
    return f"not a file of weights; it begins with {start[:8]!r}"
