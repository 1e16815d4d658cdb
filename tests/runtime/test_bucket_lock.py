# SPDX-License-Identifier: Apache-2.0
"""One run per address: as for directories, by conditional writes alone."""

import dataclasses
import json
import logging
import os
import re
import socket
import subprocess
import time

import pytest

from mambaout_jax.runtime import lock
from mambaout_jax.runtime.bucket import Bucket, BucketError
from mambaout_jax.runtime.bucket_lock import BucketLock
from mambaout_jax.runtime.lock import Owner

NAME = "runs/a/run.lock"


@pytest.fixture(params=["gs://bucket/runs/a", "s3://bucket/runs/a"])
def bucket(request, bucket_server, monkeypatch):
    monkeypatch.setattr(lock, "_WATCH_SECONDS", 0)
    return Bucket(request.param)


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def content(age=0.0, **changes):
    """A lock of another owner, renewed `age` seconds ago."""
    owner = dataclasses.replace(Owner.here(), token="other", **changes)
    return json.dumps({**dataclasses.asdict(owner), "renewed": time.time() - age}).encode()


def holder(server):
    return json.loads(server.objects[NAME])["token"]


def test_a_lock_is_an_object_that_goes_when_it_is_released(bucket, bucket_server):
    held = BucketLock(bucket)
    held.check()
    assert bucket_server.objects == {}
    held.acquire()
    found = json.loads(bucket_server.objects[NAME])
    assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
    before = dict(bucket_server.objects)
    for attempt in (BucketLock(bucket).check, BucketLock(bucket).acquire):
        with pytest.raises(RuntimeError) as error:
            attempt()
        assert str(error.value) == (
            f"{bucket.address} is in use by process {os.getpid()} on {socket.gethostname()}, since "
            f"{found['since']}: wait until that run has ended, stop it, or train into another "
            "directory"
        )
    assert bucket_server.objects == before
    held.confirm()
    held.release()
    assert bucket_server.objects == {}
    BucketLock(bucket).check()


def test_a_dead_process_holds_nothing_on_its_own_host(bucket, bucket_server, ended, monkeypatch):
    monkeypatch.setattr(lock.time, "sleep", None)  # nothing is watched
    bucket_server.put(NAME, content(pid=ended))
    BucketLock(bucket).check()
    BucketLock(bucket).acquire()
    assert json.loads(bucket_server.objects[NAME])["pid"] == os.getpid()


@pytest.mark.parametrize("age", [-3600.0, 0.0, 119.0])
def test_an_owner_out_of_sight_is_believed_while_it_renews(bucket, bucket_server, age):
    bucket_server.put(NAME, content(age, host="elsewhere"))
    said = f"on elsewhere, since .*sign of life {max(age, 0):.0f} s ago; .* that is 120 s ago$"
    with pytest.raises(RuntimeError, match=said):
        BucketLock(bucket).acquire()
    assert holder(bucket_server) == "other"


@pytest.mark.parametrize("data", [content(121, host="elsewhere"), b"", b"{", b'{"pid": 1}', b"7"])
def test_a_lock_that_looks_stale_is_watched_and_taken(bucket, bucket_server, data, caplog):
    bucket_server.put(NAME, data)
    taker = BucketLock(bucket)
    taker.acquire()
    assert holder(bucket_server) == taker._owner.token
    assert caplog.messages == [f"a lock in {bucket.address} looks stale; watching it for a while"]


def test_a_lock_that_is_renewed_while_it_is_watched_stays(bucket, bucket_server, monkeypatch):
    # Its owner's clock is behind ours.
    bucket_server.put(NAME, content(500, host="elsewhere"))
    renew = lambda _: bucket_server.put(NAME, content(100, host="elsewhere"))  # noqa: E731
    monkeypatch.setattr(lock.time, "sleep", renew)
    with pytest.raises(RuntimeError, match="in use by process"):
        BucketLock(bucket).acquire()
    assert holder(bucket_server) == "other"


def test_of_two_that_find_the_same_stale_lock_one_takes_it(bucket, bucket_server):
    bucket_server.put(NAME, content(500, host="elsewhere"))
    one, other = BucketLock(bucket), BucketLock(bucket)
    stale = one._find_stale(), other._find_stale()
    owners = Owner.here(), Owner.here()
    assert one._take(owners[0], stale[0])
    assert not other._take(owners[1], stale[1])
    assert holder(bucket_server) == owners[0].token


def test_of_two_that_find_no_lock_one_takes_it(bucket, bucket_server):
    one, other = BucketLock(bucket), BucketLock(bucket)
    assert one._find_stale() is None
    assert other._find_stale() is None
    owners = Owner.here(), Owner.here()
    assert one._take(owners[0], None)
    assert not other._take(owners[1], None)
    assert holder(bucket_server) == owners[0].token


def test_a_write_whose_answer_got_lost_is_believed(bucket, bucket_server, monkeypatch):
    swap = bucket.swap
    monkeypatch.setattr(bucket, "swap", lambda *arguments: swap(*arguments) and None)
    held = BucketLock(bucket)
    held.acquire()
    held._renew_once()
    held.confirm()
    monkeypatch.undo()
    held.release()
    assert bucket_server.objects == {}


def test_the_owner_renews_the_lock_and_says_when_it_has_lost_it(
    bucket, bucket_server, monkeypatch, caplog
):
    monkeypatch.setattr(lock, "RENEWAL_SECONDS", 0.01)
    held = BucketLock(bucket)
    held.acquire()
    first, deadline = bucket_server.generations[NAME], time.monotonic() + 10
    while bucket_server.generations[NAME] < first + 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        bucket_server.put(NAME, content())
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
    said = f"another run has taken {bucket.address}"
    assert caplog.messages == [f"{said}/run.lock, where this one still writes"]
    with pytest.raises(BucketError, match=f"^{re.escape(said)} while this one could not reach it"):
        held.confirm()
    held.release()
    assert holder(bucket_server) == "other"


def test_a_lock_that_was_not_renewed_for_long_is_confirmed_first(bucket, bucket_server):
    held = BucketLock(bucket)
    held.acquire()
    before = bucket_server.generations[NAME]
    held.confirm()
    assert bucket_server.generations[NAME] == before
    held._renewed -= 61  # the machine has slept
    held.confirm()
    assert bucket_server.generations[NAME] == before + 1
    del bucket_server.objects[NAME], bucket_server.generations[NAME]
    held._renewed -= 61
    held.confirm()  # deleted by hand: made again
    assert holder(bucket_server) == held._owner.token
    bucket_server.put(NAME, content())
    held._renewed -= 61
    with pytest.raises(BucketError, match="another run has taken"):
        held.confirm()
    held.release()
