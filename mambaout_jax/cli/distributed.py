# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes: how they find each other, and which one of them speaks."""

import argparse


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

    Raises:
        ValueError: `cluster` is malformed, or no cluster was found.
    """
    if cluster is None:
        return
    import jax

    try:
        if cluster:
            address, count, index = cluster.split(",")
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(
            f"--distributed={cluster} finds no other process ({error}); give it "
            "HOST:PORT,COUNT,INDEX: the address of process 0, how many processes there are, and "
            "which of them this one is, from 0"
        ) from error


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes results."""
    import jax

    return jax.process_index() == 0
