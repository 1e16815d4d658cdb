# SPDX-License-Identifier: Apache-2.0
"""A folder and its mirror in a bucket: what is there after a kill at any moment."""

import contextlib
import logging
import shutil
import time

import pytest

from mambaout_jax.runtime import bucket as bucket_file
from mambaout_jax.runtime import mirror as mirror_file
from mambaout_jax.runtime.bucket import Bucket, BucketError
from mambaout_jax.runtime.bucket_lock import BucketLock
from mambaout_jax.runtime.mirror import Mirror, complete_steps

ROOT = "runs/a/"
LOCK = f"{ROOT}run.lock"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    retries = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    context = {"gcs_request_retries": retries, "s3_request_retries": retries}
    monkeypatch.setattr(bucket_file, "_CONTEXT", context)
    monkeypatch.setattr(mirror_file, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
def started(bucket_server, tmp_path):
    """Makes a `Mirror` whose lock is held, as the same command does at every start."""
    locks = []

    def start(scheme="gs"):
        bucket_server.refuse = lambda method, name: None
        bucket_server.objects.pop(LOCK, None)  # the run before was killed
        bucket_server.generations.pop(LOCK, None)
        bucket = Bucket(f"{scheme}://bucket/runs/a")
        locks.append(BucketLock(bucket))
        locks[-1].acquire()
        mirror = Mirror(bucket, locks[-1], tmp_path / "staging")
        mirror.fill()
        bucket_server.requests.clear()
        return mirror

    yield start
    for lock in locks:
        lock._released.set()


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def save(folder, step, text=""):
    """Metrics up to a step, and its checkpoint, which gets its name when it is complete."""
    write(folder, "metrics.jsonl", "".join(f"{number}\n" for number in range(1, step + 1)))
    target = folder / "checkpoints" / str(step)
    part = target.with_name(f"{step}.orbax-checkpoint-tmp-0")
    for name in ("_METADATA", "meta/data.json", "state/d/0", "state/manifest"):
        write(part, name, f"{name} {step} {text}")
    part.rename(target)


def remove(folder, step):
    path = folder / "checkpoints" / str(step)
    shutil.rmtree(path.rename(path.with_name(f"{step}.orbax-checkpoint-tmp-deleted")))


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def mirrored(server):
    """What the bucket holds of the run, but the lock."""
    found = {name.removeprefix(ROOT): data for name, data in server.objects.items()}
    return {name: data for name, data in found.items() if name != "run.lock"}


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_the_bucket_becomes_like_the_folder_and_the_next_folder_like_the_bucket(
    scheme, started, bucket_server
):
    mirror = started(scheme)
    write(mirror.folder, "config.json", "{}")
    write(mirror.folder, "figures/confusion.png", "picture")
    save(mirror.folder, 10)
    save(mirror.folder, 20)
    expected = contents(mirror.folder)
    # What passes, and this machine's own lock, are not of the run.
    for name in ("config.json.part", "checkpoints/30.orbax-checkpoint-tmp-1/x", "run.lock"):
        write(mirror.folder, name, "")
    mirror.sync()
    assert mirrored(bucket_server) == expected
    again = started(scheme)
    del expected["figures/confusion.png"]  # it is not needed here, and stays there
    assert contents(again.folder) == expected
    again.sync()
    assert bucket_server.changes == []
    assert "figures/confusion.png" in mirrored(bucket_server)


def test_small_files_go_first_and_meta_data_of_a_checkpoint_last(started, bucket_server):
    mirror = started()
    for step in (10, 20):
        save(mirror.folder, step)
    mirror.sync()
    names = [name.removeprefix(ROOT) for _, name in bucket_server.changes]
    assert names[0] == "metrics.jsonl"
    assert [name.split("/")[1] for name in names[1:]] == ["20"] * 4 + ["10"] * 4  # newest first
    assert names[4] == "checkpoints/20/meta/data.json"
    assert names[8] == "checkpoints/10/meta/data.json"


def test_only_what_has_changed_is_written_again(started, bucket_server):
    mirror = started()
    save(mirror.folder, 10)
    write(mirror.folder, "log.txt", "one")
    mirror.sync()
    bucket_server.requests.clear()
    mirror.sync()
    assert bucket_server.requests == []
    write(mirror.folder, "log.txt", "one two")
    mirror.sync()
    assert bucket_server.changes == [("PUT", f"{ROOT}log.txt")]
    assert mirrored(bucket_server)["log.txt"] == b"one two"


def test_an_old_checkpoint_goes_by_its_meta_data_first_and_after_the_new_one(
    started, bucket_server
):
    mirror = started()
    save(mirror.folder, 10)
    mirror.sync()
    bucket_server.requests.clear()
    remove(mirror.folder, 10)
    mirror.sync()  # nothing newer is there yet: something else has emptied the folder
    assert bucket_server.changes == []
    save(mirror.folder, 20)
    mirror.sync()
    changes = [(method, name.removeprefix(ROOT)) for method, name in bucket_server.changes]
    assert changes[4] == ("PUT", "checkpoints/20/meta/data.json")
    assert changes[5] == ("DELETE", "checkpoints/10/meta/data.json")
    assert len(changes) == 9
    assert complete_steps(mirrored(bucket_server)) == [20]


@pytest.mark.parametrize("kill", range(24))
def test_after_a_kill_at_any_moment_the_bucket_holds_a_state_to_resume_from(
    kill, started, bucket_server
):
    mirror, saved = started(), {}
    changes = iter(range(1000))
    bucket_server.refuse = lambda method, name: (
        403 if method in ("PUT", "DELETE") and name != LOCK and next(changes) >= kill else None
    )
    for step in (10, 20, 30, 40):
        save(mirror.folder, step)
        saved[step] = contents(mirror.folder / "checkpoints" / str(step))
        if step > 20:
            remove(mirror.folder, step - 20)
        with contextlib.suppress(BucketError):  # from the kill on nothing gets there any more
            mirror.sync()
    resumed = started()
    steps = sorted(int(path.name) for path in resumed.folder.glob("checkpoints/*"))
    # Each writes the metrics and 4 files, from the third on 4 deletions, too.
    whole = [last for last in (5, 10, 15, 24) if last <= kill]
    assert (steps[-1] if steps else 0) == 10 * len(whole)
    for step in steps:
        assert contents(resumed.folder / "checkpoints" / str(step)) == saved[step]
    if steps:
        lines = (resumed.folder / "metrics.jsonl").read_text().split()
        assert len(lines) >= steps[-1]
    halves = {name for name in mirrored(bucket_server) if name.startswith("checkpoints/")}
    assert halves == {name for name in contents(resumed.folder) if name.startswith("checkpoints/")}


def test_a_checkpoint_that_was_set_aside_makes_room_for_another_of_its_step(started, bucket_server):
    mirror = started()
    save(mirror.folder, 10, "damaged")
    mirror.sync()
    mirror = started()
    aside = mirror.folder / "checkpoints" / "unreadable"
    aside.mkdir()
    (mirror.folder / "checkpoints" / "10").rename(aside / "10")
    mirror.sync()
    assert mirrored(bucket_server)["checkpoints/unreadable/10/state/d/0"] == b"state/d/0 10 damaged"
    save(mirror.folder, 10, "sound")
    bucket_server.requests.clear()
    mirror.sync()
    first, last = [
        (method, name.removeprefix(ROOT))
        for method, name in bucket_server.changes
        if name.endswith("data.json")
    ]
    assert (first, last) == (
        ("DELETE", "checkpoints/10/meta/data.json"), ("PUT", "checkpoints/10/meta/data.json"),
    )  # fmt: skip
    assert mirrored(bucket_server)["checkpoints/10/state/d/0"] == b"state/d/0 10 sound"
    # The next one that is set aside does not take the first one's name.
    assert (started().folder / "checkpoints" / "unreadable" / "10").is_dir()


def test_a_checkpoint_that_the_run_deletes_meanwhile_is_uploaded_whole(started, bucket_server):
    mirror = started()
    save(mirror.folder, 10)
    expected = contents(mirror.folder)

    def delete_once(method, name):
        if (mirror.folder / "checkpoints" / "10").exists() and "/10/" in name:
            remove(mirror.folder, 10)

    bucket_server.refuse = delete_once
    mirror.sync()
    assert mirrored(bucket_server) == expected


def test_names_that_are_no_files_are_left_alone(started, bucket_server):
    odd = ("", "checkpoints/", "checkpoints/7/meta/", "checkpoints/../../x", "other/config.json")
    for name in (*odd, "checkpoints/7/meta/data.json", "model.safetensors", "notes.txt"):
        bucket_server.put(f"{ROOT}{name}", b"x")
    mirror = started()
    assert contents(mirror.folder) == {"checkpoints/7/meta/data.json": b"x", "notes.txt": b"x"}
    mirror.sync()
    assert bucket_server.changes == []


def test_a_failing_bucket_is_told_once_and_tried_again(started, bucket_server, caplog):
    mirror = started()
    write(mirror.folder, "config.json", "{}")
    bucket_server.refuse = lambda method, name: 403 if name != LOCK else None
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        mirror._thread.start()
        deadline = time.monotonic() + 10
        while len(bucket_server.requests) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        bucket_server.refuse = lambda method, name: None
        mirror.__exit__(None, None, None)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("copy the files afterwards. The run goes on and tries again")
    assert mirrored(bucket_server) == {"config.json": b"{}"}
    assert not mirror.folder.exists()


@pytest.mark.parametrize("error", [None, ValueError("the loss is wrong")])
def test_what_cannot_be_uploaded_at_the_end_is_kept_and_said(error, started, bucket_server):
    mirror = started()
    save(mirror.folder, 10)
    expected = contents(mirror.folder)
    bucket_server.refuse = lambda method, name: 403 if name != LOCK else None
    mirror._thread.start()
    kept = mirror.folder.with_name("staging_not_uploaded_1")
    with pytest.raises(BucketError) as failure:
        mirror.__exit__(None, error, None)
    start = "The last state" if error is None else "the loss is wrong. Besides, the last state"
    assert str(failure.value).startswith(f"{start} of this run could not be uploaded: gs://bucket")
    assert f"`gcloud storage rsync --recursive {kept} gs://bucket/runs/a`" in str(failure.value)
    assert contents(kept) == expected
    started()
    assert contents(kept) == expected


def test_a_run_that_has_lost_its_lock_writes_nothing_more(started, bucket_server):
    mirror = started()
    save(mirror.folder, 10)
    bucket_server.put(LOCK, b"of another run")
    mirror._lock._renewed -= 61
    mirror._thread.start()
    with pytest.raises(BucketError, match="another run has taken gs://bucket/runs/a while"):
        mirror.__exit__(None, None, None)
    assert mirrored(bucket_server) == {}
    assert bucket_server.objects[LOCK] == b"of another run"
