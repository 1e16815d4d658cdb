# SPDX-License-Identifier: Apache-2.0
"""Worker processes that end with the process that has started them."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.process import BaseProcess


def begin_worker() -> None:
    """To be called first in a worker process: Ctrl-C is for its parent, whose end is its own.

    A worker that waits at a queue would wait forever when its parent is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def quieten_resource_tracker() -> None:
    """Keeps Python from warning of the shared memory that a killed worker leaves: it is freed.

    To be called before the first worker starts.
    """
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:  # which the process that tracks the memory is started with
        sys.warnoptions.append(option)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
