# SPDX-License-Identifier: Apache-2.0
"""Every source of weights gives the model that they were of, or says why not."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from goldens.fill import value_of
from hub_server import serve
from tiny_run import get_config

from mambaout_jax.checkpoint import Checkpointer
from mambaout_jax.config_file import save_config
from mambaout_jax.models import create_model, deit, find_variant
from mambaout_jax.train.state import TrainState
from mambaout_jax.weights import catalog, load
from mambaout_jax.weights.catalog import imagenet_classes
from mambaout_jax.weights.convert import model_variables, to_torch
from mambaout_jax.weights.load import (
    convert_file,
    describe_source,
    load_pretrained,
    read_variables,
    save_variables,
)
from mambaout_jax.weights.locate import model_options

FILES = Path(__file__).parent / "goldens" / "torch_files"
MODEL = {"depths": (1, 1), "dims": (8, 16)}


@pytest.fixture(scope="module")
def variables():
    """Random variables of a mambaout_tiny with `MODEL` and three classes."""
    rng = np.random.default_rng(0)
    shapes = model_variables(create_model("mambaout_tiny", num_classes=3, **MODEL), 32)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)


@pytest.fixture
def images(rng):
    return rng.standard_normal((2, 32, 48, 3), np.float32)


def logits(model, variables, images):
    return np.asarray(jax.jit(model.apply)(variables, images))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def write_torch_names(path, variables, naming="timm"):
    state = to_torch("mambaout_tiny", variables, naming=naming, num_classes=3, **MODEL)
    safetensors.numpy.save_file(state, path)
    return path


@pytest.mark.parametrize("naming", ["timm", "official"])
def test_safetensors_of_torch_names_gives_the_same_logits(tmp_path, variables, images, naming):
    path = write_torch_names(tmp_path / "mambaout_tiny.safetensors", variables, naming)
    model, loaded = load_pretrained(path, **MODEL)
    assert_same(loaded, variables)
    source = create_model("mambaout_tiny", num_classes=3, **MODEL)
    np.testing.assert_array_equal(logits(model, loaded, images), logits(source, variables, images))


def torch_values(seed=0):
    """What tests/goldens/torch_files/make.py has put into its state dicts, as variables."""
    shapes = model_variables(create_model("mambaout_tiny", num_classes=3, **MODEL), 32)
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    state = to_torch("mambaout_tiny", empty, naming="official", num_classes=3, **MODEL)
    return {name: value_of(name, value.shape, seed) for name, value in state.items()}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torch_file_is_read_without_torch(tmp_path, suffix):
    path = shutil.copy(FILES / "mambaout_tiny.pth", tmp_path / f"mambaout_tiny{suffix}")
    _, loaded = load_pretrained(path, **MODEL)
    state = to_torch("mambaout_tiny", loaded, naming="official", num_classes=3, **MODEL)
    assert_same(state, torch_values())
    assert "torch" not in sys.modules


@pytest.mark.parametrize("ema", [True, False])
def test_torch_checkpoint_gives_its_averaged_weights_unless_told_not_to(ema):
    _, loaded = load_pretrained(FILES / "with_average.pth", "mambaout_tiny", ema=ema, **MODEL)
    state = to_torch("mambaout_tiny", loaded, naming="official", num_classes=3, **MODEL)
    assert_same(state, torch_values(seed=1 if ema else 0))


def test_half_precision_file_is_widened(tmp_path, variables):
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    path = write_torch_names(tmp_path / "mambaout_tiny.safetensors", variables)
    state = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(
        {name: value.astype(jnp.bfloat16) for name, value in state.items()}, path
    )
    _, loaded = load_pretrained(path, **MODEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    assert_same(loaded, jax.tree.map(lambda leaf: leaf.astype(np.float32), halves))


def test_own_file_returns_bit_for_bit_and_knows_its_model(tmp_path, variables, images):
    special = np.array([np.nan, -0.0, np.inf], np.float32)
    variables = jax.tree.map(np.array, variables)
    variables["params"]["head"]["classifier"]["bias"] = special
    # Other collections, dtypes and layouts, too.
    more = {
        **variables,
        "batch_stats": {"bn": {"mean": jnp.ones(3, jnp.bfloat16), "count": np.int32(7)}},
        "table": {"t": np.arange(6.0).reshape(2, 3).T},
    }
    path = tmp_path / "weights.safetensors"
    save_variables(more, path, {"model": "mambaout_tiny", "note": "hello"})
    back, metadata = read_variables(path)
    assert metadata == {"model": "mambaout_tiny", "note": "hello"}
    assert jax.tree.structure(back) == jax.tree.structure(more)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(more), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == np.asarray(other).tobytes()

    save_variables(variables, path, {"model": "mambaout_tiny"})
    model, loaded = load_pretrained(path, **MODEL)
    assert loaded["params"]["head"]["classifier"]["bias"].tobytes() == special.tobytes()
    source = create_model("mambaout_tiny", num_classes=3, **MODEL)
    np.testing.assert_array_equal(logits(model, loaded, images), logits(source, variables, images))
    assert list(tmp_path.iterdir()) == [path]


def test_own_file_of_another_model_is_refused_by_path(tmp_path, variables):
    path = tmp_path / "weights.safetensors"
    save_variables(variables, path)
    with pytest.raises(ValueError, match="not those of mambaout_tiny") as info:
        load_pretrained(path, "mambaout_tiny", depths=(1, 2), dims=(8, 16))
    message = str(info.value)
    assert message.startswith(f"{path}: ")
    assert "params/backbone/stage_1_block_01/norm/scale" in message


def test_own_file_is_called_safetensors(tmp_path, variables):
    with pytest.raises(ValueError, match=r"call it .*weights\.npz\.safetensors"):
        save_variables(variables, tmp_path / "weights.npz")


def make_run(workdir, ema):
    """A run's working directory with a checkpoint; returns the model and its state."""
    config, rng = get_config(), np.random.default_rng(1)
    model = create_model(config.model.name, num_classes=10, **model_options(config))

    def filled(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32))

    variables = model_variables(model, 16)
    state = TrainState(
        step=jnp.int32(1),
        params=jax.tree.map(filled, variables["params"]),
        collections={},
        opt_state=(),
        ema=jax.tree.map(filled, variables) if ema else None,
    )
    workdir.mkdir()
    save_config(config, workdir / "config.json")
    with Checkpointer(workdir / "checkpoints", keep=1) as checkpointer:
        checkpointer.save(1, state, {})
    return model, state


