# SPDX-License-Identifier: Apache-2.0
"""Makes the goldens of the ImageNet recipe from timm: python make.py, beside torch and timm 1.0.31.

What timm draws is written down as it draws it, next to what comes out.
"""

import contextlib
import json
import random
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import timm
import timm.data.auto_augment
import timm.data.mixup
import timm.data.random_erasing
import timm.data.transforms
import torch
from PIL import Image, ImageOps
from timm.optim import param_groups_weight_decay
from timm.scheduler import create_scheduler

HERE = Path(__file__).parent
SIZE = 24  # of views, in pixels


class Recorder:
    """Draws as a module of random numbers does, and keeps (function, result)."""

    def __init__(self, source):
        self._source, self.calls = source, []

    def __getattr__(self, name):
        def call(*arguments, **options):
            result = getattr(self._source, name)(*arguments, **options)
            self.calls.append((name, result))
            return result

        return call

    def of(self, name):
        """What one function returned, in order."""
        return [result for function, result in self.calls if function == name]


def schedule():
    """The rate of every epoch, as the authors' train.py sets it, by its defaults."""
    arguments = SimpleNamespace(
        sched="cosine", epochs=300, warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5,
        cooldown_epochs=10, lr_cycle_mul=1.0, lr_cycle_decay=0.5, lr_cycle_limit=1, seed=42,
        decay_epochs=100, patience_epochs=10, decay_rate=0.1, lr_noise=None, lr_k_decay=1.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=4e-3)
    scheduler, epochs = create_scheduler(arguments, optimizer)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(epoch + 1)
    return rates


def decay():
    """Names of the parameters that decay and that do not, by model."""
    groups = {}
    for name in ("femto", "kobe", "tiny", "small", "base"):
        with torch.device("meta"):
            model = timm.create_model(f"mambaout_{name}")
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        assert not hasattr(model, "no_weight_decay")  # names that create_optimizer would exclude
        parts = param_groups_weight_decay(model, weight_decay=0.05)
        groups[f"mambaout_{name}"] = {
            "decay" if part["weight_decay"] else "no_decay": [names[id(p)] for p in part["params"]]
            for part in parts
        }
    return groups


def photograph(width, height, seed):
    """Smooth colours with edges and noise, dark on one side."""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (3 + c) + y / (7 - c) + seed + c) for c in range(3)]
    pixels = 60 + 40 * np.stack(waves, axis=-1) + 120 * (x > y)[..., None] * (x / width)[..., None]
    return np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)


@contextlib.contextmanager
def watched_operations(source):
    """A list that receives what each operation of RandAugment draws; Pillow posterizes to 0 bits.

    An entry is [name, magnitude, negative, interpolation], or None for one that is left out.
    """
    recorder, drawn = Recorder(source), []
    apply, posterize = timm.data.auto_augment.AugmentOp.__call__, ImageOps.posterize

    def watched(op, image):
        recorder.calls = []
        result = apply(op, image)
        draws = recorder.of("random")
        if op.prob < 1 and draws.pop(0) > op.prob:
            drawn.append(None)
            return result
        sign, how = any(value > 0.5 for value in draws), recorder.of("choice")
        name = Image.Resampling(how[0]).name.lower() if how else "bicubic"
        drawn.append([op.name, recorder.of("gauss")[0], sign, name])
        return result

    def old_posterize(image, bits):
        return posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))

    with (
        mock.patch.object(timm.data.auto_augment, "random", recorder),
        mock.patch.object(timm.data.auto_augment.AugmentOp, "__call__", watched),
        mock.patch.object(ImageOps, "posterize", old_posterize),
    ):
        yield drawn


def rand_augment():
    """Each operation of rand-m9-mstd0.5-inc1 at several magnitudes."""
    policy = timm.data.auto_augment.rand_augment_transform(
        "rand-m9-mstd0.5-inc1", {"img_mean": (124, 116, 104)}
    )
    image, outputs = photograph(SIZE, SIZE - 4, 0), []
    with watched_operations(random.Random(1)) as drawn:
        for op in policy.ops:
            op.prob = 1.0
            for op.magnitude in (2, 6, 9, 12):  # the last is cut to 10
                outputs.append(np.asarray(op(Image.fromarray(image))))
    return {"image": image, "draws": json.dumps(drawn), "outputs": np.stack(outputs)}


