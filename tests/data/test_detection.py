# SPDX-License-Identifier: Apache-2.0
"""Views for detection against mmdet's rules written out with loops, on draws that are known."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mambaout_jax.config import default_config
from mambaout_jax.data.loader import evaluation_batches, train_batches
from mambaout_jax.data.sets.scenes import Scenes
from mambaout_jax.data.views.detection import Canvases, EvaluationView, TrainingView


def config_of(short, long, instances=5, flip=0.0, **detection):
    config = default_config()
    config.task, config.data.image_size = "detection", short
    config.augment.flip_probability = flip
    config.detection.update(long_side=long, max_instances=instances, **detection)
    return config


def example_of(rng, height, width, count):
    """Random pixels; boxes inside the image, each half filled by its mask."""
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    masks = np.zeros((count, height, width), bool)
    for mask, ((left, top), (right, bottom)) in zip(masks, corners, strict=True):
        mask[int(top) : int(bottom) + 1, int(left) : int(right) + 1] = True
    masks &= rng.random(masks.shape) < 0.5
    return {
        "image": rng.integers(0, 256, (height, width, 3), np.uint8),
        "boxes": corners.reshape(count, 4).astype(np.float32),
        "labels": rng.integers(0, 80, count).astype(np.int32),
        "masks": masks,
        "image_id": 17,
    }


class Scripted(np.random.Generator):
    """A generator whose draws are given."""

    def __init__(self, *draws):
        super().__init__(np.random.PCG64())
        self._draws = list(draws)

    def random(self):
        return self._draws.pop(0)

    def integers(self, low, high=None, endpoint=False):
        value = self._draws.pop(0)
        low, high = (0, low) if high is None else (low, high)
        assert low <= value < high + endpoint, (low, value, high)
        return value

    def close(self):
        assert not self._draws


def unpacked(view):
    """(M, CH, CW) bool."""
    return np.unpackbits(view["masks"], axis=-1).astype(bool)


# What mmdet does, by loops


def mmdet_size(height, width, bounds):
    factor = min(max(bounds) / max(height, width), min(bounds) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def mmdet_resize(pixels, boxes, labels, masks, bounds) -> Any:
    height, width = pixels.shape[:2]
    h, w = mmdet_size(height, width, bounds)
    # OpenCV divides twice.
    rows = [min(int(i * (1 / (h / height))), height - 1) for i in range(h)]
    columns = [min(int(i * (1 / (w / width))), width - 1) for i in range(w)]
    masks = masks[:, rows][:, :, columns]
    boxes = np.array(
        [
            [x1 * w / width, y1 * h / height, x2 * w / width, y2 * h / height]
            for x1, y1, x2, y2 in boxes.tolist()
        ]
    ).reshape(-1, 4)
    return bilinear(pixels, h, w), boxes, labels, masks


def bilinear(pixels, h, w):
    """In float64, without antialiasing; positions are clamped to the image."""
    grids = []
    for old, new in zip(pixels.shape[:2], (h, w), strict=True):
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(np.floor(place).astype(int), max(old - 2, 0))
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] += 1 - (place - low)
        matrix[np.arange(new), np.minimum(low + 1, old - 1)] += place - low
        grids.append(matrix)
    return np.einsum("ab,bcz,dc->adz", grids[0], pixels.astype(float), grids[1], optimize=True)


def mmdet_flip(pixels, boxes, labels, masks) -> Any:
    width = pixels.shape[1]
    boxes = np.array([[width - x2, y1, width - x1, y2] for x1, y1, x2, y2 in boxes.tolist()])
    return pixels[:, ::-1], boxes.reshape(-1, 4), labels, masks[:, :, ::-1]


def mmdet_crop(pixels, boxes, labels, masks, window) -> Any:
    top, left, bottom, right = window
    h, w = bottom - top, right - left
    kept, moved = [], []
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        x1, x2 = (min(max(x - left, 0), w) for x in (x1, x2))
        y1, y2 = (min(max(y - top, 0), h) for y in (y1, y2))
        if x1 < w and y1 < h and x2 > 0 and y2 > 0:
            kept.append(index)
            moved.append([x1, y1, x2, y2])
    cut = np.s_[top:bottom, left:right]
    return pixels[cut], np.array(moved).reshape(-1, 4), labels[kept], masks[(kept, *cut)]


def assert_view(view, want, canvas, levels=1):
    pixels, boxes, labels, masks = want
    count, (h, w) = len(labels), pixels.shape[:2]
    assert view["image"].shape == (*canvas, 3)
    assert view["image"].dtype == np.uint8
    assert view["image_shape"].tolist() == [h, w]
    assert view["image_shape"].dtype == np.int32
    assert abs(view["image"][:h, :w] - pixels).max() <= levels
    assert not view["image"][h:].any()
    assert not view["image"][:, w:].any()
    assert (view["boxes"].dtype, view["labels"].dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(view["boxes"][:count], boxes, rtol=1e-6, atol=1e-4)
    assert not view["boxes"][count:].any()
    np.testing.assert_array_equal(view["labels"][:count], labels)
    assert (view["labels"][count:] == -1).all()
    found = unpacked(view)
    assert found.shape == (len(view["labels"]), *canvas)
    np.testing.assert_array_equal(found[:count, :h, :w], masks)
    assert found.sum() == masks.sum()
    assert view["left_out"] == 0
    assert view["left_out"].dtype == np.int32


def contents(example) -> Any:
    return tuple(example[name] for name in ("image", "boxes", "labels", "masks"))


@pytest.mark.parametrize(
    ("height", "width", "canvas", "resized"),
    [
        (50, 37, (96, 64), (86, 64)),  # the shorter side decides: factors 1.72 and 1.7297
        (23, 61, (64, 96), (36, 96)),  # the longer one
        (90, 90, (64, 96), (64, 64)),  # shrinks; a square is landscape
    ],
)
@pytest.mark.parametrize("flips", [False, True])
def test_training_view_resizes_then_flips(rng, height, width, canvas, resized, flips):
    example = example_of(rng, height, width, 3)
    script = Scripted(0.49 if flips else 0.5, 0)
    view = TrainingView(config_of(64, 96, flip=0.5))(example, script)
    script.close()
    want = mmdet_resize(*contents(example), bounds=(64, 96))
    want = mmdet_flip(*want) if flips else want
    assert want[0].shape[:2] == resized
    assert_view(view, want, canvas)


def test_training_view_of_an_image_without_objects(rng):
    example = example_of(rng, 40, 30, 0)
    view = TrainingView(config_of(32, 64))(example, Scripted(0.0, 0))
    assert_view(view, mmdet_resize(*contents(example), bounds=(32, 64)), (64, 32))


def test_training_view_flips_first_where_a_shorter_side_is_drawn(rng):
    example = example_of(rng, 41, 57, 4)
    config = config_of(64, 96, flip=1.0, multi_scale=(40, 52, 64))
    view = TrainingView(config)(example, Scripted(0.3, 1))
    want = mmdet_resize(*mmdet_flip(*contents(example)), bounds=(52, 96))
    assert_view(view, want, (64, 96))


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_training_view_crops_between_two_resizings(rng, portrait, turned):
    height, width = (420, 300) if portrait else (300, 420)
    example = example_of(rng, height, width, 5)
    example["boxes"][2] = 1, 1, 4, 5  # the crop leaves this corner out
    config = config_of(64, 600, flip=0.5, multi_scale=(48, 64), crop_probability=0.5)
    # Flipped, cropped from a shorter side of 400; drawn height and width, then top and left.
    shorter, longer = (384, 400) if turned else (390, 500)
    sides = (longer, shorter) if portrait else (shorter, longer)
    drawn = sides[::-1] if turned else sides  # then the crop would not lie as the canvas does
    top, left = (23, 3) if portrait else (3, 23)
    script = Scripted(0.2, 0.4, 0, *drawn, top, left, 1)
    view = TrainingView(config)(example, script)
    script.close()
    once = mmdet_resize(*mmdet_flip(*contents(example)), bounds=(400, 600))
    assert once[0].shape[:2] == ((560, 400) if portrait else (400, 560))
    cut = mmdet_crop(*once, window=(top, left, top + sides[0], left + sides[1]))
    assert 0 < len(cut[2]) < 5
    want = mmdet_resize(cut[0].round(), *cut[1:], bounds=(64, 600))
    assert_view(view, want, (608, 64) if portrait else (64, 608), levels=2)  # is rounded twice


def test_boxes_beyond_the_image_are_clipped_without_a_crop_too(rng):
    example = example_of(rng, 40, 60, 2)
    example["boxes"][:] = [-3, -2, 70, 50], [50, 30, 60.5, 40.25]
    view = TrainingView(config_of(32, 64))(example, Scripted(0.0, 0))
    np.testing.assert_allclose(
        view["boxes"][:2], [[0, 0, 48, 32], [40, 24, 48, 32]], rtol=0, atol=1e-5
    )


def test_crops_alone_make_the_flip_come_first(rng):
    example = example_of(rng, 50, 37, 1)
    config = config_of(64, 600, flip=1.0, crop_probability=0.5)
    view = TrainingView(config)(example, Scripted(0.0, 0.9, 0))
    want = mmdet_resize(*mmdet_flip(*contents(example)), bounds=(64, 600))
    last = mmdet_flip(*mmdet_resize(*contents(example), bounds=(64, 600)))
    height, width = want[0].shape[:2]
    assert (want[3] != last[3]).any()  # masks tell the two orders apart
    np.testing.assert_array_equal(unpacked(view)[:1, :height, :width], want[3])


def test_a_crop_may_hold_nothing(rng):
    example = example_of(rng, 400, 560, 1)
    example["boxes"][0] = 1, 2, 30, 40
    config = config_of(64, 600, crop_probability=1.0)
    view = TrainingView(config)(example, Scripted(0.9, 0.0, 0, 384, 384, 16, 176, 0))
    assert (view["labels"] == -1).all()
    assert not view["masks"].any()
    assert view["image_shape"].tolist() == [64, 64]


def test_objects_beyond_the_most_are_counted_and_told_once(rng, caplog):
    example = example_of(rng, 40, 60, 6)
    view = TrainingView(config_of(32, 64, instances=4))
    for _ in range(2):
        found = view(example, Scripted(0.0, 0))
        assert found["left_out"] == 2
        np.testing.assert_array_equal(found["labels"], example["labels"][:4])
    assert len(found["masks"]) == len(found["boxes"]) == 4
    want = mmdet_resize(*contents(example), bounds=(32, 64))
    np.testing.assert_array_equal(unpacked(found)[:, :32, :48], want[3][:4])
    (message,) = caplog.messages
    assert message.startswith("an image has 6 objects: those beyond the first detection.max_ins")


def test_crops_need_room():
    with pytest.raises(ValueError, match=r"crop_probability=0\.5 .*long_side=599; .*600 or more"):
        TrainingView(config_of(64, 599, crop_probability=0.5))


def test_evaluation_view_tells_the_scale_of_each_axis(rng):
    example = example_of(rng, 50, 37, 1)
    view = EvaluationView.of(config_of(64, 96))(example)
    h, w = mmdet_size(50, 37, (64, 96))
    assert (h, w) == (86, 64)
    assert view["image"].shape == (96, 64, 3)
    assert abs(view["image"][:86, :64] - bilinear(example["image"], 86, 64)).max() <= 1
    assert not view["image"][86:].any()
    np.testing.assert_allclose(view["scale"], [86 / 50, 64 / 37], rtol=1e-7)
    kinds = {name: (array.dtype.name, array.tolist()) for name, array in view.items()
             if name not in ("image", "scale")}  # fmt: skip
    assert kinds == {
        "image_shape": ("int32", [86, 64]),
        "original": ("int32", [50, 37]),
        "image_id": ("int32", 17),
    }


def test_canvases_are_of_multiples_of_32_and_groups_say_which():
    config = config_of(800, 1333, multi_scale=(480, 640))
    assert Canvases.of(config, train=False).shape((480, 640)) == (800, 1344)
    assert Canvases.of(config, train=False).shape((640, 480)) == (1344, 800)
    assert Canvases.of(config, train=True).shape((7, 7)) == (640, 1344)
    sizes = np.array([[3, 4], [4, 3], [5, 5]])
    assert Canvases.of(config, train=True).groups(sizes) == [0, 1, 0]
    assert Canvases(1330, 1333).groups(sizes) is None


def test_batches_of_scenes_have_one_canvas_each():
    config = config_of(64, 80, flip=0.5, multi_scale=(48, 64))
    config.batch_size = config.evaluation.batch_size = 8
    config.data.num_threads, config.data.prefetch_batches = 2, 1
    source = Scenes("validation", "detection", 64)
    canvases = Canvases.of(config, train=True)
    groups = canvases.groups(source.image_sizes)
    with train_batches(config, source, TrainingView(config), groups=groups) as batches:
        shapes = {batch["image"].shape for batch in itertools.islice(batches, 6)}
    assert shapes == {(8, 64, 96, 3), (8, 96, 64, 3)}
    groups = Canvases.of(config, train=False).groups(source.image_sizes)
    view = EvaluationView.of(config)
    with evaluation_batches(config, source, view, groups=groups) as batches:
        found = list(batches)
    for batch in found:
        for index in batch["index"][batch["mask"]]:
            assert batch["image"].shape[1:3] == canvases.shape(
                tuple(source.image_sizes[index].tolist())
            )
    ids = np.concatenate([batch["image_id"][batch["mask"]] for batch in found])
    assert sorted(ids) == [*range(100)]


class Recorded(np.random.Generator):
    """A generator that keeps its draws."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(seed))
        self.draws = []

    def random(self, *_, **__):
        self.draws.append(super().random())
        return self.draws[-1]

    def integers(self, *arguments, **options):
        self.draws.append(int(super().integers(*arguments, **options)))
        return self.draws[-1]