def test_run_gives_its_averaged_weights_unless_told_not_to(tmp_path, rng):
    source, state = make_run(tmp_path / "run", ema=True)
    model, averaged = load_pretrained(tmp_path / "run")
    assert_same(averaged, jax.device_get(state.ema))
    _, raw = load_pretrained(str(tmp_path / "run"), ema=False)
    assert_same(raw, jax.device_get(state.variables))
    images = rng.standard_normal((2, 16, 16, 1), np.float32)
    np.testing.assert_array_equal(
        logits(model, averaged, images), logits(source, state.ema, images)
    )


def test_run_without_average_gives_its_weights(tmp_path):
    _, state = make_run(tmp_path / "run", ema=False)
    model, loaded = load_pretrained(tmp_path / "run", drop_path=0.5)
    assert_same(loaded, jax.device_get(state.variables))
    assert model.backbone.drop_path == 0.5
    assert model.in_chans == 1


def test_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*--workdir"):
        load_pretrained(tmp_path)
    save_config(get_config(), tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        load_pretrained(tmp_path)


@pytest.fixture
def torch_names(tmp_path, variables):
    return write_torch_names(tmp_path / "mambaout_tiny.safetensors", variables)


@pytest.fixture
def own_names(tmp_path, variables):
    save_variables(variables, tmp_path / "own.safetensors", {"model": "mambaout_tiny"})
    return tmp_path / "own.safetensors"


@pytest.mark.parametrize("kind", ["torch_names", "own_names"])
def test_other_class_count_needs_reset_head(kind, request):
    path = request.getfixturevalue(kind)
    for num_classes in (5, 2):
        with pytest.raises(ValueError, match=rf"3 classes.*num_classes={num_classes}.*reset_head"):
            load_pretrained(path, num_classes=num_classes, **MODEL)


@pytest.mark.parametrize("kind", ["torch_names", "own_names"])
def test_reset_head_makes_only_the_last_layer_anew_and_says_so(kind, request, variables, caplog):
    path = request.getfixturevalue(kind)
    with caplog.at_level(logging.WARNING, "mambaout_jax"):
        model, loaded = load_pretrained(path, reset_head=True, num_classes=5, seed=3, **MODEL)
    (record,) = (record for record in caplog.records if record.name == "mambaout_jax")
    assert record.getMessage() == (
        f"{path}: initialised afresh for 5 classes: "
        "params/head/classifier/bias, params/head/classifier/kernel"
    )
    # What the model's own initialisation makes of this seed.
    initial = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))
    fresh, made = (
        initial["params"]["head"]["classifier"],
        loaded["params"]["head"].pop("classifier"),
    )
    np.testing.assert_allclose(made["kernel"], fresh["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(made["bias"], np.zeros(5))
    assert made["kernel"].std() == pytest.approx(0.02, rel=0.2)
    kept = jax.tree.map(np.array, variables)
    del kept["params"]["head"]["classifier"]
    assert_same(loaded, kept)
    assert {"norm", "hidden", "hidden_norm"} == set(loaded["params"]["head"])


def test_reset_head_also_with_the_same_class_count(torch_names, variables, caplog):
    _, loaded = load_pretrained(torch_names, reset_head=True, **MODEL)
    assert "initialised afresh for 3 classes" in caplog.text
    old = variables["params"]["head"]["classifier"]["kernel"]
    new = loaded["params"]["head"]["classifier"]["kernel"]
    assert new.shape == old.shape
    assert not np.any(new == old)


@pytest.mark.parametrize("kind", ["torch_names", "own_names"])
def test_no_classes_give_what_the_classifier_would_read(kind, request, variables, images):
    model, loaded = load_pretrained(request.getfixturevalue(kind), num_classes=0, **MODEL)
    assert "classifier" not in loaded["params"]["head"]
    features = logits(model, loaded, images)
    layer = variables["params"]["head"]["classifier"]
    source = create_model("mambaout_tiny", num_classes=3, **MODEL)
    np.testing.assert_allclose(
        features @ layer["kernel"] + layer["bias"],
        logits(source, variables, images),
        rtol=1e-5,
        atol=1e-4,
    )


def test_weights_without_classifier_are_read_and_may_get_one(tmp_path, own_names):
    _, headless = load_pretrained(own_names, num_classes=0, **MODEL)
    path = tmp_path / "headless.safetensors"
    save_variables(headless, path)
    model, loaded = load_pretrained(path, "mambaout_tiny", **MODEL)
    assert model.head.num_classes == 0
    assert_same(loaded, headless)
    with pytest.raises(ValueError, match="0 classes, and num_classes=5"):
        load_pretrained(path, "mambaout_tiny", num_classes=5, **MODEL)
    _, loaded = load_pretrained(path, "mambaout_tiny", True, num_classes=5, **MODEL)
    assert loaded["params"]["head"]["classifier"]["kernel"].shape == (64, 5)


def test_other_input_channels_are_an_error_that_shows_them(torch_names):
    with pytest.raises(ValueError, match="in_chans") as info:
        load_pretrained(torch_names, in_chans=1, **MODEL)
    assert "stem.conv1.weight (the model has (4, 1, 3, 3), the weights have (4, 3, 3, 3))" in str(
        info.value
    )


def test_other_model_is_an_error_and_reset_head_does_not_hide_it(torch_names):
    for reset_head in (False, True):
        with pytest.raises(ValueError, match="not those of mambaout_tiny"):
            load_pretrained(torch_names, reset_head=reset_head, depths=(1, 1), dims=(8, 24))


def test_name_comes_from_the_file_or_must_be_given(tmp_path, variables, torch_names):
    tagged = shutil.copy(torch_names, tmp_path / "mambaout_tiny.my_run.safetensors")
    assert_same(load_pretrained(tagged, **MODEL)[1], variables)
    other = shutil.copy(torch_names, tmp_path / "best.safetensors")
    with pytest.raises(ValueError, match=r"best\.safetensors does not say.*give name=.*femto"):
        load_pretrained(other, **MODEL)
    assert_same(load_pretrained(other, "mambaout_tiny", **MODEL)[1], variables)
    with pytest.raises(ValueError, match=r"did you mean mambaout_tiny"):
        load_pretrained(other, "mambaout_tony", **MODEL)


def test_damaged_and_unknown_files_are_named(tmp_path, torch_names):
    whole = torch_names.read_bytes()
    torch_names.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"mambaout_tiny\.safetensors is damaged.*again"):
        load_pretrained(torch_names, **MODEL)
    path = tmp_path / "mambaout_tiny.npz"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"suffix '\.npz'.*allowed are \.safetensors, \.pth"):
        load_pretrained(path, **MODEL)


