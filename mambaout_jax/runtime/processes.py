# SPDX-License-Identifier: Apache-2.0
"""What one process of a run does for all of them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def in_first_process(action: Callable[[], None]) -> None:
    """Calls `action` in the first process; the others wait for it. Every process must come here.

    Raises:
        Exception: what `action` raised, in the first process.
        RuntimeError: it raised there, in the others.
    """
    error = None
    if jax.process_index() == 0:
        try:
            action()
        except Exception as raised:
            error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
        if failed and error is None:
            error = RuntimeError("the first process of this run stops, and says why")
    if error is not None:
        raise error