def mmdet_view(example, draws, shorts, long, crop_probability):
    """The recipe of 36 epochs on recorded draws, all used."""
    draws, state = iter(draws), contents(example)
    portrait = example["image"].shape[0] > example["image"].shape[1]
    if next(draws) < 0.5:
        state = mmdet_flip(*state)
    if next(draws) < crop_probability:
        state = mmdet_resize(*state, bounds=((400, 500, 600)[next(draws)], long))
        sides = [next(draws), next(draws)]
        if (sides[0] > sides[1]) != portrait:  # ours: mmdet pads whatever comes
            sides = sides[::-1]
        top, left = next(draws), next(draws)
        state = mmdet_crop(*state, window=(top, left, top + sides[0], left + sides[1]))
        state = (state[0].round(), *state[1:])
    state = mmdet_resize(*state, bounds=(shorts[next(draws)], long))
    assert next(draws, None) is None
    return state


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_any_image_and_draw_give_what_mmdet_gives(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 500, 2).tolist()
    count = int(rng.integers(0, 8))
    shorts, long = (61, 96, 130), 700
    example = example_of(rng, height, width, count)
    config = config_of(96, long, 8, 0.5, multi_scale=shorts, crop_probability=0.7)
    recorded = Recorded(seed)
    view = TrainingView(config)(example, recorded)
    want = mmdet_view(example, recorded.draws, shorts, long, 0.7)
    assert_view(view, want, (704, 160) if height > width else (160, 704), levels=2)