def test_torch_file_without_a_state_dict_is_told():
    with pytest.raises(ValueError, match="not those of mambaout_tiny") as info:
        load_pretrained(FILES / "views.pth", "mambaout_tiny", **MODEL)
    assert "transposed" in str(info.value)


# The hub's client reads its environment when it is imported: a process of its own.
HUB = """
import json, sys, time
from mambaout_jax.weights.load import describe_source, load_pretrained, save_variables
time.sleep = lambda seconds: None  # the client waits between its tries
answers = []
for i, (source, name) in enumerate(json.loads(sys.argv[2])):
    try:
        _, variables = load_pretrained(source, name, depths=(1, 1), dims=(8, 16))
        save_variables(variables, f"{sys.argv[1]}/{i}.safetensors")
        answers.append([None, str(describe_source(source, name))])
    except Exception as error:
        answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def run_on_hub(home, url, *sources):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", HUB, str(home), json.dumps(sources)],
        env={**os.environ, "HF_HOME": str(home / "hub"), "HF_ENDPOINT": url},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers = json.loads(result.stdout)
    loaded = [
        read_variables(home / f"{i}.safetensors")[0] if error is None else None
        for i, (error, _) in enumerate(answers)
    ]
    return answers, loaded


def hub_config(**changes):
    config = {
        "architecture": "mambaout_tiny",
        "num_classes": 3,
        "pretrained_cfg": {
            "input_size": [3, 192, 192],
            "crop_pct": 0.875,
            "crop_mode": "squash",
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "label_names": ["cat", "dog", "eel"],
        **changes,
    }
    return json.dumps(config).encode()


def test_hub_repositories_and_the_catalog_load_over_the_hub(tmp_path, variables):
    body = write_torch_names(tmp_path / "weights.safetensors", variables).read_bytes()
    sources = [
        ("mambaout_tiny.in1k", None),
        ("hf_hub:me/mine", None),
        ("hf-hub:me/mine@main", "mambaout_tiny"),
        ("hf_hub:me/other", None),
        ("hf_hub:me/changed", None),
        ("hf_hub:me/absent", None),
    ]
    with serve() as server:
        server.files = {
            "timm/mambaout_tiny.in1k/model.safetensors": body,
            "me/mine/model.safetensors": body,
            "me/mine/config.json": hub_config(),
            "me/other/config.json": hub_config(architecture="resnet50"),
            "me/changed/config.json": hub_config(model_args={"act_layer": "relu"}),
        }
        answers, loaded = run_on_hub(tmp_path, server.url, *sources)
        url = server.url
    for i in range(3):
        assert answers[i][0] is None, answers[i][1]
        assert_same(loaded[i], variables)
    assert "image_size=224, crop_fraction=1.0" in answers[0][1]
    for i in (1, 2):
        assert answers[i][1] == (
            "Preprocessing(image_size=192, crop_fraction=0.875, crop_mode='squash', "
            "interpolation='bilinear', mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), "
            "class_names=('cat', 'dog', 'eel'))"
        )
    assert answers[3][0] == "ValueError"
    assert "me/other has architecture='resnet50'" in answers[3][1]
    assert answers[4][0] == "ValueError"
    assert "model_args={'act_layer': 'relu'}" in answers[4][1]
    assert answers[5][0] == "FileNotFoundError"
    assert f"{url} has no repository me/absent" in answers[5][1]

    # The server is gone; what was loaded before still loads.
    answers, loaded = run_on_hub(tmp_path, url, *sources[:2], ("mambaout_femto.in1k", None))
    for i in range(2):
        assert answers[i][0] is None, answers[i][1]
        assert_same(loaded[i], variables)
    assert answers[2][0] == "FileNotFoundError"
    assert "model.safetensors of timm/mambaout_femto.in1k is not in the cache" in answers[2][1]


def test_url_and_official_weights_load_over_the_web(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serve() as server:
        server.files["release/mambaout_tiny.pth"] = (FILES / "mambaout_tiny.pth").read_bytes()
        url = f"{server.url}/release/mambaout_tiny.pth"
        official = dataclasses.replace(catalog.CATALOG["mambaout_tiny.official"], source=url)
        monkeypatch.setitem(catalog.CATALOG, "mambaout_tiny.official", official)
        for source in (f"{url}?download=true", url, "mambaout_tiny.official"):
            _, loaded = load_pretrained(source, **MODEL)
            state = to_torch("mambaout_tiny", loaded, naming="official", num_classes=3, **MODEL)
            assert_same(state, torch_values())
        assert len(server.requests) == 2
        wrong = dataclasses.replace(official, sha256="0" * 64)
        monkeypatch.setitem(catalog.CATALOG, "mambaout_tiny.official", wrong)
        with pytest.raises(ValueError, match="published is 000"):
            load_pretrained("mambaout_tiny.official", **MODEL)
        with pytest.raises(ValueError, match="does not say which model"):
            load_pretrained(f"{server.url}/release/best.pth")
        assert len(server.requests) == 2
    assert describe_source(url).class_names == imagenet_classes()


@pytest.mark.parametrize("naming", [None, "timm", "official"])
def test_converted_run_loads_as_the_run_did(tmp_path, naming):
    _, state = make_run(tmp_path / "run", ema=True)
    out = tmp_path / "out.safetensors"
    text = convert_file(tmp_path / "run", out, naming=naming)
    assert f"mambaout_micro, 10 classes, {naming or 'own'} names" in text
    assert f"{len(jax.tree.leaves(state.ema))} tensors equal bit for bit" in text
    _, loaded = load_pretrained(out, in_chans=1, **MODEL)
    assert_same(loaded, jax.device_get(state.ema))
    key = {None: "params/head/hidden/kernel", "timm": "head.pre_logits.fc.weight"}
    assert key.get(naming, "head.fc1.weight") in safetensors.numpy.load_file(out)


def test_conversion_that_does_not_read_back_is_an_error(tmp_path, monkeypatch):
    make_run(tmp_path / "run", ema=False)

    def flip_a_sign(tensors, *rest):
        name = "params/head/norm/bias"
        write({**tensors, name: -tensors[name]}, *rest)

    write = load._write
    monkeypatch.setattr(load, "_write", flip_a_sign)
    with pytest.raises(RuntimeError, match=r"differing: \['params/head/norm/bias'\]"):
        convert_file(tmp_path / "run", tmp_path / "out.safetensors")


DEIT = {"dim": 12, "depth": 1, "heads": 3}


def write_deit(path, image_size, own=False):
    """Random weights of a small DeiT for images of a size, in timm's names or our own."""
    options = {**DEIT, "num_classes": 3, "image_size": image_size}
    rng = np.random.default_rng(0)
    shapes = model_variables(create_model("deit_tiny_patch16_224", **options), image_size)
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    if own:
        save_variables(variables, path, {"model": "deit_tiny_patch16_224"})
    else:
        safetensors.numpy.save_file(to_torch("deit_tiny_patch16_224", variables, **options), path)
    return variables


