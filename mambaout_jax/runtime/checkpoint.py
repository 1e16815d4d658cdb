# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training state: written in the background, checked when they are read.

The one file that knows Orbax. `<directory>/<step>` holds two items. `state` is a flat dict from a
leaf's path, such as "params/backbone/stem/conv1/kernel", to its array: so it can be read without
the containers (dataclasses, optax tuples) it came from. `meta` is JSON: the caller's dict, and the
shape, dtype and CRC-32 of every leaf, under a CRC-32 of its own. The sums are here because Orbax
returns a flipped byte of the data without an error.

A checkpoint that cannot be read, or whose sums differ, is never used and never deleted: the newest
older one that is sound takes its place, and a warning says so.
"""

import contextlib
import dataclasses
import gc
import json
import logging
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.experimental import multihost_utils

_LOG = logging.getLogger("mambaout_jax")
_NAMES_SHOWN = 10

_Leaves = dict[str, Any]
_Table = dict[str, dict[str, Any]]  # path -> shape, dtype, crc32


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint in memory: its step, the state and the caller's `meta`."""

    step: int
    state: Any
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores the state of one run. A context manager; leaving it ends the last save.

    Every process of the run calls the same methods in the same order, with one shared directory.
    No other run may use the directory at the same time.

    Args:
        directory: made where it is missing. What killed saves have left in it is removed.
        keep: newest checkpoints to keep; an older one goes once a newer one is complete.
    """

    def __init__(self, directory: Path | str, *, keep: int):
        self.directory = Path(directory).absolute()
        if jax.process_index() == 0:
            # Not by Orbax, whose own clean-up runs on in the background and reports no error.
            for path in self.directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(path)
        self._manager = ocp.CheckpointManager(
            self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; without a save still in the background."""
        return _steps(self.directory)

    @property
    def latest_path(self) -> Path | None:
        """Directory of the newest complete checkpoint."""
        steps = self.steps()
        return self.directory / str(steps[-1]) if steps else None

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts to write `state`; the caller may donate its buffers as soon as this returns.

        Waits for the save before. A step that has a checkpoint is left as it is.

        Args:
            step: updates made so far.
            state: pytree of numeric `jax.Array`s, sharded in any way.
            meta: JSON-able.

        Raises:
            ValueError: a newer checkpoint exists.
            RuntimeError: the save before has failed.
        """
        self.wait()
        steps = self.steps()
        if step in steps:
            return
        if steps and step < steps[-1]:
            raise ValueError(
                f"step {step} is older than the newest checkpoint {self.latest_path}; restore that "
                "one and go on from it, or save into another directory"
            )
        leaves = _flatten(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(_seal(meta, leaves))
        )
        # Without force, Orbax may decide not to save, and says so only by returning False.
        self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Blocks until the last save is complete.

        Raises:
            RuntimeError: it has failed; names the newest complete checkpoint.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise RuntimeError(
                f"a checkpoint could not be written to {self.directory}: {_reason(error)}. The "
                f"newest complete one is {self.latest_path}; check the free space and the "
                "permissions there, then run the same command again to go on from it"
            ) from error

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest sound checkpoint, or None where there is none at all.

        Newer ones that cannot be read are moved to `<directory>/unreadable`, so that their steps
        can be saved again, but only once an older one has been read: if reading fails for a reason
        outside of the checkpoints, all of them stay in place.

        Args:
            abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, of any mesh.

        Raises:
            ValueError: the checkpoint is sound but of another model or optimizer; lists the leaves
                that are missing, unexpected or of another shape or dtype. Nothing is moved.
            RuntimeError: no checkpoint can be read; gives the reason for each.
        """
        self.wait()
        wanted = _flatten(abstract_state)
        found, unreadable = _read_newest(
            self.directory, lambda path, table: _match(path, table, wanted)
        )
        if unreadable:
            self._set_aside(unreadable)
        if found is None:
            return None
        leaves = [found.state[name] for name in wanted]
        state = jax.tree.unflatten(jax.tree.structure(abstract_state), leaves)
        return dataclasses.replace(found, state=state)

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                target = _free_path(self.directory / "unreadable" / str(step))
                target.parent.mkdir(exist_ok=True)
                (self.directory / str(step)).rename(target)
                _LOG.warning("checkpoint %d is moved to %s", step, target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("mambaout_jax: unreadable checkpoints set aside")
        self._manager.reload()


def read_checkpoint(directory: Path | str) -> Restored:
    """The newest sound checkpoint as nested dicts of `np.ndarray`, without a model to read it into.

    Containers of the state appear as dicts: the fields of a dataclass or named tuple by their
    names, the entries of a tuple or list as "0", "1", … Changes nothing in the directory.

    Args:
        directory: the one given to `Checkpointer`.

    Raises:
        FileNotFoundError: it holds no checkpoint.
        RuntimeError: no checkpoint can be read; gives the reason for each.
    """
    directory = Path(directory).absolute()
    found, _ = _read_newest(directory, _numpy_targets)
    if found is None:
        raise FileNotFoundError(
            f"no checkpoint in {directory}; it should hold directories named by their step, as "
            "training writes them into <workdir>/checkpoints"
        )
    return dataclasses.replace(found, state=traverse_util.unflatten_dict(found.state, sep="/"))


class _UnreadableError(Exception):
    """A checkpoint is damaged or incomplete; says how."""


@contextlib.contextmanager
def _abandoned_reads_ignored():
    """Hides the message per leaf that follows a failed read, so that its reason stays visible.

    Orbax closes its event loop when the first leaf fails. Of the other reads, one under way reports
    the closed loop through `sys.unraisablehook` and one not begun warns that it was never awaited,
    each when it is freed: which is right after the failure, inside of this.
    """
    hook = sys.unraisablehook

    def report(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = report
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* was never awaited", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


@_abandoned_reads_ignored()
def _read_newest(
    directory: Path, targets: Callable[[Path, _Table], _Leaves]
) -> tuple[Restored | None, list[int]]:
    """The newest sound checkpoint with flat leaves, and the newer steps that could not be read."""
    reasons: dict[int, str] = {}
    for step in reversed(_steps(directory)):
        try:
            leaves, meta = _read(directory / str(step), targets)
        except _UnreadableError as error:
            reasons[step] = str(error)
        if step in reasons:
            gc.collect()  # frees the reads that the failed one left behind
            continue
        for bad, reason in reasons.items():
            _LOG.warning(
                "checkpoint %d in %s cannot be read (%s); step %d is used instead",
                bad, directory, reason, step,
            )  # fmt: skip
        return Restored(step, leaves, meta), list(reasons)
    if reasons:
        listed = "".join(f"\n  {step}: {reason}" for step, reason in reasons.items())
        raise RuntimeError(
            f"no checkpoint in {directory} can be read:{listed}\nAll of them stay in place. Put "
            "back a copy of one, or move the directory away to start from the first step"
        )
    return None, []


def _read(path: Path, targets: Callable[[Path, _Table], _Leaves]) -> tuple[_Leaves, dict[str, Any]]:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:

        def read(**items):
            return reader.restore(path, args=ocp.args.Composite(**items))

        sealed = _agreed(lambda: _unseal(read(meta=ocp.args.JsonRestore())["meta"]))
        target = targets(path, sealed["leaves"])
        leaves = _agreed(lambda: read(state=ocp.args.StandardRestore(target))["state"])
        # A step of its own: the sums gather across processes, so all of them must get here.
        _agreed(lambda: _check(leaves, sealed["leaves"]))
    return leaves, sealed["meta"]


def _agreed(read: Callable[[], Any]) -> Any:
    """`read()`; raises `_UnreadableError` in every process if it raises in one."""
    value, reason = None, ""
    try:
        value = read()
    except Exception as error:  # damage surfaces as anything from KeyError to a bare Exception
        reason = _reason(error)
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(np.array(bool(reason)))
        reason = reason or ("another process cannot read it" if failed.any() else "")
    if reason:
        raise _UnreadableError(reason)
    return value


def _steps(directory: Path) -> list[int]:
    # The directory is the truth: a save gets its final name when it is complete, whereas Orbax
    # lists it from its beginning.
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()
    )


def _flatten(state: Any) -> _Leaves:
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _seal(meta: dict[str, Any], leaves: _Leaves) -> dict[str, Any]:
    table = {
        name: {"shape": list(x.shape), "dtype": str(x.dtype), "crc32": _crc32(x)}
        for name, x in leaves.items()
    }
    # Through JSON first: keys become strings and tuples lists, as they will be when read.
    sealed = json.loads(json.dumps({"meta": meta, "leaves": table}))
    return {**sealed, "crc32": _json_crc32(sealed)}


def _unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    content = {key: value for key, value in sealed.items() if key != "crc32"}
    if sealed["crc32"] != _json_crc32(content):
        raise ValueError("the CRC-32 of its meta data differs")
    return content


def _json_crc32(content: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _crc32(x: jax.Array | np.ndarray) -> int:
    """CRC-32 of the values in C order; 0 in all processes but the first, which alone compares."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        x = multihost_utils.process_allgather(x, tiled=True)
    if jax.process_index() != 0:
        return 0
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def _check(leaves: _Leaves, table: _Table) -> None:
    sums = {name: _crc32(x) for name, x in leaves.items()}
    wrong = [name for name, value in sums.items() if value != table[name]["crc32"]]
    if wrong and jax.process_index() == 0:
        raise ValueError(f"the CRC-32 differs of {_listed(wrong)}")


def _match(path: Path, table: _Table, wanted: _Leaves) -> _Leaves:
    """`wanted`, if the checkpoint has exactly these leaves."""
    saved = {name: f"{row['dtype']}{row['shape']}" for name, row in table.items()}
    ours = {name: f"{x.dtype}{list(x.shape)}" for name, x in wanted.items()}
    differing = [
        f"{name} ({saved[name]} in the checkpoint, {ours[name]} here)"
        for name in ours
        if name in saved and saved[name] != ours[name]
    ]
    sides = {
        "missing in the checkpoint": [name for name in ours if name not in saved],
        "only in the checkpoint": [name for name in saved if name not in ours],
        "of another shape or dtype": differing,
    }
    lines = [f"\n  {len(names)} {side}: {_listed(names)}" for side, names in sides.items() if names]
    if lines:
        raise ValueError(
            f"the checkpoint {path} is of another model or optimizer:{''.join(lines)}\nGo on with "
            "the settings it was written with, or start in another working directory"
        )
    return wanted


def _numpy_targets(_: Path, table: _Table) -> _Leaves:
    # Broadcast from one value: Orbax reads shape and dtype only, and nothing is allocated.
    return {
        name: np.broadcast_to(np.zeros((), jax.numpy.dtype(row["dtype"])), row["shape"])
        for name, row in table.items()
    }


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _reason(error: Exception) -> str:
    # The first line: TensorStore appends its whole specification.
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _free_path(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free
