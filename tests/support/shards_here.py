# SPDX-License-Identifier: Apache-2.0
"""Shards written in the test's own process: one spawned for them takes most of a test's time."""


def write_shards(shards, write, check, progress, processes):
    """As `resumable.write_shards`, one after the other."""
    found = {}
    for split, of_split in shards.items():
        found[split] = []
        for path, members in of_split.items():
            if not path.exists():
                write(path, members)
            found[split].append(check(path, members))
    return found
