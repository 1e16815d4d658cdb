# SPDX-License-Identifier: Apache-2.0
"""Every recipe can be trained as it stands, and the quickstart keeps its promise."""

import ast
import operator
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mambaout_jax.config import resolve, validate
from mambaout_jax.config_file import read_config
from mambaout_jax.data.sets.imagenet import SPLIT_SIZES
from mambaout_jax.models import find_variant, list_models, parameter_rules
from mambaout_jax.train.optimizer import decay_mask
from mambaout_jax.train.writer import read_metrics

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("**/*.py"))
RECIPES = [path for path in FILES if "\ndef get_config(" in path.read_text(encoding="utf-8")]
QUICKSTART = ROOT / "experiments" / "quickstart.py"
IMAGENET = ROOT / "experiments" / "imagenet"

# As published: batch, peak rate, weight decay, epochs (those of a cool-down among them), epochs of
# warm-up, drop path.
# fmt: off
PUBLISHED = {
    "vim": {
        "vim_tiny": (1024, 1e-3, 0.1, 300, 5, 0.0),
        "vim_small": (512, 1e-3, 0.05, 300, 5, 0.05),
    },
    "vmamba": {
        "vmamba_v9_tiny": (1024, 1e-3, 0.05, 300, 20, 0.2),
        "vmamba_v9_small": (1024, 1e-3, 0.05, 300, 20, 0.3),
        "vmamba_v9_base": (1024, 1e-3, 0.05, 300, 20, 0.6),
        "vmamba_v0_tiny": (1024, 1e-3, 0.05, 300, 20, 0.2),
        "vmamba_v0_small": (1024, 1e-3, 0.05, 300, 20, 0.3),
        "vmamba_v0_base": (1024, 1e-3, 0.05, 300, 20, 0.5),
    },
    "local_vim": {
        "local_vim_tiny": (1024, 1e-3, 0.04, 300, 20, 0.1),
        "local_vim_tiny_middle_cls_token": (1024, 1e-3, 0.04, 300, 20, 0.1),
        "local_vim_small": (1024, 1e-3, 0.04, 300, 20, 0.1),
        "local_vim_small_searched": (1024, 1e-3, 0.04, 300, 20, 0.1),
    },
    "local_vmamba": {
        "local_vmamba_tiny": (1024, 1e-3, 0.04, 300, 20, 0.2),
        "local_vmamba_small": (1024, 1e-3, 0.04, 300, 20, 0.2),
    },
    "plainmamba": {
        "plainmamba_l1": (2048, 2e-3, 0.05, 300, 15, 0.2),
        "plainmamba_l2": (2048, 2e-3, 0.05, 300, 20, 0.2),
        "plainmamba_l3": (1024, 1e-3, 0.05, 300, 20, 0.4),
    },
    "efficientvmamba": {
        "efficientvmamba_tiny": (2048, 2e-3, 0.04, 300, 20, 0.1),
        "efficientvmamba_small": (2048, 2e-3, 0.04, 300, 20, 0.1),
        "efficientvmamba_base": (1024, 2e-3, 0.04, 300, 20, 0.1),
    },
    "mamband": {
        "mamba2d_small": (1024, 1e-3, 0.1, 300, 10, 0.1),
        "mamba2d_base": (1024, 1e-3, 0.1, 300, 10, 0.1),
    },
    "van": {
        "van_b0": (1024, 1e-3, 0.05, 310, 5, 0.1),
        "van_b2": (1024, 1e-3, 0.05, 310, 5, 0.1),
        "van_b3": (1024, 1e-3, 0.05, 310, 5, 0.2),
    },
    "poolformer": {
        "poolformer_s24": (1024, 1e-3, 0.05, 310, 5, 0.1),
    },
    "metaformer": {
        "caformer_s18": (4096, 4e-3, 0.05, 310, 20, 0.15),  # with AdamW, not published
        "caformer_s36": (4096, 4e-3, 0.05, 310, 20, 0.3),
        "caformer_m36": (4096, 4e-3, 0.05, 310, 20, 0.4),
        "convformer_s18": (4096, 4e-3, 0.05, 310, 20, 0.2),
        "convformer_s36": (4096, 4e-3, 0.05, 310, 20, 0.3),
        "convformer_m36": (4096, 4e-3, 0.05, 310, 20, 0.4),
    },
    "inceptionnext": {
        "inception_next_atto": (1280, 1e-3, 0.05, 610, 5, 0.1),
        "inception_next_tiny": (4096, 4e-3, 0.05, 310, 20, 0.1),
    },
    "moganet": {
        "moganet_tiny": (1024, 1e-3, 0.04, 310, 5, 0.1),
        "moganet_small": (1024, 1e-3, 0.05, 310, 5, 0.1),
        "moganet_base": (1024, 1e-3, 0.05, 310, 5, 0.2),
        "moganet_large": (1024, 1e-3, 0.05, 310, 5, 0.3),
    },
    "hornet": {
        "hornet_base_gf": (4096, 4e-3, 0.05, 300, 20, 0.5),
    },
    "replknet": {
        "replknet_31b": (2048, 4e-3, 0.05, 300, 10, 0.5),
    },
    "emo": {
        "emo_6m": (2048, 6e-3, 0.05, 300, 20, 0.05),
    },
    "cswin": {
        "cswin_tiny": (2048, 2e-3, 0.05, 310, 20, 0.2),
        "cswin_small": (2048, 2e-3, 0.05, 310, 20, 0.4),
        "cswin_base": (1024, 1e-3, 0.1, 310, 20, 0.5),
    },
    "pvt_v2": {"pvt_v2_b0": (1024, 1e-3, 0.05, 300, 5, 0.1)},
    "coatnet": {
        "coatnet_0_224_stride1x1": (4096, 1e-3, 0.05, 300, 32, 0.2),
        "coatnet_1_224_stride1x1": (4096, 1e-3, 0.05, 300, 32, 0.3),
        "coatnet_2_224_stride1x1": (4096, 1e-3, 0.05, 300, 32, 0.5),
        "coatnet_0_224": (4096, 1e-3, 0.05, 300, 32, 0.2),
        "coatnet_1_224": (4096, 1e-3, 0.05, 300, 32, 0.3),
        "coatnet_2_224": (4096, 1e-3, 0.05, 300, 32, 0.5),
    },
    "moat": {
        "moat_0": (4096, 3e-3, 0.05, 300, 32, 0.2 * 13 / 14),
        "moat_2": (4096, 3e-3, 0.05, 300, 32, 0.5 * 23 / 24),
    },
    "mvit_v2": {
        "mvitv2_small": (256, 2.5e-4, 0.05, 300, 70, 0.1),
        "mvitv2_base": (256, 2.5e-4, 0.05, 300, 70, 0.3),
    },
    "focal": {
        "focal_tiny": (1024, 1e-3, 0.05, 300, 20, 0.2),
        "focal_small": (1024, 1e-3, 0.05, 300, 20, 0.3),
    },
    "internimage": {
        "internimage_t": (1024, 1e-3, 0.05, 300, 20, 0.1),
        "internimage_s": (1024, 1e-3, 0.05, 300, 20, 0.4),
        "internimage_b": (1024, 1e-3, 0.05, 300, 20, 0.5),
    },
    "t2t_vit": {
        "t2t_vit_7": (512, 1e-3, 0.03, 310, 10, 0.1),
        "t2t_vit_14": (512, 5e-4, 0.05, 310, 10, 0.1),
        "t2t_vit_19": (512, 5e-4, 0.065, 310, 10, 0.1),
        "t2t_vit_24": (512, 5e-4, 0.065, 310, 10, 0.1),
        "t2t_vit_7_kqv025": (512, 1e-3, 0.03, 310, 10, 0.1),
        "t2t_vit_14_kqv025": (512, 5e-4, 0.05, 310, 10, 0.1),
    },
    "uniformer": {
        "uniformer_base_ls": (1024, 8e-4, 0.05, 300, 5, 0.3),
        "uniformer_base": (1024, 8e-4, 0.05, 300, 5, 0.3),
    },
    "iformer": {
        "iformer_small": (1024, 1e-3, 0.05, 310, 5, 0.2),
        "iformer_large": (1024, 1e-3, 0.05, 310, 5, 0.5),
    },
    "sg_former": {
        "sgformer_s": (1024, 1e-3, 0.05, 310, 20, 0.1),
        "sgformer_m": (1024, 1e-3, 0.05, 310, 20, 0.2),
    },
    "transnext": {
        "transnext_tiny": (1024, 1e-3, 0.05, 300, 5, 0.25),
        "transnext_small": (1024, 1e-3, 0.05, 300, 5, 0.45),
        "transnext_base": (1024, 1e-3, 0.05, 300, 5, 0.6),
    },
    "mobilevit_v3": {"mobilevitv3_xs": (384, 2e-3, 0.01, 300, 3000 / 3336, 0.0)},
}
# fmt: on
# Images and targets, as most recipes have them, and what a file or a model has instead.
IMAGES = {
    "data.crop_fraction": 0.875,
    "augment.rand_augment_layers": 2,
    "augment.rand_augment_magnitude": 9,
    "augment.rand_augment_deviation": 0.5,
    "augment.erase_probability": 0.25,
    "augment.erase_after_mixing": False,
    "augment.cutmix_alpha": 1.0,
    "loss.label_smoothing": 0.1,
}
_TIMM = {"augment.erase_after_mixing": True}
_GOOGLE = {
    "augment.rand_augment_magnitude": 10,
    "augment.rand_augment_deviation": 0,
    "augment.erase_probability": 0,
    "augment.cutmix_alpha": 0,
}
OTHER_IMAGES = {
    "van": {**_TIMM, "data.crop_fraction": 0.9, "data.mean": (0.5, 0.5, 0.5)},
    "poolformer": {**_TIMM, "data.crop_fraction": 0.9},
    "metaformer": {**_TIMM, "data.crop_fraction": 1.0},
    "caformer_m36": {"model.options.dropout": 0.4},
    "inceptionnext": _TIMM,
    "inception_next_atto": {
        "augment.rand_augment_magnitude": 2.5,
        "augment.rand_augment_deviation": 1.44,
        "augment.erase_probability": 0.1,
        "augment.mixup_alpha": 0.2,
    },
    "moganet": {"data.crop_fraction": 0.9},
    "moganet_tiny": {"augment.rand_augment_magnitude": 7, "augment.mixup_alpha": 0.1},
    "hornet": {"augment.rand_augment_magnitude": 10, "augment.rand_augment_deviation": 0},
    "cswin": {**_TIMM, "data.crop_fraction": 0.9},
    "coatnet": _GOOGLE,
    "moat": _GOOGLE,
    "mvit_v2": {"augment.rand_augment_layers": 6},
    "t2t_vit": {**_TIMM, "data.crop_fraction": 0.9},
    "iformer": {"data.crop_fraction": 0.9},
    "sg_former": {**_TIMM, "data.crop_fraction": 0.9},
    "mobilevit_v3": {
        "data.crop_fraction": 256 / 288,
        "augment.rand_augment_layers": 0,
        "augment.erase_probability": 0,
        "augment.cutmix_alpha": 0,
    },
    "emo": {"augment.erase_probability": 0, "augment.mixup_alpha": 0, "augment.cutmix_alpha": 0},
}
UNTRAINED = {"replknet_31b_merged"}  # made of another model's weights
# Parameters of the SSM that the published optimisers, by name and number of axes, do not exempt.
DECAYING = {
    "vim": {"A_log"},
    "vmamba": {"A_log", "dt_proj/bias"},
    "local_vim": {"A_log"},
    "local_vmamba": {"A_log", "dt_proj/bias"},
    "plainmamba": set(),
    "efficientvmamba": {"A_log", "dt_proj/bias"},
    "mamband": set(),
}
PUBLISHED_MODELS = [(file, model) for file, models in PUBLISHED.items() for model in models]


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def recipe(path):
    config = runpy.run_path(str(path))["get_config"]()
    if config.data.source != "digits":
        config.data.path = config.data.path or "images"  # the user's
    return config


