# SPDX-License-Identifier: Apache-2.0
"""Which files of a folder are its images: one rule for training, evaluation and prediction.

Images are ordinary files, or links to such, that end in one of `IMAGE_SUFFIXES`. Hidden files and
folders do not count, nor what Windows and macOS leave behind. One warning counts all other files
that are left out.

Links to folders are followed. Every folder counts once, under whichever name comes first, real ones
before links; so a link that leads in a circle adds nothing. One that leads out, to a folder above
or into another class, is an error: its images would get a wrong label.
"""

import collections
import functools
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import features

_COMMON = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
           ".ppm", ".tif", ".tiff", ".webp")  # fmt: skip
# What Pillow is always able to read, and AVIF where it was built with it.
IMAGE_SUFFIXES = (*((".avif",) if features.check("avif") else ()), *_COMMON)
_LITTER = ("__macosx", "desktop.ini", "lost+found", "thumbs.db")

# Names of a split's folder, in any letter case: those of the first group that is there count.
_SPLIT_NAMES = {
    "train": (("train", "training"),),
    "validation": (("val", "validation", "valid", "dev", "eval"), ("test", "testing")),
}
TRAINING_FOLDERS, VALIDATION_FOLDERS = (
    [name for group in groups for name in group] for groups in _SPLIT_NAMES.values()
)

_logger = logging.getLogger("mambaout_jax")


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image."""
    return not _is_ignored(name) and name.lower().endswith(IMAGE_SUFFIXES)


def images_below(folder: Path) -> list[str]:
    """Sorted image paths, relative to `folder` and with "/" on every system.

    Raises:
        OSError: a folder cannot be read.
        ValueError: a link leads to a folder above.
    """
    walk = _Walk(folder)
    found = walk.images(folder)
    walk.report()
    return found


def images_by_class(root: Path, folder: Path) -> dict[str, list[str]]:
    """Sorted image paths by class, relative to `root` and with "/" on every system.

    The sub-folders of `folder` are the classes, called as `shown` shows their names.

    Raises:
        OSError: a folder cannot be read.
        ValueError: a link leads to a folder above, or a folder belongs to two classes.
    """
    walk = _Walk(root, holds_classes=folder)
    names = sorted(sub_folders(folder))
    found = {shown(name): walk.images(folder / name) for name in names}
    if names:
        walk.left_out["in no class folder"] = sum(
            is_image(entry.name) and _is(entry, "file") for entry in os.scandir(folder)
        )
    walk.report()
    return found


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, but for the ignored ones."""
    return [
        entry.name
        for entry in os.scandir(folder)
        if not _is_ignored(entry.name) and _is(entry, "dir")
    ]


def split_folder(root: Path, split: str) -> Path | None:
    """The folder that holds the class folders of a split; None if there is none.

    Args:
        root: folder of the data set.
        split: "train" or "validation". For validation a test folder counts, too, but only where
            there is no other.

    Raises:
        ValueError: several folders could be meant.
    """
    names = sub_folders(root)
    for group in _SPLIT_NAMES[split]:
        found = sorted(name for name in names if name.lower() in group)
        if len(found) > 1:
            raise ValueError(
                f"{root} holds {' and '.join(f'{name}/' for name in found)}, and any of them could "
                f"be the {split} split; rename or move all but one"
            )
        if found:
            return root / found[0]
    return None


def holds_splits_only(root: Path) -> bool:
    """Whether all sub-folders have the names of splits, so that they are no classes."""
    names = sub_folders(root)
    known = (*TRAINING_FOLDERS, *VALIDATION_FOLDERS)
    return bool(names) and all(name.lower() in known for name in names)


def shown(name: str) -> str:
    """The name with "\\" escapes for what cannot be printed, such as bytes that are not UTF-8."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in name
    )


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first names, as "'a', 'b' and 3 more"."""
    names = list(names)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(map(repr, names[:most]))}{rest}"


class _Walk:
    """Lists the images of folders, each real folder once, and counts what it leaves out.

    Args:
        root: what the paths are relative to.
        holds_classes: a folder to which no link may lead, nor to one above it.
    """

    def __init__(self, root: Path, holds_classes: Path | None = None):
        self._root, self._above = root, set()
        if holds_classes is not None:
            self._above |= {_real(holds_classes), *_real(holds_classes).parents}
        self._visited: dict[Path, tuple[Path, Path]] = {}  # of real folders: which one's, and name
        self.left_out: collections.Counter[str] = collections.Counter()

    def images(self, folder: Path) -> list[str]:
        """All below one folder, sorted."""
        self._above.update(_real(folder).parents)
        found, folders, links = [], collections.deque([folder]), collections.deque()
        while folders or links:
            parent = folders.popleft() if folders else links.popleft()
            if not self._enter(parent, folder):
                continue
            prefix = parent.relative_to(self._root).as_posix()
            prefix = "" if prefix == "." else f"{prefix}/"
            for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
                if _is_ignored(entry.name):
                    continue
                if _is(entry, "dir"):
                    (links if entry.is_symlink() else folders).append(parent / entry.name)
                elif not _is(entry, "file"):
                    self.left_out["neither files nor folders, or links to nothing"] += 1
                elif is_image(entry.name):
                    found.append(f"{prefix}{entry.name}")
                else:
                    self.left_out[shown(Path(entry.name).suffix.lower()) or "without a suffix"] += 1
        return sorted(found)

    def report(self) -> None:
        """Warns of what was left out, once for each folder and process."""
        if kinds := {kind: count for kind, count in self.left_out.items() if count}:
            _warn_once(
                f"{sum(kinds.values()):,} files in {shown(str(self._root))} are not used ("
                + ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
                + f"); images are files below its folders that end in {', '.join(IMAGE_SUFFIXES)}"
            )

    def _enter(self, path: Path, owner: Path) -> bool:
        real = _real(path)
        if real in self._above:
            raise ValueError(
                f"{path} leads to {real}, which holds the folders of this set: its images would "
                "be taken again, under a wrong name; remove the link"
            )
        first_owner, first = self._visited.setdefault(real, (owner, path))
        if first_owner != owner:
            raise ValueError(
                f"{path} and {first} are the same folder, {real}, so that its images would be in "
                "two classes; remove one of the links"
            )
        return first == path


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is(entry: os.DirEntry, kind: str) -> bool:
    """Whether it is, or links to, a file or folder ("dir"); a link to itself is nothing."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:
        return False


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LITTER


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)
