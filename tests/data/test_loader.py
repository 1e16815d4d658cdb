# SPDX-License-Identifier: Apache-2.0
"""Order, resumption, padding and the ends of threads, on the digits and on counted images."""

import itertools
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.config import default_config
from mambaout_jax.data import loader
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.sets.sources import UnreadableImageError
from mambaout_jax.data.views.crops import EvaluationView, TrainingView
from mambaout_jax.preprocessing import Preprocessing


class Counted:
    """Flat images whose label is their index; the unreadable ones raise."""

    class_names = ("a", "b")
    num_classes = 2

    def __init__(self, length, unreadable=()):
        self._length, self._unreadable = length, frozenset(unreadable)

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if index in self._unreadable:
            raise UnreadableImageError(f"cannot read {index}.jpg: broken")
        return {"image": Image.new("L", (4, 4), index % 256), "label": index}


def loader_config(batch_size=12, **data):
    config = default_config()
    config.seed = 3
    config.batch_size = config.evaluation.batch_size = batch_size
    config.data.image_size, config.data.channels = 16, 1
    config.data.num_threads = 2
    config.data.update(data)
    return config


def train_batches(config, source, **part):
    return loader.train_batches(config, source, TrainingView(config), **part)


def evaluation_batches(config, source, **part):
    view = EvaluationView(Preprocessing.of(config.data))
    return loader.evaluation_batches(config, source, view, **part)


def first(batches, count):
    with batches:
        return list(itertools.islice(batches, count))


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for name in b:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def digits():
    return Digits("train")


@pytest.fixture(scope="module")
def reference(digits):
    """Forty global batches: a third of an epoch of random crops and flips."""
    return first(train_batches(loader_config(), digits), 40)


def test_train_batches_hold_what_they_promise(reference):
    for batch in reference:
        assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
            "image": ((12, 16, 16, 1), "uint8"),
            "label": ((12,), "int32"),
            "replaced": ((12,), "bool"),
        }
        assert not batch["replaced"].any()
    # Crops are random per example: hardly any two of the 480 views are equal.
    assert len({image.tobytes() for batch in reference for image in batch["image"]}) >= 470


@pytest.mark.parametrize("process_count", [2, 4])
def test_train_batches_are_the_same_for_any_process_count(digits, reference, process_count):
    parts = [
        first(
            train_batches(
                loader_config(), digits, process_index=index, process_count=process_count
            ),
            40,
        )
        for index in range(process_count)
    ]
    for step, want in enumerate(reference):
        for name in want:
            got = np.concatenate([part[step][name] for part in parts])
            np.testing.assert_array_equal(got, want[name])


@pytest.mark.parametrize(("num_threads", "prefetch_batches"), [(1, 1), (7, 3), (16, 4), (50, 1)])
def test_train_batches_are_the_same_for_any_threads(
    digits, reference, num_threads, prefetch_batches
):
    config = loader_config(num_threads=num_threads, prefetch_batches=prefetch_batches)
    assert_same(first(train_batches(config, digits), 40), reference)


@pytest.mark.parametrize("start_step", [1, 7, 31])
def test_train_batches_resume_at_any_step(digits, reference, start_step):
    batches = train_batches(loader_config(), digits, start_step=start_step)
    assert_same(first(batches, 40 - start_step), reference[start_step:])


def test_train_batches_resume_across_epochs_and_process_counts():
    # 30 examples in batches of 12: epochs end inside batches.
    config, source = loader_config(), Counted(30)
    want = first(train_batches(config, source), 20)
    halves = [
        first(train_batches(config, source, start_step=13, process_index=i, process_count=2), 7)
        for i in range(2)
    ]
    for step in range(7):
        for name in ("image", "label"):
            np.testing.assert_array_equal(halves[0][step][name], want[13 + step][name][:6])
            np.testing.assert_array_equal(halves[1][step][name], want[13 + step][name][6:])


