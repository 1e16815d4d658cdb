# SPDX-License-Identifier: Apache-2.0
"""The training step against a float64 loop, itself on other meshes, and the laws it states.

Programs are compiled without LLVM's optimisation, which would take most of the tests' time.
"""

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.small_steps import (
    CLASSES,
    QUICK,
    RATES,
    SHAPE,
    Dropped,
    Linear,
    Normed,
    Recorded,
    assert_close,
    assert_equal,
    compile_step,
    flat,
    follow,
    init,
    make_batches,
    make_config,
    make_mesh,
    make_step,
    micro,
    run,
    shardings_of,
    task_of,
)

from mambaout_jax.runtime.mesh import put_batch
from mambaout_jax.train.step import step_keys


@pytest.fixture(scope="module")
def first_state():
    """The initial state of the small MambaOut with an average, on one device and fetched."""
    model, config = micro(), make_config(**{"ema.decay": 0.9})
    return jax.device_get(init(model, config, make_mesh(1, 1))[0])


def place(state, config, mesh):
    """The fetched state on the mesh, without its average where none is kept."""
    state = state if config.ema.decay else state.replace(ema=None)
    shardings = shardings_of(state, mesh)
    return jax.tree.map(jax.device_put, state, shardings), shardings


def run_micro(config, mesh, batches, first_state, dtype=jnp.float32):
    """States, sums and the last state of `follow`, and the text of the compiled step."""
    state, shardings = place(first_state, config, mesh)
    step = make_step(micro(dtype), config, mesh, shardings)
    step = compile_step(step, state, config)
    return *follow(step, state, batches, mesh), step.as_text()


def collectives(text):
    return set(re.findall(r"\b(all-gather|all-to-all|collective-permute|all-reduce)\b", text))


# Updates against float64.

CLIP, DECAY, AVERAGE = 0.5, 0.05, 0.9


def loss_in_float64(params, batch):
    x = (jnp.asarray(batch["image"], jnp.float64) / 255 - 0.4) / 0.3
    logits = micro().apply({"params": params}, x)
    targets = 0.9 * jnp.eye(CLASSES)[batch["label"]] + 0.1 / CLASSES
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return -(targets * (shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True)))).sum(-1).mean()


@pytest.fixture(scope="module")
def oracle(first_state):
    """Per update: loss, gradient norm, parameters and their average, by hand in float64."""
    results = []
    with jax.enable_x64(True):
        differentiate = jax.jit(jax.value_and_grad(loss_in_float64), compiler_options=QUICK)
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), first_state.params)
        average = flat(params)
        moments = dict.fromkeys(average, (0.0, 0.0))
        for number, batch in enumerate(make_batches(3), start=1):
            loss, gradients = jax.device_get(differentiate(params, batch))
            if number == 1:
                assert_slope(differentiate, params, batch, gradients)
            gradients, params = flat(gradients), flat(params)
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            for name, g in gradients.items():
                g = g * min(1, CLIP / norm)
                m, v = moments[name]
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                moments[name] = m, v
                update = m / (1 - 0.9**number) / (np.sqrt(v / (1 - 0.999**number)) + 1e-2)
                decay = DECAY * params[name] if name.endswith("/kernel") else 0
                params[name] = params[name] - RATES[number - 1] * (update + decay)
                average[name] = AVERAGE * average[name] + (1 - AVERAGE) * params[name]
            params = flax.traverse_util.unflatten_dict(params, sep="/")
            results.append((float(loss), norm, params, dict(average)))
    return results


def assert_slope(differentiate, params, batch, gradients):
    """The gradient along a random direction is the slope of the loss there."""
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda p: rng.standard_normal(p.shape), params)
    h = 1e-6
    ahead, _ = differentiate(jax.tree.map(lambda p, d: p + h * d, params, direction), batch)
    behind, _ = differentiate(jax.tree.map(lambda p, d: p - h * d, params, direction), batch)
    along = sum(
        (g * d).sum()
        for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    )
    assert float(ahead - behind) / (2 * h) == pytest.approx(along, rel=1e-6)


PLAIN = {"optimizer.clip_norm": CLIP, "optimizer.weight_decay": DECAY, "ema.decay": AVERAGE}


