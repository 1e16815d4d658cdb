# SPDX-License-Identifier: Apache-2.0
"""How many training images per second does one core make, with our loader and with timm's?

The same JPEG files go through both: decode, random-resized crop, flip, and in the recipe for
ImageNet also RandAugment. What is measured is CPU time over all threads of the process, so that
other processes on the machine matter little; bare decoding is the limit for both. In addition, a
consumer that is slower than the loader measures how long a training step would wait for it.

timm takes part if PyTorch and timm are installed. Its tensors are uint8 too: normalising and
erasing are left out on both sides, because both do them on the device.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from mambaout_jax.benchmarks.timing import (
    environment,
    ignore,
    report_progress,
    save_json,
    speedup,
    summary,
)
from mambaout_jax.benchmarks.torch_peer import find_torch
from mambaout_jax.config import default_config
from mambaout_jax.data.loader import train_batches
from mambaout_jax.data.sets.image_files import decode_image
from mambaout_jax.data.sets.listing import images_below, split_folder
from mambaout_jax.data.sets.sources import open_source
from mambaout_jax.data.views import opencv
from mambaout_jax.data.views.crops import TrainingView
from mambaout_jax.settings import DECODERS

RECIPES = ("crop+flip", "rand-augment")
QUICK = {"images": 64, "rounds": 2}  # arguments of `run` for a trial

_BATCH = 32
_SIZE = 224  # pixels, side of the crop
_SYNTHETIC_FILES = 64
_SYNTHETIC_SIZE = (500, 375)  # pixels, the most frequent size in ImageNet
_SYNTHETIC_QUALITY = 90
_NAMES_PER_FILE = (
    64  # Grain's shuffle costs more per example with a short list than with a long one
)
_WAIT_BATCHES = 20
_SLOWER = 1.25  # seconds of a step over the loader's seconds for its batch

save = save_json


def run(
    *,
    data: str | None = None,
    images: int = 512,
    rounds: int = 5,
    images_per_second: float = 10_000.0,
    keep: Callable[[dict[str, Any]], object] = ignore,
) -> dict[str, Any]:
    """Times our loader with each decoder, timm's, and bare decoding, in turns.

    Progress is printed to the standard error.

    Args:
        data: folder of class folders of JPEG files; None: 64 crops of scikit-learn's two
            photographs, of 500 x 375 pixels.
        images: how many images each contender makes per turn.
        rounds: how many turns each contender has; the numbers reported are medians over them.
        images_per_second: speed that a training run wants; the cores needed for it are reported.
        keep: called after every row with the result so far.

    Returns:
        A dict ready for JSON: `environment`, the arguments, `rows` and `wait`. There is a row per
        recipe, with `images_per_second_and_core` of each contender, `over_timm` and `over_decode`,
        its speed over that of timm's loader and of bare decoding with the same decoder (median, min
        and max over rounds), and `cores`, the number needed for `images_per_second`. `wait` is, by
        decoder, the share of its time that a consumer waits if it takes 1.25 times as long as the
        loader.

    Raises:
        ValueError, FileNotFoundError: `data` does not exist, or is not a folder of classes.
    """
    result: dict[str, Any] = {
        "environment": environment() | _versions(),
        "data": data,
        "images": images,
        "rounds": rounds,
        "images_per_second": images_per_second,
        "rows": [],
        "wait": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(data).expanduser() if data else _write_images(Path(folder))
        for recipe in RECIPES:
            report_progress(recipe)
            row = _race(recipe, root, images, rounds)
            speeds = row["images_per_second_and_core"]
            row["cores"] = {k: images_per_second / v["median"] for k, v in speeds.items()}
            result["rows"].append(row)
            keep(result)
        for decoder in DECODERS:
            report_progress(f"waiting for {decoder}")
            result["wait"][decoder] = _wait_share(root, decoder)
    return result


def print_table(result: dict[str, Any]) -> None:
    """Prints the result of `run`, medians over rounds."""
    wanted = result["images_per_second"]
    print(f"images per second and core, {_SIZE} pixels, and cores for {wanted:,.0f} images/s")
    for row in result["rows"]:
        for name, speed in row["images_per_second_and_core"].items():
            ratios = "".join(
                "  over {}: {median:.2f}x ({min:.2f}-{max:.2f})".format(
                    peer, **row[f"over_{peer}"][name]
                )
                for peer in ("timm", "decode")
                if name in row[f"over_{peer}"]
            )
            cores = f"{row['cores'][name]:.0f} cores"
            print(f"{row['recipe']:<14}{name:<17}{speed['median']:>7.0f}  {cores:>10}{ratios}")
    for decoder, share in result["wait"].items():
        print(f"a step that is {_SLOWER} times as slow waits {share:.1%} of its time ({decoder})")
    if result["environment"]["timm"] is None:
        print("timm's loader is not compared: pip install torch torchvision timm")


def _race(recipe: str, root: Path, images: int, rounds: int) -> dict[str, Any]:
    """Measures one recipe; returns its row."""
    loaders = {f"ours {name}": _ours(root, recipe, name) for name in DECODERS}
    if _versions()["timm"] is not None:
        loaders["timm"] = _timm_batches(root, recipe)
    steps = -(-images // _BATCH)
    turns: dict[str, Callable[[], Any]] = {
        name: functools.partial(_draw, batches, steps) for name, batches in loaders.items()
    }
    for decoder in DECODERS:
        turns[f"decode {decoder}"] = functools.partial(_decode, root, decoder, steps * _BATCH)
    times = {name: [] for name in turns}
    for turn in turns.values():
        turn()  # also fills the loaders' buffers
    for _ in range(rounds):
        for name, turn in turns.items():
            _wait_until_idle()
            start = time.process_time()
            turn()
            _wait_until_idle()
            times[name].append((time.process_time() - start) / (steps * _BATCH))
    for batches in loaders.values():
        batches.close()
    ours = [name for name in times if name.startswith("ours")]
    over_timm = {name: speedup(times["timm"], times[name]) for name in ours if "timm" in times}
    limit = {name: times[name.replace("ours", "decode")] for name in ours}
    return {
        "recipe": recipe,
        "images_per_second_and_core": {
            name: summary([1 / seconds for seconds in values]) for name, values in times.items()
        },
        "over_timm": over_timm,
        "over_decode": {name: speedup(limit[name], times[name]) for name in ours},
    }


def _wait_until_idle() -> None:
    """Waits until all loaders have refilled their buffers, within the turn that emptied them."""
    while True:
        before = time.process_time()
        time.sleep(0.05)
        if time.process_time() - before < 0.005:
            return


def _ours(root: Path, recipe: str, decoder: str) -> Any:
    """Our loader, in this process, with one thread."""
    config = default_config()
    with config.unlocked():
        config.batch_size = _BATCH
        config.data.update(
            source="folder", path=str(root), image_size=_SIZE, decoder=decoder, num_threads=1
        )
        config.augment.random_interpolation = True
        config.augment.rand_augment_layers = 2 if recipe == "rand-augment" else 0
    return train_batches(config, open_source(config.data, "train"), TrainingView(config))


def _timm_batches(root: Path, recipe: str) -> Any:
    """timm's loader without its last stage, which normalises on the device; endless."""
    import timm.data  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    _allow_posterize_to_nothing()
    loader: Any = timm.data.create_loader(
        timm.data.create_dataset("", root=str(_training_folder(root))),
        input_size=(3, _SIZE, _SIZE),
        batch_size=_BATCH,
        is_training=True,
        num_workers=0,
        persistent_workers=False,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1" if recipe == "rand-augment" else None,
        interpolation="random",
        device=torch.device("cpu"),
    )

    def forever() -> Iterator[Any]:
        while True:
            yield from loader.loader

    return forever()