def test_there_are_recipes():
    assert QUICKSTART in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_on_one_device_and_on_eight(path):
    config = recipe(path)
    assert config.is_locked
    assert config.model.name in list_models()
    for devices in (1, 8):
        validate(config, devices)
    resolved = resolve(config, 50_000)
    assert 0 < resolved.warmup_steps < resolved.total_steps


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_tells_its_command_and_result(path):
    text, name = docstring(path), path.relative_to(ROOT).as_posix()
    commands = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    assert any(
        words[:2] == ["python", name] or words[:3] == ["mambaout", "train", "--config"]
        for words in map(shlex.split, commands)
    ), commands
    assert any(name in command for command in commands)
    assert re.search(r"^Result: ", text, re.MULTILINE)


def test_quickstart_is_what_its_docstring_says():
    config, text = recipe(QUICKSTART), docstring(QUICKSTART)
    assert f"upscaled to {config.data.image_size}" in text
    assert (config.data.source, config.data.channels) == ("digits", 1)
    assert "1,438 to train, 359 to" in text
    resolved = resolve(config, 1438)
    assert (resolved.steps_per_epoch, resolved.total_steps, resolved.warmup_steps) == (22, 660, 66)
    assert (resolved.evaluate_every, resolved.checkpoint_every) == (110, 110)
    assert (resolved.learning_rate, config.augment.flip_probability) == (4e-3, 0)