@pytest.mark.parametrize(
    ("data", "fsdp", "accumulate_steps"),
    [
        pytest.param(8, 1, 1, marks=pytest.mark.slow),
        (4, 2, 2),
        pytest.param(1, 8, 1, marks=pytest.mark.slow),
    ],
)
def test_step_is_clipped_adamw_on_the_mean_loss(
    data, fsdp, accumulate_steps, first_state, oracle, monkeypatch, capfd
):
    monkeypatch.setattr("mambaout_jax.runtime.mesh._MIN_SHARDED_SIZE", 64)  # nearly all are split
    config = make_config(accumulate_steps=accumulate_steps, **PLAIN)
    states, sums, state, text = run_micro(
        config, make_mesh(data, fsdp), make_batches(3), first_state
    )
    for number, (loss, norm, params, average) in enumerate(oracle):
        got = states[number]
        assert norm > CLIP  # so that clipping matters
        assert float(sums[number]["loss"]) == pytest.approx(64 * loss, rel=1e-5)
        assert float(sums[number]["count"]) == 64
        assert float(sums[number]["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
        assert int(got.step) == number + 1
        assert_close(got.params, params, rtol=1e-5, atol=2e-6)
        assert_close(flat(got.ema["params"]), average, rtol=1e-5, atol=2e-6)
        assert got.collections == {}

    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    # All that ever moves are gradients and, where they are split, parameters.
    assert collectives(text) == ({"all-reduce"} if fsdp == 1 else {"all-reduce", "all-gather"})

    for part in (state.params, state.opt_state[1].mu, state.opt_state[1].nu, state.ema["params"]):
        for name, leaf in flat(part).items():
            split = leaf.size >= 64 and any(n % fsdp == 0 for n in leaf.shape)
            split &= not (leaf.ndim == 4 and leaf.shape[2] == 1)
            held = {shard.data.size for shard in leaf.addressable_shards}
            assert held == {leaf.size // fsdp if split else leaf.size}, name


@pytest.mark.slow
def test_bfloat16_step_keeps_parameters_and_moments_in_float32(first_state, oracle):
    config = make_config(**{"model.dtype": "bfloat16"}, **PLAIN)
    (state,), (sums,), *_ = run_micro(
        config, make_mesh(1, 1), make_batches(1), first_state, jnp.bfloat16
    )
    loss, norm, *_ = oracle[0]
    error = abs(float(sums["loss"]) / (64 * loss) - 1)
    assert 1e-6 < error < 1e-2
    assert float(sums["gradient_norm"]) == pytest.approx(norm, rel=5e-2)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema))}
    assert dtypes == {np.dtype("float32"), np.dtype("int32")}  # optimisers count their updates


# Micro-batches.


@pytest.mark.slow
def test_micro_batches_on_eight_devices_are_one_batch_on_one(first_state):
    augmented = {
        "augment.mixup_alpha": 0.8, "augment.mix_group_size": 2, "augment.erase_probability": 0.5
    }  # fmt: skip
    whole = run_micro(make_config(**augmented), make_mesh(1, 1), make_batches(3), first_state)
    split = run_micro(
        make_config(accumulate_steps=4, **augmented), make_mesh(8, 1), make_batches(3), first_state
    )
    for got, want in zip(split[0], whole[0], strict=True):
        assert_close(got.params, want.params, rtol=1e-5, atol=2e-6)
    for got, want in zip(split[1], whole[1], strict=True):
        assert_close(got, want, rtol=1e-5)
    assert collectives(split[-1]) == {"all-reduce"}  # of gradients: no example ever moves


def pair_matrix(logits, batch):
    """Σ target targetᵀ; with one class per example it shows who was mixed with whom, and how."""
    return batch["target"].T @ batch["target"]


def test_micro_batches_draw_their_own_mixing():
    config = make_config(
        accumulate_steps=4, **{"augment.mixup_alpha": 0.8, "loss.label_smoothing": 0.0}
    )
    batch = {"image": np.zeros((64, *SHAPE), np.uint8), "label": np.arange(64, dtype=np.int32)}
    mesh = make_mesh(8, 1)
    state, shardings = init(Linear(), config, mesh)
    step = make_step(Linear(), config, mesh, shardings, Recorded(pair_matrix, config, 64))
    _, sums = compile_step(step, state, config)(state, put_batch(batch, mesh))
    pairs = np.asarray(sums["record"])

    own = np.diag(pairs)
    # A micro-batch is two examples of every device, and one group.
    groups = np.arange(64).reshape(8, 4, 2).swapaxes(0, 1).reshape(4, 16)
    for group in groups:
        # w² + (1 - w)² for an example itself, 2 w (1 - w) for it and its mirror, no other.
        np.testing.assert_allclose(own[group], own[group[0]], rtol=1e-5)
        np.testing.assert_allclose(pairs[group, group[::-1]], 1 - own[group], atol=1e-5)
    np.testing.assert_allclose(pairs.sum(1), 1, atol=1e-5)
    assert len(set(own[groups[:, 0]])) == 4


# What a step leaves behind.


