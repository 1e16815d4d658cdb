# SPDX-License-Identifier: Apache-2.0
"""The lock of a run in a bucket: an object that only conditional writes change.

It says when its owner has last renewed it, by the owner's clock. Clocks of machines differ, so a
lock that looks stale is watched for a while before it is taken: the conditional write that takes it
succeeds only where nobody has renewed or taken it meanwhile.
"""

import dataclasses
import json
import threading
import time

from mambaout_jax.runtime.bucket import Bucket, BucketError
from mambaout_jax.runtime.lock import (
    FILE_NAME,
    STALE_SECONDS,
    Lock,
    Owner,
    Standing,
)


class BucketLock(Lock):
    """The right to write below an address.

    Attributes:
        lost: whether another run has taken it.
    """

    def __init__(self, bucket: Bucket):
        super().__init__(bucket.address)
        self._bucket = bucket
        self._generation = b""
        self._renewed = 0.0
        self._one_at_a_time = threading.Lock()
        self.lost = False

    def confirm(self) -> None:
        """Returns where this run certainly holds the lock; renews it if that is long ago.

        Raises:
            BucketError: another run has it, or it cannot be renewed.
        """
        if abs(time.time() - self._renewed) > STALE_SECONDS / 2:
            self._renew_once()
        if self.lost:
            raise BucketError(
                f"another run has taken {self._place} while this one could not reach it; nothing "
                "more of this run is written there"
            )

    def _look(self) -> Standing | None:
        found = self._bucket.read(FILE_NAME)
        return None if found.data is None else Standing(Owner.read(found.data), found)

    def _age(self, standing: Standing) -> float:
        try:
            return time.time() - float(json.loads(standing.mark.data)["renewed"])
        except (ValueError, TypeError, LookupError):  # damaged; it is watched before it is taken
            return float("inf")

    def _take(self, owner: Owner, stale: Standing | None) -> bool:
        found = self._bucket.read(FILE_NAME) if stale is None else stale.mark
        if stale is None and found.data is not None:
            return False
        if stale is not None:
            self._watch(stale)
        return self._put(owner, found.generation)

    def _renew(self) -> bool:
        try:
            self._renew_once()
        except BucketError:  # the next renewal may succeed
            return True
        return not self.lost

    def _remove(self, owner: Owner) -> None:
        with self._one_at_a_time:
            if not self.lost:
                self._bucket.swap(FILE_NAME, None, self._generation)

    def _renew_once(self) -> None:
        with self._one_at_a_time:
            owner = self._owner
            if owner is None or self.lost or self._put(owner, self._generation):
                return
            found = self._bucket.read(FILE_NAME)
            deleted = found.data is None  # by hand
            self.lost = not (deleted and self._put(owner, found.generation))

    def _put(self, owner: Owner, generation: bytes) -> bool:
        """Writes the lock over that generation; False where it is another's by now."""
        now = time.time()
        data = json.dumps({**dataclasses.asdict(owner), "renewed": now}).encode()
        written = self._bucket.swap(FILE_NAME, data, generation)
        if written is None:  # or it is written, and the answer got lost
            found = self._bucket.read(FILE_NAME)
            if found.data is None or Owner.read(found.data) != owner:
                return False
            written = found.generation
        self._generation, self._renewed = written, now
        return True