def test_quickstart_of_segmentation_is_what_its_docstring_says():
    path = ROOT / "experiments" / "ade20k" / "quickstart.py"
    config, text = recipe(path), docstring(path)
    side = config.data.image_size
    assert f"at {side} x {side * 5 // 4} pixels; 1,000 to train, 100" in text
    assert (config.task, config.data.source) == ("segmentation", "scenes")
    assert config.augment.flip_probability == 0
    other = read_config(f"{path}:conv+ssm")
    assert other.model.options.token_mixer == "conv+ssm"
    with other.model.options.unlocked():
        other.model.options.token_mixer = "conv"
    assert other == read_config(str(path))  # and nothing else


@pytest.mark.parametrize(("file", "model"), PUBLISHED_MODELS)
def test_imagenet_recipe_is_the_published_one(file, model):
    config = read_config(f"{IMAGENET / file}.py:{model}")
    config.data.path = "imagenet"
    validate(config, 8)
    resolved = resolve(config, SPLIT_SIZES["train"])
    default = find_variant(model)[1].drop_path
    drop_path = default if config.model.drop_path is None else config.model.drop_path
    assert config.model.name == model
    assert PUBLISHED[file][model] == (
        config.batch_size,
        pytest.approx(resolved.learning_rate),
        config.optimizer.weight_decay,
        resolved.total_steps / resolved.steps_per_epoch,
        resolved.warmup_steps / resolved.steps_per_epoch,
        drop_path,
    )
    images = {**IMAGES, **OTHER_IMAGES.get(file, {}), **OTHER_IMAGES.get(model, {})}
    for setting, value in images.items():
        assert operator.attrgetter(setting)(config) == value, setting