def test_step_is_traced_once_and_takes_its_state():
    config, mesh = make_config(**{"ema.decay": 0.9}), make_mesh(4, 2)
    task = Recorded(lambda logits, batch: logits.sum(), config)
    state, shardings = init(Linear(), config, mesh)
    step = make_step(Linear(), config, mesh, shardings, task)
    for number, batch in enumerate(make_batches(4), start=1):
        old = jax.tree.leaves(state)
        with jax.transfer_guard("disallow"):
            state, sums = step(state, put_batch(batch, mesh))
        assert all(leaf.is_deleted() for leaf in old)
        # Of a copy: jax 0.11 on CPUs does not donate an array that numpy has looked into.
        assert int(jnp.copy(state.step)) == number
        assert np.isfinite(sums["record"])
    assert task.traces == 1
    assert step._cache_size() == 1
    places = [leaf.addressable_data(0).unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(places)) == len(places)  # donating one would take the other


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_average_covers_batch_statistics(accumulate_steps):
    config = make_config(accumulate_steps=accumulate_steps, **{"ema.decay": 0.75})
    mesh, batches = make_mesh(8, 1), make_batches(3)
    state, _ = init(Normed(), config, mesh)
    variables = [jax.device_get(state.variables)]
    states, *_ = run(Normed(), config, mesh, batches)
    variables += [state.variables for state in states]
    assert variables[0].keys() == {"params", "batch_stats"}

    means, squares = variables[0]["batch_stats"]["norm"].values()
    for number, batch in enumerate(batches):
        dense = variables[number]["params"]["dense"]  # micro-batches all see the old parameters
        x = (batch["image"].reshape(64, -1) / 255 - 0.4) / 0.3 @ dense["kernel"] + dense["bias"]
        # Of the examples on each device, of which every micro-batch takes a share.
        x = x.reshape(8, accumulate_steps, -1, 6).swapaxes(0, 1).reshape(accumulate_steps, -1, 6)
        for part in x:
            means, squares = 0.9 * means + 0.1 * part.mean(0), 0.9 * squares + 0.1 * part.var(0)
        got = variables[number + 1]["batch_stats"]["norm"]
        np.testing.assert_allclose(got["mean"], means, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["var"], squares, rtol=1e-5)

    for number in (1, 2, 3):
        shares = [0.75**number, *(0.25 * 0.75 ** (number - k) for k in range(1, number + 1))]
        expected = jax.tree.map(
            lambda *values, shares=shares: sum(s * v for s, v in zip(shares, values, strict=True)),
            *variables[: number + 1],
        )
        assert_close(states[number - 1].ema, expected, rtol=1e-5, atol=1e-6)


def test_every_update_augments_by_its_own_key():
    config = make_config(16, seed=5, **{"augment.erase_probability": 0.5})
    (batch,) = make_batches(1, 16)
    _, sums, _ = run(
        Linear(), config, make_mesh(8, 1), [batch, batch],
        Recorded(lambda logits, batch: batch["image"], config),
    )  # fmt: skip
    placed = {**batch, "position": np.arange(16)}
    augment = jax.jit(
        lambda number, batch: task_of(config).prepare(batch, step_keys(5, number)[0]),
        compiler_options=QUICK,
    )
    for number in (0, 1):
        expected = augment(number, placed)["image"]
        np.testing.assert_allclose(sums[number]["record"], expected, rtol=0, atol=1e-6)
    assert np.abs(sums[1]["record"] - sums[0]["record"]).max() > 0.1


def kept(logits, batch):
    return (logits[:, 0] > 0).astype(jnp.int32)


def drop_masks(**values):
    config = make_config(128, **values)
    states_and_sums = run(
        Dropped(), config, make_mesh(8, 1), make_batches(3, 128), Recorded(kept, config)
    )
    return np.stack([sums["record"] for sums in states_and_sums[1]])


def test_updates_drop_other_examples_and_runs_the_same():
    masks = drop_masks()
    np.testing.assert_array_equal(masks, drop_masks())
    assert abs(masks.mean() - 0.5) < 5 * 0.5 / np.sqrt(masks.size)
    for other in (masks[1], masks[2], drop_masks(seed=1)[0]):
        assert 0.25 < (masks[0] != other).mean() < 0.75


def test_micro_batches_drop_other_examples():
    both = drop_masks(accumulate_steps=2)  # kept in 0, 1 or 2 of the micro-batches
    assert 0.25 < (both == 1).mean() < 0.75


def test_step_goes_on_from_a_fetched_state_to_the_same_bits():
    config = make_config(**{"ema.decay": 0.9, "augment.erase_probability": 0.5})
    mesh, batches = make_mesh(8, 1), make_batches(3)
    states, sums, _ = run(Normed(), config, mesh, batches)
    _, shardings = init(Normed(), config, mesh)
    state = jax.tree.map(jax.device_put, states[0], shardings)
    step = compile_step(make_step(Normed(), config, mesh, shardings), state, config)
    again, sums_again, _ = follow(step, state, batches[1:], mesh)
    assert_equal(again, states[1:])
    assert_equal(sums_again, sums[1:])
