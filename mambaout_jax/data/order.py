# SPDX-License-Identifier: Apache-2.0
"""The order of training examples whose batches hold one group each, as a function of position.

mmdet 3.3 batches landscape and portrait images apart, for padding to be small (its
`AspectRatioBatchSampler`); which batches come depends there on the state of an iterator. Here the
group of batch k and the examples in it follow from the seed and k alone.
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

_LOG = logging.getLogger("mambaout_jax")


class GroupedOrder(grain.MapDataset):
    """The number of the example at each position of endless batches, of one group each.

    An epoch has round(N / batch_size) batches of N examples. They are shared out among the groups
    in proportion to their sizes (largest remainders first, at least one for each group) and
    shuffled anew in every epoch. Each group is an endless sequence of its own, in which each pass
    is a new permutation: its batches take the next batch_size of it. With one group only this is
    the order of `MapDataset.range(N).shuffle(seed)`.

    Args:
        groups: a number for each example.
        batch_size: examples of a batch, over all processes.
        seed: fixes everything.
    """

    def __init__(self, groups: Sequence[int], batch_size: int, seed: int):
        super().__init__()
        numbers = np.asarray(groups)
        members: list[Any] = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
        self._batch_size, self._seed = batch_size, seed
        self._shares = batch_shares([len(one) for one in members], batch_size)
        # Grain adds the number of the pass to a seed: those of groups are far apart.
        more = np.random.SeedSequence(seed).generate_state(len(members)).tolist()
        self._sequences: list[Any] = [
            grain.MapDataset.source(one).shuffle(seed=own)
            for one, own in zip(members, [seed, *more], strict=False)
        ]
        for number, one, share in zip(np.unique(numbers), members, self._shares, strict=True):
            if len(one) < batch_size:
                _LOG.warning(
                    "group %s of the training examples has %d, fewer than a batch of %d: each is "
                    "read %.3g times an epoch", number, len(one), batch_size,
                    share * batch_size / len(one),
                )  # fmt: skip

    def __len__(self) -> int:
        """Positions of an epoch; those of later epochs follow on."""
        return sum(self._shares) * self._batch_size

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return self.slice(position)
        batch, place = divmod(position, self._batch_size)
        epoch, slot = divmod(batch, sum(self._shares))
        groups, turns = _epoch(self._shares, self._seed, epoch)
        group = int(groups[slot])
        turn = epoch * self._shares[group] + int(turns[slot])  # batches of the group before this
        return int(self._sequences[group][turn * self._batch_size + place])


def batch_shares(sizes: Sequence[int], batch_size: int) -> tuple[int, ...]:
    """How many batches of an epoch each group has: by largest remainders, at least one."""
    quotas = np.asarray(sizes) / batch_size
    shares = np.floor(quotas).astype(int)
    missing = round(sum(sizes) / batch_size) - int(shares.sum())
    shares[np.argsort(shares - quotas, kind="stable")[:missing]] += 1
    return tuple(np.maximum(shares, 1).tolist())


@functools.lru_cache(maxsize=16)  # threads read around the end of an epoch, or of several sets
def _epoch(
    shares: tuple[int, ...], seed: int, epoch: int
) -> tuple[Int[np.ndarray, "batches"], Int[np.ndarray, "batches"]]:
    """Of each batch of an epoch: its group, and how many of that group came before it."""
    groups = np.repeat(np.arange(len(shares)), shares)
    np.random.default_rng((seed, epoch)).shuffle(groups)
    turns = np.empty_like(groups)
    for group, share in enumerate(shares):
        turns[groups == group] = np.arange(share)
    return groups, turns