def views():
    """timm's whole training transform of one image."""
    transform = timm.data.create_transform(
        SIZE, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="random",
        color_jitter=0.4, normalize=False,
    )  # fmt: skip
    _, flip, _, _ = transform.transforms  # crop, flip, RandAugment, pixels: no colour jitter
    image, draws, outputs = photograph(60, 44, 2), [], []
    np.random.seed(3)
    torch.manual_seed(3)
    source = random.Random(3)
    for _ in range(24):
        crop = Recorder(source)
        coin = torch.Generator()
        coin.set_state(torch.get_rng_state())
        with (
            watched_operations(source) as drawn,
            mock.patch.object(timm.data.transforms, "random", crop),
        ):
            outputs.append(transform(Image.fromarray(image)).numpy())
        draws.append(
            {
                "uniform": crop.of("uniform"),  # area and log ratio of each try
                "corner": crop.of("randint")[::-1],  # left, top; none without a fitting try
                "interpolation": crop.of("choice")[0].value,
                "flip": bool(torch.rand(1, generator=coin) < flip.p),
                "operations": drawn,
            }
        )
    outputs = np.stack(outputs).transpose(0, 2, 3, 1)
    return {"image": image, "draws": json.dumps(draws), "outputs": outputs}


def mixing():
    """timm's Mixup of float images, and its loader's of uint8 images, with what they drew."""
    options = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": 5}
    rng = np.random.RandomState(4)
    images = rng.randint(0, 256, (4, 3, 7, 10)).astype(np.uint8)
    labels = np.array([0, 3, 1, 4])
    draws, outputs = [], {"mixed": [], "targets": [], "collated": []}
    for seed in range(24):
        recorder = Recorder(np.random.RandomState(seed))
        module = SimpleNamespace(**{**vars(np), "random": recorder})
        with mock.patch.object(timm.data.mixup, "np", module):
            mixed, targets = timm.data.mixup.Mixup(**options)(
                torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)
            )
        centre = recorder.of("randint")  # row, column; none for mixup
        (weight,) = recorder.of("beta")
        draws.append({"cutmix": bool(centre), "weight": weight, "centre": centre})
        same = Recorder(np.random.RandomState(seed))
        with mock.patch.object(
            timm.data.mixup, "np", SimpleNamespace(**{**vars(np), "random": same})
        ):
            collated, _ = timm.data.mixup.FastCollateMixup(**options)(
                list(zip(images, labels.tolist(), strict=True))
            )
        for name, value in (("mixed", mixed), ("targets", targets), ("collated", collated)):
            outputs[name].append(value.numpy())
    outputs = {name: np.stack(values) for name, values in outputs.items()}
    return {"images": images, "labels": labels, "draws": json.dumps(draws, default=int), **outputs}


def boxes():
    """timm's boxes of cutmix and of random erasing at 224 pixels and on narrow images."""
    cut, erased = [], []
    for seed in range(60):
        size = ((224, 224), (9, 40), (31, 12))[seed % 3]
        recorder = Recorder(np.random.RandomState(seed))
        weight = float(recorder.beta(1.0, 1.0))
        module = SimpleNamespace(**{**vars(np), "random": recorder})
        with mock.patch.object(timm.data.mixup, "np", module):
            box, left = timm.data.mixup.cutmix_bbox_and_lam((3, *size), weight)
        cut.append([size, weight, recorder.of("randint"), box, left])

        recorder = Recorder(random.Random(seed))
        eraser = timm.data.random_erasing.RandomErasing(1.0, mode="pixel", device="cpu")
        image = torch.full((3, *size), 100.0)
        with mock.patch.object(timm.data.random_erasing, "random", recorder):
            eraser(image)
        inside = (image < 50).all(0).numpy()
        rows, columns = inside.any(1).nonzero()[0], inside.any(0).nonzero()[0]
        box = [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1] if inside.any() else None
        erased.append([size, recorder.of("uniform"), recorder.of("randint"), box])
    return {"cutmix": cut, "erase": erased}


def write_json(name, value):
    text = json.dumps(value, indent=None, separators=(",", ":"), default=float)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_json("schedule", schedule())
    write_json("decay", decay())
    write_json("boxes", boxes())
    for make in (rand_augment, views, mixing):
        np.savez_compressed(HERE / f"{make.__name__}.npz", **make())
