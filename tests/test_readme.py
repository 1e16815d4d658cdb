# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: its commands run, its paths exist, its code computes what it says."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import jax
import numpy as np
import pytest
import safetensors.numpy
from support import miniature_ade20k, miniature_coco, miniature_imagenet
from support.hub_server import HubServer
from support.photo_patches import write_photo_patches

from mambaout_jax.cli.main import main
from mambaout_jax.models import create_model
from mambaout_jax.weights.convert import to_torch

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    return [line for block in blocks("bash") for line in block.strip().split("\n")]


def test_the_first_command_is_the_quickstart_and_the_second_the_tests():
    assert commands()[:2] == [
        "pip install -e . && python experiments/quickstart.py",
        "pip install -e '.[dev]' && pytest",
    ]


@pytest.fixture(scope="module")
def hub():
    """A hub on this machine with weights of mambaout_femto."""
    model = create_model("mambaout_femto")
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.02, x.shape).astype(x.dtype), shapes)
    state_dict = to_torch("mambaout_femto", variables)
    with HubServer() as server:
        server.files["timm/mambaout_femto.in1k/model.safetensors"] = safetensors.numpy.save(
            state_dict
        )
        yield server


@pytest.fixture
def on_the_hub(hub, tmp_path, monkeypatch):
    """Downloads come from there, into an empty cache."""
    client = huggingface_hub.constants
    template = client.HUGGINGFACE_CO_URL_TEMPLATE.replace(client.ENDPOINT, hub.url)
    monkeypatch.setattr(client, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(client, "ENDPOINT", hub.url)
    monkeypatch.setattr(client, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return hub


def extra_arguments(arguments):
    """What makes the commands as they stand quick: fewer updates, small models and images."""
    if arguments[0] == "prepare":
        return [] if arguments[1] == "coco" else ["--partial"]
    if arguments[0] not in ("train", "compare"):
        return []
    extra = ["--seeds=1"] if arguments[0] == "compare" else []
    extra += ["--config.schedule.total_steps=2", "--config.schedule.warmup_steps=1"]
    if any("imagenet/" in argument for argument in arguments):
        extra += ["--config.model.name=test_mambaout", "--config.data.image_size=32",
                  "--config.batch_size=32", "--config.data.num_threads=2",
                  "--config.accumulate_steps=1",
                  "--config.augment.mix_group_size=4", "--config.schedule.cooldown_steps=0",
                  "--config.evaluation.batch_size=8"]  # fmt: skip
    if any("folder.py" in argument for argument in arguments):
        extra += ["--config.data.image_size=32", "--config.batch_size=16",
                  "--config.data.num_threads=2"]  # fmt: skip
    if "experiments/folder.py" in arguments:
        extra.append("--config.model.name=mambaout_micro")
    return extra


@pytest.mark.slow
def test_every_mambaout_command_runs(tmp_path, monkeypatch, capsys, on_the_hub):
    lines = [line for line in commands() if line.startswith("mambaout ")]
    assert len(lines) == sum("mambaout" in line.split(" ")[0] for line in commands()) >= 16
    for name in ("experiments", "mambaout_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    write_photo_patches(tmp_path / "photos", per_class=8)
    miniature = miniature_imagenet.build(tmp_path / "made", images_per_class=40)
    miniature.train_tar.rename("ILSVRC2012_img_train.tar")
    miniature.val_tar.rename("ILSVRC2012_img_val.tar")
    miniature_coco.write(tmp_path / "COCO", *[miniature_coco.instances() for _ in range(2)])
    miniature_ade20k.build(tmp_path / "ade20k")
    miniature_ade20k.zipped(tmp_path / "ade20k", tmp_path / "ADEChallengeData2016.zip")
    for line in lines:
        arguments = shlex.split(line)[1:]
        if "--distributed" in arguments:
            run_as_a_job_of_one(arguments)
        else:
            assert main([*arguments, *extra_arguments(arguments)]) == 0, line
    output = capsys.readouterr().out
    assert "effective batch    64 = 8 devices x 8 examples x 1 micro-batches" in output
    assert "shift over lax" in output
    assert "chunked" in output
    assert "round trip" in output
    assert re.search(r"^val +8 images +top-1 \d", output, re.MULTILINE)
    for picture in ("batch.png", "runs/other/curves.png", "runs/other/figures/mistakes.png",
                    "predictions.png", "runs/folder/figures/confusion_matrix.png",
                    "runs/tuned/figures/confusion_matrix.png"):  # fmt: skip
        assert (tmp_path / picture).stat().st_size > 1000, picture
    downloads = [line for line in on_the_hub.requests if re.match("GET .*/resolve/", line)]
    assert len(downloads) == 1  # once, for three commands


def run_as_a_job_of_one(arguments):
    """Runs a command as Slurm would start the one process of a job."""
    slurm = {"SLURM_JOB_ID": "1024", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "1",
             "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # fmt: skip
    command = [sys.executable, "-m", "mambaout_jax", *arguments, *extra_arguments(arguments)]
    result = subprocess.run(
        command, env={**os.environ, **slurm}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "runs/pod" in result.stdout


@pytest.mark.slow
def test_every_program_runs(tmp_path):
    lines = [line for line in commands() if line.startswith("python ")]
    assert len(lines) == 1
    for line in lines:
        program, *arguments = shlex.split(line)[1:]
        command = [sys.executable, str(ROOT / program), *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=600, capture_output=True)
        assert (tmp_path / f"{arguments[-1]}.png").stat().st_size > 1000


@pytest.mark.slow
def test_every_install_command_resolves():
    lines = [line for line in commands() if line.startswith("pip install") and "&&" not in line]
    assert len(lines) == 3
    for line in lines:
        arguments = shlex.split(line)[2:]
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, timeout=600)


@pytest.mark.slow
def test_python_code_computes_what_its_comments_say(on_the_hub):
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["logits"].shape == (1, 10)
    expected = re.search(r"\[m\.shape for m in maps\]\s+# (.*)", TEXT).group(1)
    assert [m.shape for m in namespace["maps"]] == ast.literal_eval(expected)
    last = blocks("python")[-1].strip().split("\n")[-1]
    assert last.endswith("# True")
    assert eval(last, namespace) is True
    for one, other in zip(
        namespace["again"]["params"]["head"].values(),
        namespace["variables"]["params"]["head"].values(),
        strict=True,
    ):
        for leaf in one:
            np.testing.assert_array_equal(one[leaf], other[leaf])


def read_result(name):
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def test_answer_to_the_question_is_what_the_grid_found():
    cells = {
        (task["name"], cell["mixer"]): cell["runs"]
        for task in read_result("ablation_small")["tasks"]
        for cell in task["cells"]
        if "runs" in cell
    }

    def right(task, mixer="conv"):
        return f"{100 * np.mean([run['accuracy'] for run in cells[task, mixer]]):.1f} %"

    def between(first, last):
        found = [run["by_distance"] for run in cells["flip_flop_long", "conv"]]
        assert all(by_distance["width"] == 8 for by_distance in found)
        hits, count = (sum(sum(x[key][first:last]) for x in found) for key in ("hits", "count"))
        return f"{100 * hits / count:.1f} %"

    both, forwards = "conv+ssm bidirectional", "conv+ssm causal"
    text = " ".join(TEXT.split())
    for words in (
        f"`cue_short`, 36 fully visible tokens: {right('cue_short')} of the answers are right "
        f"without and {right('cue_short', both)} with a bidirectional SSM",
        f"`cue_long`, 196 tokens: {right('cue_long')} without, {right('cue_long', both)} with it",
        f"`flip_flop_long`, 128 tokens: {right('flip_flop_long')} and "
        f"{right('flip_flop_long', forwards)})",
        f"is right in {between(0, 1)} of the answers less than 8 tokens away and, from 16 on, in "
        f"{between(2, None)})",
    ):
        assert words in text


def test_official_code_is_as_much_slower_as_is_said():
    rows = read_result("throughput_official_cpu")["rows"]
    assert [row["model"] for row in rows] == ["vim_tiny", "vmamba_v9_tiny"]
    vim, vmamba = (row["speedup"]["official"]["median"] for row in rows)
    assert f"ours were {vim:.1f} and {vmamba:.1f} times as fast" in " ".join(TEXT.split())


def test_table_of_speed_is_made_from_the_measurements():
    measured = read_result("throughput_cpu")["rows"]
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.–|() ]+) \|$", TEXT, re.MULTILINE))
    assert rows.keys() == {row["model"] for row in measured}
    for row in measured:
        cells = rows[row["model"]].split(" | ")[3 * (row["pass"] == "training") :][:3]
        speeds, ratios = row["images_per_second"], row["speedup"]
        expected = [
            f"{speeds[name]['median']:.1f}" if name in speeds else "–"
            for name in ("ours", "timm", "timm compiled")
        ]
        for column, name in enumerate(("timm", "timm compiled"), start=1):
            if name in ratios:
                expected[column] += f" ({ratios[name]['median']:.2f})"
        assert cells == expected


def test_what_huge_pages_bring_is_measured():
    def training(result):
        return {row["model"]: row for row in result["rows"] if row["pass"] == "training"}

    huge, plain = read_result("throughput_cpu"), read_result("throughput_cpu_plain")
    pages = [result["environment"]["glibc_tunables"] for result in (huge, plain)]
    assert pages == ["glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=0"]
    huge, plain = training(huge), training(plain)
    saved = [
        100 - 100 * huge[name]["milliseconds"]["ours"]["median"] / milliseconds["ours"]["median"]
        for name, milliseconds in ((name, row["milliseconds"]) for name, row in plain.items())
    ]
    words = f"{min(saved):.0f} to {max(saved):.0f} % less"
    assert words in " ".join(TEXT.split())
    assert words in (ROOT / "mambaout_jax" / "runtime" / "huge_pages.py").read_text()
    ratios = [row["speedup"]["timm"]["median"] for row in plain.values()]
    words = f"without them training is {min(ratios):.2f} to {max(ratios):.2f} times as fast"
    assert words in " ".join(TEXT.split())


def test_speed_of_dense_models_is_measured():
    rows = read_result("dense_cpu")["rows"]
    ratios = [f"{ratio['median']:.2f}" for row in rows for ratio in row["speedup"].values()]
    assert [(row["task"], row["pass"]) for row in rows] == [
        (task, kind) for task in ("detection", "segmentation") for kind in ("inference", "training")
    ]
    words = (
        "Mask R-CNN at 1344 x 800 pixels is {} times as fast as torchvision's at inference and {} "
        "times in training, UperNet at 512 x 512 is {} and {} times as fast as the one of"
    )
    assert words.format(*ratios) in " ".join(TEXT.split())
    assert all(max(row["differences"].values()) < 1e-4 for row in rows)


def test_speed_of_the_depthwise_convolution_is_measured():
    over = {"lax": [], "torch": []}
    forward = []
    for row in read_result("conv_cpu")["rows"]:
        if row["pass"] == "forward":
            forward.append(1 / row["speedup"]["torch"]["median"])
            continue
        for name, ratios in over.items():
            ratios.append(row["speedup"][name]["median"])
    text = " ".join(TEXT.split())
    lax, torch = over.values()
    words = f"{min(lax):.0f} to {max(lax):.0f} times faster"
    assert f"{words} than XLA's own and {min(torch):.1f} to {max(torch):.1f} times faster" in text
    assert words in " ".join(
        (ROOT / "mambaout_jax" / "kernels" / "depthwise_conv.py").read_text().split()
    )
    assert (
        f"forward alone PyTorch's is {min(forward):.0f} to {max(forward):.0f} times faster" in text
    )


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w/.]+\.\w+)\)", TEXT))))
def test_linked_files_exist(path):
    assert (ROOT / path).is_file()


def test_the_tree_names_what_is_there():
    (tree,) = (block for block in blocks("text") if block.startswith("mambaout_jax/"))
    names = re.findall(r"^(?:  )?([\w/.]+)  ", tree, re.MULTILINE)
    package = set(re.findall(r"^  ([\w/.]+)  ", tree, re.MULTILINE))
    for name in names:
        assert (ROOT / "mambaout_jax" / name if name in package else ROOT / name).exists(), name
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / "mambaout_jax").iterdir()
        if not path.name.startswith("__")
    }
    assert package == there


@pytest.mark.parametrize(("file", "test"), re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT))
def test_tests_of_promises_exist(file, test):
    assert f"\ndef {test}(" in (ROOT / file).read_text()