def test_train_batches_may_hold_one_example():
    config = loader_config(batch_size=1)
    want = np.concatenate(
        [batch["label"] for batch in first(train_batches(config, Counted(5)), 10)]
    )
    np.testing.assert_array_equal(np.sort(want.reshape(2, 5), axis=1), [range(5)] * 2)
    resumed = first(train_batches(config, Counted(5), start_step=7), 3)
    np.testing.assert_array_equal([batch["label"][0] for batch in resumed], want[7:])


def test_train_batches_follow_the_seed(digits, reference):
    config = loader_config()
    config.seed = 4
    other = first(train_batches(config, digits), 40)
    same = sum(
        int(np.array_equal(a["label"], b["label"])) for a, b in zip(other, reference, strict=True)
    )
    assert same == 0  # 12 of ten classes agree by chance once in 10^12


def test_train_batches_permute_every_epoch():
    config = loader_config(batch_size=10)
    batches = first(train_batches(config, Counted(35)), 35)  # ten epochs
    epochs = np.concatenate([batch["label"] for batch in batches]).reshape(10, 35)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(35), (10, 1)))
    assert len({epoch.tobytes() for epoch in epochs}) == 10


def test_train_batches_replace_unreadable_images(caplog):
    broken = {3, 4, 19}
    config = loader_config(batch_size=10)
    batches = first(train_batches(config, Counted(20, broken)), 6)  # three epochs
    labels = np.concatenate([batch["label"] for batch in batches])
    replaced = np.concatenate([batch["replaced"] for batch in batches])
    assert replaced.sum() == 3 * len(broken)
    # 3 and 4 become 5, 19 wraps to 0.
    np.testing.assert_array_equal(
        np.bincount(labels[replaced], minlength=20), 6 * np.eye(20)[5] + 3 * np.eye(20)[0]
    )
    assert sorted(caplog.messages) == sorted(
        f"cannot read {index}.jpg: broken; another image takes its place" for index in broken
    )


def test_train_batches_stop_where_nothing_is_readable(caplog):
    with (
        train_batches(loader_config(batch_size=10), Counted(20, range(20))) as batches,
        pytest.raises(UnreadableImageError, match=r"11 examples in a row.*disk reachable"),
    ):
        next(batches)


@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_evaluation_batches_hold_every_example_once(process_count):
    config = loader_config(batch_size=12)
    parts = [
        list(
            evaluation_batches(
                config, Counted(31), process_index=index, process_count=process_count
            )
        )
        for index in range(process_count)
    ]
    assert [len(part) for part in parts] == [3] * process_count
    for part in parts:
        for batch in part:
            assert batch["image"].shape == (12 // process_count, 16, 16, 1)
            assert batch["label"].dtype == np.int32
            padding = ~batch["mask"]
            assert not batch["image"][padding].any()
            assert not batch["label"][padding].any()
            # A flat image of value `index` stays flat whatever its size.
            shown = batch["label"][:, None, None, None] * np.ones((1, 16, 16, 1))
            np.testing.assert_array_equal(batch["image"], shown)
            np.testing.assert_array_equal(batch["index"], batch["label"])
    seen = np.concatenate([batch["label"][batch["mask"]] for part in parts for batch in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(31))


def test_evaluation_batches_need_no_padding_where_all_fits():
    batches = list(evaluation_batches(loader_config(batch_size=5), Counted(10)))
    assert len(batches) == 2
    assert all(batch["mask"].all() for batch in batches)
    np.testing.assert_array_equal(np.concatenate([b["label"] for b in batches]), np.arange(10))


def test_evaluation_batches_hold_examples_of_one_group_and_shape():
    groups = [index % 3 == 0 for index in range(20)]  # 7 wide ones, 13 narrow ones

    def view(example):
        shape = (2, 5) if example["label"] % 3 == 0 else (2, 3)
        return {"image": np.full(shape, example["label"] + 1)}

    found = []
    for part in range(2):
        batches = loader.evaluation_batches(
            loader_config(batch_size=4), Counted(20), view, groups=groups,
            process_index=part, process_count=2,
        )  # fmt: skip
        found.append(list(batches))
    assert [batch["image"].shape for batch in found[0]] == [(2, 2, 3)] * 4 + [(2, 2, 5)] * 2
    batches = [batch for part in found for batch in part]
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    np.testing.assert_array_equal(np.sort(seen), range(20))
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0, 0], (batch["index"] + 1) * batch["mask"])