@pytest.mark.parametrize("file", DECAYING)
def test_imagenet_recipe_decays_what_the_published_code_does(file):
    config = read_config(f"{IMAGENET / file}.py")
    rules = (*config.optimizer.decay_rules, *parameter_rules(config.model.name).decay)
    mask = decay_mask({"A_log": 0, "D": 0, "dt_proj": {"bias": 0}}, rules)
    A_log, bias = ("A_log" in DECAYING[file], "dt_proj/bias" in DECAYING[file])
    assert mask == {"A_log": A_log, "D": False, "dt_proj": {"bias": bias}}


def test_layer_scales_of_moganet_decay_as_in_the_published_code():
    config = read_config(f"{IMAGENET / 'moganet'}.py")
    rules = (*config.optimizer.decay_rules, *parameter_rules("moganet_tiny").decay)
    mask = decay_mask({"layer_scale1": {"gamma": 0}, "norm1": {"scale": 0, "bias": 0}}, rules)
    assert mask == {"layer_scale1": {"gamma": True}, "norm1": {"scale": False, "bias": False}}


@pytest.mark.parametrize("file", PUBLISHED)
def test_imagenet_recipe_has_its_familys_models_and_refuses_others(file):
    models = list(PUBLISHED[file])
    assert find_variant(models[0])[0].VARIANTS.keys() - UNTRAINED == set(models)
    assert read_config(f"{IMAGENET / file}.py").model.name in models
    message = f"'mambaout_tiny' is not a model of this recipe; models are {', '.join(models)};"
    with pytest.raises(ValueError, match=re.escape(message)):
        read_config(f"{IMAGENET / file}.py:mambaout_tiny")


@pytest.mark.optimised
@pytest.mark.slow
def test_quickstart_reads_98_percent_of_the_digits_on_one_device(tmp_path):
    result = subprocess.run(
        [sys.executable, str(QUICKSTART), "--workdir", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    last = read_metrics(tmp_path / "run")[-1]
    assert last["step"] == 660
    assert last["eval/top1"] >= 98
    assert f"eval/top1 {last['eval/top1']:.4g}" in result.stdout.strip().split("\n")[-1]


@pytest.mark.optimised
@pytest.mark.slow
def test_gpu_suite_keeps_what_it_measured_and_counts_what_failed(tmp_path):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    (tmp_path / "timm.py").write_text('raise ImportError("timm stays away")')
    command = ["bash", "experiments/gpu_suite.sh", str(tmp_path / "out"), "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "timm stays away; pip install torch timm" in done.stderr
    assert "== throughput FAILED" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"conv.json", "scan.json"}
