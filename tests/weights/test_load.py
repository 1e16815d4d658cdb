# SPDX-License-Identifier: Apache-2.0
"""Every source of weights gives the model that they were of, or says why not."""

import json
import logging
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from support.tiny_run import get_config
from support.weight_files import (
    FILES,
    MODEL,
    assert_same,
    logits,
    random_variables,
    torch_values,
    write_torch_file,
    write_torch_names,
)

from mambaout_jax.config_file import save_config
from mambaout_jax.models import create_model, model_options
from mambaout_jax.runtime.checkpoint import Checkpointer
from mambaout_jax.train.state import TrainState
from mambaout_jax.weights import load
from mambaout_jax.weights.convert import model_variables, to_torch
from mambaout_jax.weights.load import (
    convert_file,
    describe_source,
    load_pretrained,
    read_variables,
    save_variables,
)


@pytest.fixture(scope="module")
def variables():
    return random_variables()


@pytest.fixture
def images(rng):
    return rng.standard_normal((2, 32, 48, 3), np.float32)


@pytest.mark.parametrize("naming", ["timm", "official"])
def test_safetensors_of_torch_names_gives_the_same_logits(tmp_path, variables, images, naming):
    path = write_torch_names(tmp_path / "mambaout_tiny.safetensors", variables, naming)
    model, loaded = load_pretrained(path, **MODEL)
    assert_same(loaded, variables)
    source = create_model("mambaout_tiny", num_classes=3, **MODEL)
    np.testing.assert_array_equal(logits(model, loaded, images), logits(source, variables, images))


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".ckpt", ".safetensors", ""])
def test_torch_file_is_read_without_torch(tmp_path, suffix):
    before = "torch" in sys.modules  # a benchmark may have looked for it
    path = shutil.copy(FILES / "mambaout_tiny.pth", tmp_path / f"mambaout_tiny{suffix}")
    _, loaded = load_pretrained(path, **MODEL)
    state = to_torch("mambaout_tiny", loaded, naming="official", num_classes=3, **MODEL)
    assert_same(state, torch_values())
    assert ("torch" in sys.modules) == before


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
    special = np.array([1e-45, -0.0, 3e38], np.float32)
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
    assert model.backbone.in_chans == 1


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
    with pytest.raises(ValueError, match=r"tiny\.npz is empty; allowed are safetensors and files"):
        load_pretrained(path, **MODEL)


def test_torch_file_without_a_state_dict_is_told():
    with pytest.raises(ValueError, match=r"views\.pth: 'size' in it is a tuple, not a tensor"):
        load_pretrained(FILES / "views.pth", "mambaout_tiny", **MODEL)
    with pytest.raises(
        ValueError, match=r"legacy\.pth: .*not those of mambaout_tiny.*\n.*\n.*: w\n"
    ):
        load_pretrained(FILES / "legacy.pth", "mambaout_tiny", **MODEL)


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


@pytest.mark.parametrize("write", [safetensors.numpy.save_file, write_torch_file])
def test_bfloat16_stays_through_a_conversion_and_back(tmp_path, variables, write):
    state = to_torch("mambaout_tiny", variables, num_classes=3, **MODEL)
    state = {key: value.astype(jnp.bfloat16) for key, value in state.items()}
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        config = {"architecture": "mambaout_tiny", "model_args": MODEL}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    if write is write_torch_file:
        write(tmp_path / "one/pytorch_model.bin", state)
    else:
        write(state, tmp_path / "one/model.safetensors")
    own, back = tmp_path / "two/model.safetensors", tmp_path / "back.safetensors"
    convert_file(tmp_path / "one", own)
    convert_file(tmp_path / "two", back, naming="timm")
    assert_same(safetensors.numpy.load_file(back), state)
    assert {leaf.dtype for leaf in state.values()} == {np.dtype(jnp.bfloat16)}
    assert {x.dtype for x in safetensors.numpy.load_file(own).values()} == {np.dtype(jnp.bfloat16)}


def test_folder_of_timm_tells_name_and_options(tmp_path, variables):
    variables = jax.tree.map(np.array, variables)
    stem = variables["params"]["backbone"]["stem"]["conv1"]
    stem["kernel"] = stem["kernel"][:, :, :1]
    options = {**MODEL, "num_classes": 3, "in_chans": 1}
    state = to_torch("mambaout_tiny", variables, **options)
    write_torch_file(tmp_path / "pytorch_model.bin", state)
    config = {
        "architecture": "mambaout_tiny",
        "model_args": {**options, "global_pool": "avg", "drop_path_rate": 0.1},
        "pretrained_cfg": {"input_size": [1, 64, 64], "mean": [0.5], "std": [0.25]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, loaded = load_pretrained(tmp_path)
    assert_same(loaded, variables)
    assert (model.backbone.in_chans, model.head.num_classes) == (1, 3)
    prepared = describe_source(tmp_path)
    assert (prepared.image_size, prepared.mean, prepared.std) == (64, (0.5,), (0.25,))
    _, fresh = load_pretrained(tmp_path, num_classes=5, reset_head=True)
    assert fresh["params"]["head"]["classifier"]["kernel"].shape == (64, 5)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors; allowed are"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["torch_names", "own_names", "torch_file"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.int64), r"floating-point.*others: .*{leaf} \(int64\)"),
        (lambda x: np.where(x == x.max(), np.nan, x), r"NaN or infinite numbers: {leaf}"),
        (lambda x: np.where(x == x.max(), -np.inf, x), r"NaN or infinite numbers: {leaf}"),
    ],
)
def test_weights_that_are_not_finite_or_not_floating_are_refused(
    tmp_path, torch_names, own_names, kind, change, message
):
    path = own_names if kind == "own_names" else torch_names
    leaf = "params/backbone/stem/conv1/bias" if kind == "own_names" else "stem.conv1.bias"
    state = safetensors.numpy.load_file(path)
    state[leaf] = change(state[leaf])
    if kind == "torch_file":
        write_torch_file(path, state, "checkpoint", "model")
    else:
        safetensors.numpy.save_file(state, path)
    with pytest.raises(ValueError, match=rf"{path.name}: .*{message.format(leaf=leaf)}"):
        load_pretrained(path, "mambaout_tiny", **MODEL)


def test_conversion_that_does_not_read_back_is_an_error(tmp_path, monkeypatch):
    make_run(tmp_path / "run", ema=False)

    def flip_a_sign(tensors, *rest):
        name = "params/head/norm/bias"
        write({**tensors, name: -tensors[name]}, *rest)

    write = load._write
    monkeypatch.setattr(load, "_write", flip_a_sign)
    with pytest.raises(RuntimeError, match=r"differing: \['params/head/norm/bias'\]"):
        convert_file(tmp_path / "run", tmp_path / "out.safetensors")
