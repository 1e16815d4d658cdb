# SPDX-License-Identifier: Apache-2.0
"""Batches of numpy arrays: ordered, viewed and batched by Grain, whatever an example is.

The order knows nothing of the machine. The examples form one endless sequence (each epoch a new
permutation) in which an example's random numbers depend on its position only; global batch k is
positions k * batch_size and on, and process p of P takes the p-th of its P blocks. Where batches
hold one group each, `order` says which example stands at a position, from the seed alone. So global
batch k holds the same pixels in the same order for any number of processes, worker processes and
threads, and resuming takes one integer, the step.
"""

import functools
import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from mambaout_jax.config import Config
from mambaout_jax.data.order import GroupedOrder
from mambaout_jax.data.sets.sources import ReplaceUnreadable, Source
from mambaout_jax.data.workers import begin_worker, quieten_resource_tracker

# How a task makes arrays of an example, for training with the example's own random numbers. With
# worker processes a training view is pickled.
TrainingView = Callable[[dict, np.random.Generator], dict[str, Any]]
EvaluationView = Callable[[dict], dict[str, Any]]

# Threads make batches in pieces of at most this many examples: large enough for Grain's cost per
# piece to vanish, small enough for all threads to work on the batch that is needed next.
_PIECE = 16

_SHARED_MEMORY = Path("/dev/shm")

# An endless `repeat` has sys.maxsize examples, of which Grain's arithmetic overflows.
_EPOCHS = 2**24


class Batches(Iterator):
    """An iterator of batches that holds threads or processes until it is closed.

    Use it as a context manager or call `close`; a closed one raises ValueError from `next`.
    """

    def __init__(self, dataset: grain.IterDataset):
        self._iterator = iter(dataset)

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            raise ValueError("these batches are closed; make new ones with start_step=")
        try:
            return next(self._iterator)
        except RuntimeError as error:
            ended = re.search(r"Worker process .* exit code (-?\d+)", str(error))
            if ended is None:
                raise
            cause, more = "it is killed or memory runs out", ""
            if int(ended[1]) == -signal.SIGBUS:
                cause = f"{_SHARED_MEMORY} is full"
                more = f"a larger {_SHARED_MEMORY} (docker run --shm-size=, or mount), or with "
            raise RuntimeError(
                f"a process that decodes images ended with exit code {ended[1]}, as when {cause}; "
                f"run the same command again to resume, with {more}a lower data.num_workers or "
                "data.prefetch_batches where memory is short"
            ) from error

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and processes; batches made ahead are dropped."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def train_batches(
    config: Config,
    source: Source,
    view: TrainingView,
    *,
    groups: Sequence[int] | None = None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Endless training batches, made ahead by `config.data`'s threads or worker processes.

    An unreadable image is replaced by the next readable one (`ReplaceUnreadable`).

    Args:
        config: reads `seed`, `batch_size` and `data`.
        source: the training split.
        view: makes arrays of an example, of the same names, shapes and dtypes within a group.
        groups: a number for each example: those in one batch have the same one; see `GroupedOrder`
            for the order. None: one group.
        start_step: the first batch returned is global batch `start_step`.
        process_index: number of this process among those that share each global batch.
        process_count: how many these are.

    Returns:
        Dicts: the arrays of the view, stacked, and `replaced`, bool (B,), where B is batch_size /
        process_count. With `config.data.num_workers` the calling program needs `if __name__ ==
        "__main__":`, as with any spawned process.

    Raises:
        ValueError: the batch is larger than the source or does not divide among the processes.
        OSError: there is too little shared memory for worker processes.
    """
    local_batch_size = _share("batch_size", config.batch_size, process_index, process_count)
    if config.batch_size > len(source):
        raise ValueError(
            f"batch_size={config.batch_size} is larger than the training set ({len(source)} "
            f"examples); set --config.batch_size to {len(source)} or less"
        )
    # Grain would derive both seeds from the shape of the chain, so that any change to it would move
    # every crop.
    shuffle_seed, view_seed = np.random.SeedSequence(config.seed).generate_state(2).tolist()
    readable = ReplaceUnreadable(source)

    def example(index: int, rng: np.random.Generator) -> dict[str, Any]:
        loaded = readable[index]
        return {**view(loaded, rng), "replaced": np.bool_(loaded["replaced"])}

    if groups is None:
        order = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed)
    else:
        order = GroupedOrder(groups, config.batch_size, shuffle_seed)
    examples = order.repeat(_EPOCHS).random_map(example, seed=view_seed)
    examples = _Part(examples, local_batch_size, process_index, process_count)
    make = _in_workers if config.data.num_workers else _in_threads
    return Batches(make(examples, local_batch_size, start_step, config.data))


def evaluation_batches(
    config: Config,
    source: Source,
    view: EvaluationView,
    *,
    groups: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Batches that hold every example exactly once over all processes, made by threads.

    The last global batch of each group is filled up with zeros whose mask is False, so that all
    processes yield as many batches, of the same shapes.

    Args:
        config: reads `evaluation.batch_size` and `data`.
        source: any split. An unreadable image raises `UnreadableImageError` from `next`.
        view: makes arrays of an example, of the same names, shapes and dtypes within a group.
        groups: a number for each example: those in one batch have the same one. None: one group.
        process_index: number of this process among those that share each global batch.
        process_count: how many these are.

    Returns:
        Dicts: the arrays of the view, stacked, `index`, int32 (B,), of each example in the source,
        and `mask`, bool (B,), where B is evaluation.batch_size / process_count.

    Raises:
        ValueError: the batch does not divide among the processes.
    """
    batch_size = config.evaluation.batch_size
    local_batch_size = _share("evaluation.batch_size", batch_size, process_index, process_count)
    indices, counts = _padded_order(len(source), groups, batch_size)

    def made(index: int) -> dict[str, Any]:
        return {**view(source[index]), "index": np.int32(index), "mask": np.True_}

    @functools.cache  # one decoding per group, and not one per place that is filled
    def filler(index: int) -> dict[str, Any]:
        return {name: np.zeros_like(array)[()] for name, array in made(index).items()}

    def example(position: int) -> dict[str, Any]:
        make = made if counts[position] else filler
        return make(int(indices[position]))

    examples = grain.MapDataset.range(len(indices)).map(example)
    examples = _Part(examples, local_batch_size, process_index, process_count)
    return Batches(_in_threads(examples, local_batch_size, 0, config.data))