WORKERS = """
import itertools, sys
import numpy as np
from mambaout_jax.config import default_config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.sets.scenes import Scenes
from mambaout_jax.data.views.detection import Canvases, TrainingView

if __name__ == "__main__":
    config = default_config()
    config.task, config.data.image_size, config.batch_size = "detection", 64, 8
    config.detection.update(long_side=80, max_instances=8)
    config.data.num_workers = int(sys.argv[2])
    source = Scenes("train", "detection", 64)
    groups = Canvases.of(config, train=True).groups(source.image_sizes)
    view = TrainingView(config)
    with train_batches(config, source, view, groups=groups, start_step=3) as batches:
        got = list(itertools.islice(batches, 7))
    np.savez(sys.argv[1], **{f"{k} {name}": b[name] for k, b in enumerate(got) for name in b})
"""


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(WORKERS)
    found = []
    for workers in (0, 2):
        result = tmp_path / f"{workers}.npz"
        command = [sys.executable, str(script), str(result), str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, "")
        with np.load(result) as file:
            found.append(dict(file))
    threads, processes = found
    assert {threads[f"{k} image"].shape[1:3] for k in range(7)} == {(64, 96), (96, 64)}
    assert threads.keys() == processes.keys()
    for name in threads:
        np.testing.assert_array_equal(threads[name], processes[name])


