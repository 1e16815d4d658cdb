# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: how they find each other, which one of them speaks, how they end.

None of them outlives another for long. One that fails ends at once (`leave`), so that the others
lose it: a collective of theirs raises, or JAX ends them as soon as a process has given no sign of
life for `HEARTBEAT_SECONDS`, from a thread of its own and without Python. What is left to say then
is said by a shell that waits for the end of its process, `_Witness`.
"""

import argparse
import atexit
import contextlib
import os
import re
import subprocess
import sys
from typing import NoReturn

# JAX would give 100 s, in which all other accelerators wait. Heartbeats come from threads of XLA,
# which neither a compilation nor Python's lock holds up.
HEARTBEAT_SECONDS = 60

_NOT_FOUND = (
    "error: the processes of this run did not find each other in time, and JAX says above what was "
    "missing: start all of them within five minutes, at an address that all machines can reach"
)
_AGAIN = (
    "the output of the one that ended first says why. Start the same command on all of them again: "
    "a training resumes at its last checkpoint"
)
# What collectives, barriers and the coordination service of JAX say of a process that is gone.
_LOST = re.compile(
    r"Gloo|NCCL|[Cc]oordination ?[Ss]ervice|heartbeat|[Bb]arrier|UNAVAILABLE|DEADLINE_EXCEEDED"
)
# The pipe ends with the process that holds its other end.
_LISTEN = """words=
while read -r line; do words=$line; done
[ -z "$words" ] || printf '%s\\n' "$words" >&2"""

_witness: "_Witness | None" = None


def add_distributed_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed, whose value `join_processes` takes."""
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="",
        metavar="HOST:PORT,COUNT,INDEX",
        help="join the other processes of this run: found automatically on Slurm, Open MPI, Cloud "
        "TPU and Kubernetes, otherwise at the given address",
    )


def join_processes(cluster: str | None) -> None:
    """Joins the other processes of a run; must come before any other call of JAX.

    Args:
        cluster: "HOST:PORT,COUNT,INDEX"; "": JAX asks the cluster's own environment; None: this
            process runs alone and nothing happens.

    Where the others do not come within five minutes, JAX ends this process.

    Raises:
        ValueError: `cluster` is malformed, or no cluster was found.
    """
    if cluster is None:
        return
    import jax

    global _witness
    witness = _Witness(_NOT_FOUND)
    try:
        _initialize(cluster)
        if jax.process_count() > 1:
            witness.will_say(
                f"error: {_who()} was killed, or JAX ended it because another one is gone, and "
                f"says so above; {_AGAIN}"
            )
            _witness = witness
            atexit.register(_end_together)
    finally:
        if _witness is None:
            witness.dismiss()


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes results."""
    import jax

    return jax.process_index() == 0


def has_joined() -> bool:
    """Whether this process is one of several."""
    return _witness is not None


def of_a_lost_process(error: Exception) -> str | None:
    """What to tell of an error that only says that another process is gone; None of any other."""
    if not has_joined():
        return None
    import jax

    # Gloo's errors come as the first, those of Orbax's barriers as the last.
    kinds = (ValueError, RuntimeError, jax.errors.JaxRuntimeError, TimeoutError)
    cause: BaseException | None = error
    while cause is not None:  # a save that fails says so, and not why
        text = " ".join(str(cause).split())
        if type(cause) in kinds and _LOST.search(text):
            return f"{_who()} has lost another one ({text}); {_AGAIN}"
        cause = cause.__cause__
    return None


def leave(code: int) -> NoReturn:
    """Ends this process at once.

    Python would wait for its threads, and JAX for the other processes of the run, which wait for
    this one.
    """
    if _witness is not None:
        _witness.dismiss()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _initialize(cluster: str) -> None:
    import jax

    try:
        where: tuple = ()
        if cluster:
            address, count, index = cluster.split(",")
            where = address, int(count), int(index)
        jax.distributed.initialize(*where, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        raise ValueError(
            f"--distributed={cluster} finds no other process ({error}); give it "
            "HOST:PORT,COUNT,INDEX: the address of process 0, how many processes there are, and "
            "which of them this one is, from 0"
        ) from error


def _end_together() -> None:
    import jax

    jax.distributed.shutdown()  # which waits for the others, and may be what ends this process
    if _witness is not None:
        _witness.dismiss()


class _Witness:
    """A shell that tells what a process can no longer tell: the last words it was given, once the
    process has ended without `dismiss`, however it has ended.
    """

    def __init__(self, words: str):
        # A session of its own: Ctrl-C is not for the shell.
        self._shell = subprocess.Popen(
            ["sh", "-c", _LISTEN], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            start_new_session=True, text=True,
        )  # fmt: skip
        self.will_say(words)

    def will_say(self, words: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the shell
            print(words, file=self._shell.stdin, flush=True)

    def dismiss(self) -> None:
        self.will_say("")
        self._shell.communicate()


def _who() -> str:
    import jax

    return f"process {jax.process_index()} (of 0 to {jax.process_count() - 1})"