def _padded_order(
    count: int, groups: Sequence[int] | None, batch_size: int
) -> tuple[Int[np.ndarray, "padded"], np.ndarray]:
    """Which example stands at each place of the batches, and whether it counts or only fills."""
    numbers = np.zeros(count, int) if groups is None else np.asarray(groups)
    indices, counts = [], []
    for number in np.unique(numbers):
        members = np.flatnonzero(numbers == number)
        filling = np.full(-len(members) % batch_size, members[0])
        indices += [members, filling]
        counts += [np.ones(len(members), bool), np.zeros(len(filling), bool)]
    return np.concatenate(indices), np.concatenate(counts)


class _Part(grain.MapDataset):
    """Of every global batch the block of neighbours that one process holds."""

    def __init__(self, examples: grain.MapDataset, block: int, index: int, count: int):
        super().__init__(examples)
        self._block, self._place, self._count = block, index, count

    def __len__(self) -> int:
        return len(self._parent) // self._count

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return self.slice(position)
        batch, place = divmod(position, self._block)
        return self._parent[(batch * self._count + self._place) * self._block + place]


def _share(name: str, batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is not in 0..{process_count - 1}")
    if batch_size % process_count:
        raise ValueError(
            f"{name}={batch_size} does not divide among {process_count} processes; set "
            f"--config.{name} to a multiple of {process_count}"
        )
    return batch_size // process_count


def _in_threads(
    examples: grain.MapDataset, batch_size: int, start_step: int, data: Config
) -> grain.IterDataset:
    # Small enough, too, that there is a piece for every thread.
    limit = min(_PIECE, data.prefetch_batches * batch_size // data.num_threads)
    piece = max(size for size in range(1, max(limit, 1) + 1) if batch_size % size == 0)
    pieces = batch_size // piece
    ahead = data.prefetch_batches * pieces
    options = grain.ReadOptions(
        num_threads=min(data.num_threads, ahead), prefetch_buffer_size=ahead
    )
    dataset = examples.batch(piece)[start_step * pieces :].to_iter_dataset(options)
    return dataset.batch(pieces, batch_fn=_concatenate)


def _in_workers(
    examples: grain.MapDataset, batch_size: int, start_step: int, data: Config
) -> grain.IterDataset:
    # Grain reads an absl flag to start a worker, which fails in a program that parses none.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    quieten_resource_tracker()
    ahead = math.ceil(data.prefetch_batches / data.num_workers)
    first: Any = examples[0]  # those of other groups are taken to be as large
    size = batch_size * sum(np.asarray(array).nbytes for array in first.values())
    # Of each worker in Grain: as many that wait for the program as in the worker, and those that
    # are being made, passed on and used. Peaks were measured to be 0.75 to 0.95 of this.
    _check_shared_memory(size * data.num_workers * (2 * ahead + 4), data.num_workers)
    # Worker w makes batches w, w + num_workers, ...: whole ones, in its main thread.
    dataset = examples.batch(batch_size)[start_step:].to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    options = grain.MultiprocessingOptions(
        num_workers=data.num_workers, per_worker_buffer_size=ahead
    )
    prefetched = dataset.mp_prefetch(options, worker_init_fn=lambda *_: begin_worker())
    return prefetched.map(_out_of_shared_memory)


def _check_shared_memory(needed: int, num_workers: int) -> None:
    """Workers hand their batches over in shared memory, and are killed where it is full."""
    if not _SHARED_MEMORY.is_dir():  # a system that keeps it elsewhere
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise OSError(
            f"data.num_workers={num_workers} need {needed / 1e6:,.1f} MB of shared memory for "
            f"their batches, and {_SHARED_MEMORY} has {free / 1e6:,.1f} MB free; enlarge it "
            f"(docker run --shm-size={math.ceil(2 * needed / 1e9)}g, or mount -o remount,size=), "
            "or set --config.data.num_workers=0 or a smaller --config.data.prefetch_batches"
        )


def _out_of_shared_memory(batch: dict) -> dict:
    # Grain frees shared memory in the background, and complains of what a program still holds when
    # it ends. The copy costs little beside decoding.
    return {name: np.array(array) for name, array in batch.items()}


def _concatenate(pieces: Sequence[dict]) -> dict:
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