def test_evaluation_batches_raise_for_unreadable_images():
    with (
        evaluation_batches(loader_config(), Counted(30, {17})) as batches,
        pytest.raises(UnreadableImageError, match=r"17\.jpg: broken"),
    ):
        list(batches)


def test_batches_refuse_sizes_that_do_not_fit():
    config = loader_config(batch_size=12)
    with pytest.raises(ValueError, match=r"batch_size=12 is larger.*11 examples.*to 11 or less"):
        train_batches(config, Counted(11))
    with pytest.raises(ValueError, match=r"^batch_size=12 .*multiple of 5"):
        train_batches(config, Counted(30), process_count=5)
    with pytest.raises(ValueError, match=r"^evaluation\.batch_size=12 .*multiple of 5"):
        evaluation_batches(config, Counted(30), process_count=5)
    with pytest.raises(ValueError, match=r"process_index=2 is not in 0\.\.1"):
        train_batches(config, Counted(30), process_index=2, process_count=2)


def test_workers_need_shared_memory(monkeypatch, tmp_path):
    usage = namedtuple("usage", ("total", "used", "free"))
    monkeypatch.setattr(loader, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64e6, 0, 2 * 8 * 12 * (256 + 5) - 1))
    config = loader_config(num_workers=2, prefetch_batches=3)
    words = (
        rf"num_workers=2 need 0\.1 MB of shared memory for their batches, and {tmp_path} has "
        r"0\.1 MB free; enlarge it \(docker run --shm-size=1g, .*--config\.data\.num_workers=0"
    )
    with pytest.raises(OSError, match=words):
        train_batches(config, Counted(24))
    # Two workers with eight batches each of twelve images with a label and a mark.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64e6, 0, 2 * 8 * 12 * (256 + 5)))
    monkeypatch.setattr(loader.grain.IterDataset, "mp_prefetch", lambda dataset, _, **__: dataset)
    train_batches(config, Counted(24)).close()


def test_a_worker_that_found_shared_memory_full_says_where():
    def end():
        raise RuntimeError("Worker process 1 with pid 7 failed with exit code -7")
        yield

    with train_batches(loader_config(), Counted(24)) as batches:
        its_own, batches._iterator = batches._iterator, end()
        with pytest.raises(RuntimeError, match=r"-7, as when /dev/shm is full; .* a larger /dev/s"):
            next(batches)
        batches._iterator = its_own


def test_batches_end_their_threads():
    before = set(threading.enumerate())
    batches = train_batches(loader_config(num_threads=5), Counted(30))
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    batches.close()
    deadline = time.monotonic() + 10
    while any(thread.is_alive() for thread in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in started)
    with pytest.raises(ValueError, match="closed"):
        next(batches)


WORKERS = """
import itertools, multiprocessing, sys
import numpy as np
from mambaout_jax.config import default_config
from mambaout_jax.data.sets.digits import Digits
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.views.crops import TrainingView

if __name__ == "__main__":
    config = default_config()
    config.seed, config.batch_size = 3, 12
    config.data.image_size, config.data.channels = 16, 1
    config.data.num_workers = 2
    with train_batches(config, Digits("train"), TrainingView(config), start_step=4) as batches:
        got = list(itertools.islice(batches, 9))
    assert not multiprocessing.active_children()
    np.savez(sys.argv[1], **{f"{k}{name}": b[name] for k, b in enumerate(got) for name in b})
"""


@pytest.mark.slow
def test_train_batches_of_workers_equal_those_of_threads(reference, tmp_path):
    # In a program of its own, without absl's flags, whose complaints at exit would be seen too.
    script, result = tmp_path / "program.py", tmp_path / "batches.npz"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script), str(result)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    stored = np.load(result)
    got = [
        {name: stored[f"{step}{name}"] for name in ("image", "label", "replaced")}
        for step in range(9)
    ]
    assert_same(got, reference[4:13])
