# SPDX-License-Identifier: Apache-2.0
"""Training runs that several test files read: made once per session, whichever process is first."""

import fcntl
import json

from support.photo_patches import write_photo_patches
from support.places import ROOT

from mambaout_jax.config_file import override, read_config
from mambaout_jax.train.loop import train

FOLDER_RECIPE = str(ROOT / "experiments" / "folder.py")
SMALL = ("--config.batch_size=16", "--config.data.num_threads=2", "--config.ema.decay=0.8",
         "--config.data.image_size=32")  # fmt: skip
PHOTO_STEPS = 60


def photo_config(photos, *settings, start="mambaout_micro"):
    """experiments/folder.py on a folder of photographs, with a model of two blocks."""
    recipe = read_config(f"{FOLDER_RECIPE}:{start}")
    config = override(recipe, [f"--config.data.path={photos}", *SMALL, *settings])
    with config.model.options.unlocked():
        config.model.options.depths = (1, 1)
        config.model.options.dims = (16, 32)
    return config


def steps(total, warmup=1):
    """Settings of a run of so many updates, evaluated and saved at its end."""
    return (
        f"--config.schedule.total_steps={total}",
        f"--config.schedule.warmup_steps={warmup}",
        f"--config.evaluation.every_steps={total}",
        f"--config.checkpoint.every_steps={total}",
    )


def train_on_photos(folder):
    """Writes folder/photos and trains folder/run; returns the metrics."""
    write_photo_patches(folder / "photos")
    settings = ("--config.optimizer.learning_rate=4e-3", *steps(PHOTO_STEPS, 3))
    return train(photo_config(folder / "photos", *settings), folder / "run")


def shared(tmp_path_factory, name, make):
    """The folder that `make(folder)` has filled, and the JSON value that it returned."""
    base = tmp_path_factory.getbasetemp()
    if base.name.startswith("popen-"):  # of one of several processes
        base = base.parent
    folder, done = base / f"shared_{name}", base / f"shared_{name}.json"
    with (base / f"shared_{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            done.write_text(json.dumps(make(folder)))
    return folder, json.loads(done.read_text())