@pytest.mark.parametrize("own", [False, True])
def test_position_table_tells_the_image_size(tmp_path, own):
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    variables = write_deit(path, 80, own)
    model, loaded = load_pretrained(path, **DEIT)
    assert model.backbone.grid == (5, 5)
    assert_same(loaded, variables)
    _, again = load_pretrained(path, image_size=(80, 80), **DEIT)
    assert_same(again, variables)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("image_size", [64, (48, 112)])
def test_other_image_size_interpolates_the_positions_once_and_says_so(
    tmp_path, rng, caplog, own, image_size
):
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    variables = write_deit(path, 80, own)
    with caplog.at_level(logging.INFO, "mambaout_jax"):
        model, loaded = load_pretrained(path, image_size=image_size, **DEIT)
    rows, columns = (4, 4) if image_size == 64 else (3, 7)
    words = f"{path}: positions interpolated from 5 x 5 to {rows} x {columns} patches"
    assert [record.getMessage() for record in caplog.records] == [words]
    assert model.backbone.grid == (rows, columns)
    assert loaded["params"]["backbone"]["pos_embed"].shape == (1, 1 + rows * columns, 12)
    # What the model of the weights' own size does with such images.
    images = rng.standard_normal((2, 16 * rows, 16 * columns, 3), np.float32)
    source = create_model("deit_tiny_patch16_224", num_classes=3, image_size=80, **DEIT)
    np.testing.assert_allclose(
        logits(model, loaded, images), logits(source, variables, images), atol=1e-5
    )
    for name in ("cls_token", "patch_embed", "block_00"):
        assert_same(loaded["params"]["backbone"][name], variables["params"]["backbone"][name])


