# SPDX-License-Identifier: Apache-2.0
"""The log of a run: what goes there, and what only there."""

import logging

import pytest
from absl import logging as absl_logging

from mambaout_jax.train.log import log_file


def log_as_orbax(level, message):
    arguments = ("absl", level, "/lib/orbax/checkpoint/future.py", 1, message, (), None)
    logging.getLogger("absl").handle(logging.LogRecord(*arguments))


def test_orbax_is_heard_in_the_file_alone(tmp_path, caplog):
    with log_file(tmp_path):
        assert list(tmp_path.iterdir()) == []  # until there is something to log
        assert not logging.getLogger("mambaout_jax").handlers  # else Python shows nothing by itself
        log_as_orbax(logging.ERROR, "a thread failed")
        log_as_orbax(logging.INFO, "a thread began")
        absl_logging.warning("of somebody else")
        logging.getLogger("mambaout_jax").warning("of ours: %d", 3)
        logging.getLogger("mambaout_jax").info("a detail")
    logging.getLogger("mambaout_jax").warning("afterwards")
    log_as_orbax(logging.ERROR, "afterwards, too")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "ERROR: a thread failed",
        "WARNING: of ours: 3",
    ]
    said = ["of somebody else", "of ours: 3", "afterwards", "afterwards, too"]
    assert [message for message in caplog.messages if message != "a detail"] == said


@pytest.mark.parametrize("place", ["full", "missing", "folder"])
def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, place, capfd, caplog):
    if place == "full":
        (tmp_path / "log.txt").symlink_to("/dev/full")
    if place == "folder":
        (tmp_path / "log.txt").mkdir()
    with log_file(tmp_path / "missing" if place == "missing" else tmp_path):
        log_as_orbax(logging.ERROR, "a thread failed")
        logging.getLogger("mambaout_jax").warning("of ours")
    assert caplog.messages == ["of ours"]
    assert capfd.readouterr() == ("", "")
