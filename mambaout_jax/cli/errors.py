# SPDX-License-Identifier: Apache-2.0
"""What the user reads after a mistake: one line, and the exit code that goes with it."""

import argparse
import difflib
import dis
import errno
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mambaout_jax.cli.distributed import leave, of_a_lost_process
from mambaout_jax.runtime.streams import complain, is_broken, is_full

FAULT = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED = 130  # as shells say it: 128 and the number of the signal, here SIGINT
UNREAD = 141  # likewise, SIGPIPE

_WRONG_USAGE = (
    ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError
)  # fmt: skip
# Of these the message of another library, or of the system, is for the user too: a full disk, too
# little memory, no such device, a package that is not installed.
_TELLING = (OSError, RuntimeError, ImportError)
_PACKAGE = Path(__file__).parent.parent


def report(error: Exception) -> int:
    """Prints an error as one line on the standard error and returns the exit code.

    What this package raises explains itself. Any other exception was not foreseen and is reported
    as a fault of the program.

    Returns:
        2 if the command was wrong (a value, a path), 1 if it failed, 70 if the program is at fault,
        141 if its output was no longer read, of which nothing is printed.

    Raises:
        Exception: `error` itself, where the environment variable MAMBAOUT_TRACEBACK is set.
    """
    if isinstance(error, BrokenPipeError) and is_broken(sys.stdout):
        return UNREAD
    if os.environ.get("MAMBAOUT_TRACEBACK"):
        raise error
    if isinstance(error, OSError) and (
        is_broken(sys.stdout) or (_may_be_of_a_stream(error) and is_full(sys.stdout))
    ):
        complain(f"error: standard output cannot be written to: {error.strerror}")
        return 1
    if isinstance(error, MemoryError):
        complain("error: there is not enough memory; try smaller batches, images or models")
        return 1
    if lost := of_a_lost_process(error):
        complain(f"error: {lost}")
        return 1
    if not _explains_itself(error):
        complain(
            f"error: this is a fault of mambaout, not of your command: {type(error).__name__}: "
            f"{' '.join(str(error).split())}; MAMBAOUT_TRACEBACK=1 before the same command shows "
            "where it arose: please report that"
        )
        return FAULT
    complain(f"error: {error}")
    return 2 if isinstance(error, _WRONG_USAGE) else 1


def run_training(train: Callable[[], None]) -> int:
    """Runs what trains and returns the exit code: 0, or 75 where it was asked to stop and saved.

    Where the state could not be written the program ends at once: Python would wait for threads of
    Orbax, which may hang for five minutes.
    """
    from mambaout_jax.runtime.bucket import BucketError
    from mambaout_jax.runtime.checkpoint import SaveError
    from mambaout_jax.train.preemption import EXIT_CODE, Preempted

    try:
        train()
    except Preempted as preempted:
        complain(str(preempted))
        return EXIT_CODE
    except (SaveError, BucketError) as error:
        leave(report(error))
    return 0


def _may_be_of_a_stream(error: OSError) -> bool:
    """Whether the device is full and no file is named, as where something is printed."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _explains_itself(error: Exception) -> bool:
    """Whether a message was written for the user: by a `raise` of this package, or of its kind."""
    if isinstance(error, _TELLING) and not isinstance(error, RecursionError):
        return True
    if type(error).__module__.startswith("mambaout_jax."):
        return True
    if type(error.__cause__).__name__ == "_RemoteTraceback":  # of another process of this program
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return True
    code = trace.tb_frame.f_code
    ours = Path(code.co_filename).is_relative_to(_PACKAGE)
    return ours and dis.opname[code.co_code[trace.tb_lasti]] in ("RAISE_VARARGS", "RERAISE")


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """All options of a parser, such as "--workdir"."""
    return re.findall(r"--[a-z-]+", parser.format_usage())  # argparse has no public list of them


def reject_unknown(parser: argparse.ArgumentParser, rest: list[str]) -> None:
    """Exits with code 2 if there is an argument that the verb does not take.

    Args:
        parser: The verb's parser.
        rest: What it did not recognise. Where the verb has --config, settings and their values are
            among them; `config_file.override` checks those.
    """
    known = option_names(parser)
    takes_settings = "--config" in known
    for argument in rest:
        if takes_settings and (argument.startswith("--config.") or not argument.startswith("-")):
            continue
        close = difflib.get_close_matches(argument.split("=")[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"there is no argument {argument}{hint}")


def positive(text: str) -> int:
    """The type of an argument that counts something.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or below 1.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def positive_number(text: str) -> float:
    """The type of an argument that measures something.

    Raises:
        argparse.ArgumentTypeError: it is not a finite number above 0.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return number