def test_table_that_is_not_square_needs_its_image_size(tmp_path):
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    variables = write_deit(path, (32, 80))
    _, loaded = load_pretrained(path, image_size=(32, 80), **DEIT)
    assert_same(loaded, variables)
    with pytest.raises(ValueError, match=r"has \(1, 197, 12\), the weights have \(1, 11, 12\)"):
        load_pretrained(path, **DEIT)


def test_last_layer_afresh_at_a_size_that_the_published_one_does_not_fit(tmp_path):
    options = {**DEIT, "patch_size": 5}
    path = tmp_path / "deit_tiny_patch16_224.safetensors"
    model = create_model("deit_tiny_patch16_224", num_classes=3, image_size=20, **options)
    variables = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), model_variables(model, 20)
    )
    save_variables(variables, path)
    model, loaded = load_pretrained(path, reset_head=True, num_classes=4, **options)
    assert model.backbone.image_size == 20
    assert loaded["params"]["head"]["classifier"]["kernel"].std() == pytest.approx(0.02, rel=0.4)


@pytest.mark.parametrize("naming", [None, "timm"])
def test_converted_file_keeps_its_position_table(tmp_path, monkeypatch, naming):
    # Without options there is only the published shape of the network.
    row = find_variant("deit_tiny_patch16_224")[1]
    monkeypatch.setitem(deit.VARIANTS, "deit_tiny_patch16_224", row._replace(backbone=DEIT))
    path, out = tmp_path / "deit_tiny_patch16_224.safetensors", tmp_path / "out.safetensors"
    variables = write_deit(path, 64, own=naming is not None)
    assert "tensors equal bit for bit" in convert_file(path, out, naming=naming)
    _, loaded = load_pretrained(out, "deit_tiny_patch16_224")
    assert_same(loaded, variables)
