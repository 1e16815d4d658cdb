# SPDX-License-Identifier: Apache-2.0
"""A long run: memory, handles and threads stay as they are, and nothing is compiled again."""

import os
import threading

import jax
import pytest
from support.tiny_run import get_config

from mambaout_jax.train import loop
from mambaout_jax.train.progress import Progress

pytestmark = [pytest.mark.slow, pytest.mark.long]

UPDATES, EVERY = 3_000, 250


class Soaked(Progress):
    """Looks at its own process from time to time."""

    seen: list  # (update, kilobytes, handles, threads, compilations, seconds)
    compilations = 0

    def advance(self, step):
        super().advance(step)
        if step % EVERY == 0:
            with open("/proc/self/statm") as file:
                kilobytes = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
            handles = len(os.listdir("/proc/self/fd"))
            Soaked.seen.append(
                (step, kilobytes, handles, threading.active_count(), Soaked.compilations)
            )


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts handles in /proc")
def test_three_thousand_updates_leave_nothing_behind(tmp_path, monkeypatch):
    def count(name, _, **__):
        Soaked.compilations += name.endswith("backend_compile_duration")

    Soaked.seen = []
    monkeypatch.setattr(loop, "Progress", Soaked)
    jax.monitoring.register_event_duration_secs_listener(count)
    config = get_config()
    config.batch_size = 8
    config.schedule.total_steps = UPDATES
    config.evaluation.every_steps = config.checkpoint.every_steps = 1_000
    config.checkpoint.keep = 1
    try:
        metrics = loop.train(config, tmp_path / "run")
    finally:
        jax.monitoring.clear_event_listeners()
    assert metrics["eval/top1"] > 90

    # From the second evaluation on, with its save, everything has happened once.
    settled = [line for line in Soaked.seen if line[0] > 1_000]
    assert len(settled) == 8
    _, kilobytes, handles, threads, compilations = zip(*settled, strict=True)
    assert len(set(compilations)) == 1, Soaked.seen
    assert max(kilobytes) - kilobytes[0] < 64 * 1024, Soaked.seen
    assert max(handles) - handles[0] <= 8, Soaked.seen
    assert max(threads) - threads[0] <= 8, Soaked.seen