def _allow_posterize_to_nothing() -> None:
    """Lets timm keep 0 bits, which it sometimes draws and newer versions of Pillow refuse."""
    from timm.data import auto_augment  # pyright: ignore[reportMissingImports]

    def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
        if bits == 0:
            return Image.new(image.mode, image.size)
        return image if bits >= 8 else auto_augment.ImageOps.posterize(image, bits)

    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize


def _draw(batches: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(batches)


def _decode(root: Path, decoder: str, count: int) -> None:
    files = _files(_training_folder(root))
    for index in range(count):
        content = files[index % len(files)].read_bytes()
        if decoder == "opencv":
            opencv.decode(content, channels=3)
        else:
            decode_image(content, 3, str(root))


def _training_folder(root: Path) -> Path:
    return split_folder(root, "train") or root


@functools.cache
def _files(root: Path) -> list[Path]:
    return [root / name for name in images_below(root)]


def _wait_share(root: Path, decoder: str) -> float:
    """Share of its time that a consumer waits which is a little slower than the loader."""
    with _ours(root, RECIPES[1], decoder) as batches:
        _draw(batches, _WAIT_BATCHES // 2)
        start = time.perf_counter()
        _draw(batches, _WAIT_BATCHES)
        step = _SLOWER * (time.perf_counter() - start) / _WAIT_BATCHES
        waited = 0.0
        for _ in range(_WAIT_BATCHES):
            start = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - start
            time.sleep(step)  # the device computes and the host is free
    return waited / (waited + _WAIT_BATCHES * step)


def _write_images(root: Path) -> Path:
    """Writes JPEG files in two classes: random crops of two photographs, slightly enlarged."""
    rng = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / "train" / name).mkdir(parents=True)
        (root / "val" / name).mkdir(parents=True)
        height, width, _ = photo.shape
        for index in range(_SYNTHETIC_FILES // 2 + 1):
            left = rng.integers(0, width - 400)
            top = rng.integers(0, height - 300)
            box = (left, top, left + 400, top + 300)
            image = Image.fromarray(photo).resize(
                _SYNTHETIC_SIZE, Image.Resampling.BICUBIC, box=box
            )
            split = "train" if index else "val"
            path = root / split / name / f"{index:03}.jpg"
            image.save(path, quality=_SYNTHETIC_QUALITY)
            for copy in range(1, _NAMES_PER_FILE):
                path.with_stem(f"{path.stem}_{copy}").hardlink_to(path)
    return root


def _versions() -> dict[str, Any]:
    if find_torch() is None:
        return {"torch": None, "timm": None}
    try:
        import timm  # pyright: ignore[reportMissingImports]
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {"torch": None, "timm": None}
    return {"torch": torch.__version__, "timm": timm.__version__}