@pytest.mark.slow
def test_any_draw_keeps_objects_where_their_pixels_are(rng):
    """Marks of each object's corner pixels are found again at its box."""
    config = config_of(
        256, 704, instances=8, flip=0.5, multi_scale=(192, 224, 256), crop_probability=0.5
    )
    view, canvases = TrainingView(config), Canvases.of(config, train=True)
    source, cropped = Scenes("train", "detection", 256), 0
    for index in range(150):
        example = source[index]
        found = view(example, rng)
        shape, count = found["image_shape"], int((found["labels"] >= 0).sum())
        cropped += count < len(example["labels"])
        assert found["image"].shape[:2] == canvases.shape(example["image"].shape[:2])
        assert shape.min() <= 256
        assert (shape <= found["image"].shape[:2]).all()
        masks = unpacked(found)
        assert not masks[count:].any()
        limit = np.tile(shape[::-1], 2)
        assert ((found["boxes"][:count] >= 0) & (found["boxes"][:count] <= limit)).all()
        for box, mask in zip(found["boxes"][:count], masks[:count], strict=True):
            assert (box[2:] > box[:2]).all()
            rows, columns = np.nonzero(mask)
            if len(rows):  # nearest pixels lie within one new pixel, at most two, of their box
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert (extent[:2] >= box[:2] - 2.5).all()
                assert (extent[2:] <= box[2:] + 2.5).all()
    assert cropped > 10
