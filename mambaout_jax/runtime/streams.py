# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that may be closed, full, or a pipe that nobody reads any more."""

import contextlib
import io
import logging
import os
import select
import sys
from typing import Any

_LOG = logging.getLogger("mambaout_jax")


def open_missing_streams() -> None:
    """Gives a program that was started with closed standard streams the null device for them.

    Without it the next files that it opens would get their numbers, and what libraries print would
    end up in these. Call it before anything else.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say(text: str) -> None:
    """Prints a line of a program that goes on where nobody can read it; a warning tells, once."""
    try:
        print(text, flush=True)
    except OSError as error:
        discard(sys.stdout)
        _LOG.warning("standard output cannot be written to (%s); the work goes on", error.strerror)


def complain(text: str) -> None:
    """Prints a line on standard error, where that is possible."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def is_broken(stream: Any) -> bool:
    """Whether what was printed last cannot be written, or nobody is left to read a pipe."""
    try:
        stream.flush()
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except io.UnsupportedOperation:  # a stream of Python's own, without a file
        return False
    except OSError:
        return True


def is_full(stream: Any) -> bool:
    """Whether nothing more can be written; prints an empty line where it can.

    What did not fit into the stream's buffer may be gone after an error, so that `is_broken` finds
    nothing to write.
    """
    try:
        print(file=stream, flush=True)
    except OSError:
        return True
    return False


def discard(stream: Any) -> None:
    """Sends all that is, was or will be printed on a stream to the null device.

    The rest in its buffer would else fail again when Python ends.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except io.UnsupportedOperation:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is stream:
                setattr(sys, name, io.StringIO())
    finally:
        os.close(null)
    with contextlib.suppress(OSError):
        stream.flush()
