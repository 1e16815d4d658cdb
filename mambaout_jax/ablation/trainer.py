# SPDX-License-Identifier: Apache-2.0
"""Trains one token model on one task: by the step, optimiser and evaluator of every other training.

What is the grid's own is the order of the examples, which lie in memory, and the start: kernels
scaled to the models' few channels.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from mambaout_jax.ablation.examples import UNSCORED, Examples, TokenTask
from mambaout_jax.ablation.model import TokenModel, encode, rescale
from mambaout_jax.config import Config, default_config, resolve
from mambaout_jax.data.loader import EvaluationView
from mambaout_jax.evaluation.evaluator import Evaluator
from mambaout_jax.models import parameter_rules
from mambaout_jax.runtime.mesh import make_mesh, put_batch, replicated
from mambaout_jax.tasks.task import Batch, Objective, Partial, Sums, add_up
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.state import TrainState, init_state
from mambaout_jax.train.step import make_train_step

_DISTANCES = 16  # groups of distances by which accuracy is told, at most


class Recipe(NamedTuple):
    """How a model is trained.

    Attributes:
        steps: updates.
        batch_size: examples per update.
        weight_decay: AdamW's; biases, norms, positions and the SSM's rates do not decay.
        evaluations: points of the curve.
    """

    steps: int
    batch_size: int
    weight_decay: float
    evaluations: int

    def config(self) -> Config:
        """The same as settings of a run, at a peak learning rate of 1."""
        config = default_config()
        config.batch_size = config.evaluation.batch_size = self.batch_size
        config.data.num_threads = 1  # the examples need no decoding
        config.optimizer.learning_rate = 1.0
        config.optimizer.weight_decay = self.weight_decay
        config.optimizer.decay_rules = ((r"/positions$", False),)
        config.schedule.total_steps = max(2, self.steps)
        config.schedule.warmup_steps = max(1, self.steps // 10)
        config.schedule.warmup_learning_rate = config.schedule.final_learning_rate = 0.0
        return config


@dataclasses.dataclass(frozen=True)
class TokenObjective(Objective):
    """Cross-entropy over the scored targets, whose number is what sums are divided by.

    Attributes:
        vocabulary: how many ids there are; 0 where the inputs are features.
        far: answers count from this distance on, where examples have distances.
        farthest: the longest distance; 0 where they have none.
    """

    vocabulary: int
    far: int = 0
    farthest: int = 0

    def evaluation_view(self) -> EvaluationView:
        return dict

    def prepare(self, batch: Batch, key: Key[Array, ""] | None) -> Batch:
        """Ids as one-hot features; of an example that fills a batch up nothing is asked."""
        targets = batch["targets"]
        if key is None:
            mask = batch["mask"].reshape(-1, *[1] * (targets.ndim - 1))
            targets = jnp.where(mask, targets, UNSCORED)
        inputs = encode(batch["inputs"], self.vocabulary)
        return {**batch, "inputs": inputs, "targets": targets}

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        logits: Any = model.apply({"params": params, **collections}, batch["inputs"])
        sums = {name: value.sum() for name, value in scores(logits, batch["targets"]).items()}
        return sums["loss"] / sums["count"], (dict(collections), sums)

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Partial:
        """Sums over the answers that count, and hits and answers by distance, nearest first."""
        logits: Any = model.apply(variables, batch["inputs"])
        values = scores(logits, batch["targets"])
        if not self.farthest:
            return {name: value.sum() for name, value in values.items()}
        distances = batch["distances"]
        width = bin_width(self.farthest)
        bins = jnp.zeros(self.farthest // width + 1)
        by_distance = {
            f"{name}_by_distance": bins.at[distances // width].add(values[name])
            for name in ("hits", "count")
        }
        sums = {name: jnp.where(distances >= self.far, x, 0).sum() for name, x in values.items()}
        return sums | by_distance

    def merge(self, partials: Sequence[Partial]) -> Partial:
        return add_up(partials)

    def metrics(self, partial: Partial) -> dict[str, float]:
        """Bits per answer that counts, and the share of right ones."""
        count = partial["count"]
        return {
            "bits": float(partial["loss"] / count / math.log(2)),
            "accuracy": float(partial["hits"] / count),
        }


def scores(
    logits: Float[Array, "... K"], targets: Int[Array, "..."]
) -> dict[str, Float[Array, "..."]]:
    """Cross-entropy in nats, hit and count of every scored target; 0 for the others."""
    scored = targets != UNSCORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(scored, targets, 0))
    values = {"loss": losses, "hits": logits.argmax(axis=-1) == targets, "count": scored}
    return {name: jnp.where(scored, x, 0).astype(logits.dtype) for name, x in values.items()}


def bin_width(farthest: int) -> int:
    """Distances that are counted together, so that there are at most 16 groups of them."""
    return -(-(farthest + 1) // _DISTANCES)


class Rows:
    """Examples that lie in memory, as a set to be evaluated."""

    def __init__(self, examples: Examples):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples.targets)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        inputs, targets, distances = self._examples
        row = {"inputs": inputs[index], "targets": np.asarray(targets[index])}
        return row if distances is None else row | {"distances": distances[index]}


class RateState(NamedTuple):
    """State of an optimiser whose learning rate is an input of the program.

    Attributes:
        inner: its state at a rate of 1.
        rate: what its updates are multiplied by.
    """

    inner: optax.OptState
    rate: Float[Array, ""]


def with_rate(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser with a rate in its state: one program then serves a whole sweep.

    AdamW's updates, weight decay included, are proportional to the learning rate.
    """

    def init(params):
        return RateState(optimizer.init(params), jnp.ones(()))

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.inner, params)
        scaled = jax.tree.map(lambda update: state.rate * update, updates)
        return scaled, RateState(inner, state.rate)

    return optax.GradientTransformation(init, update)


class Trainer:
    """One compiled program for all seeds and learning rates of a model and task, on one device.

    Attributes:
        compile_seconds: how long the update took to compile.
    """

    def __init__(self, model: TokenModel, task: TokenTask, recipe: Recipe):
        self._task, self._recipe = task, recipe
        farthest = 0 if task.train.distances is None else task.farthest
        self._objective = TokenObjective(task.vocabulary, task.far, farthest)
        config = recipe.config()
        schedule = make_schedule(config.schedule, resolve(config, len(task.train.targets)))
        rules = parameter_rules("mambaout_tiny")  # whose blocks these are, too
        optimizer = with_rate(make_optimizer(config.optimizer, schedule, rules))
        shape = (*task.grid, task.features)

        def start(key: Key[Array, ""], rate: Float[Array, ""]) -> TrainState:
            state = init_state(key, model, optimizer, shape, with_ema=False)
            state = state.started_from({"params": rescale(state.params)})
            return state.replace(opt_state=state.opt_state._replace(rate=rate))

        self._mesh = make_mesh(fsdp=1, devices=jax.devices()[:1])
        self._start = jax.jit(start, out_shardings=replicated(self._mesh))
        state = jax.eval_shape(self._start, jax.random.key(0), jnp.ones(()))
        shardings = jax.tree.map(lambda _: replicated(self._mesh), state)
        update = make_train_step(model, self._objective, optimizer, config, self._mesh, shardings)
        began = time.perf_counter()
        self._update = update.lower(state, self._batch(np.arange(recipe.batch_size))).compile()
        self.compile_seconds = time.perf_counter() - began
        self._evaluator = Evaluator(model, self._objective, config, self._mesh)

    def train(self, seed: int, learning_rate: float) -> dict[str, Any]:
        """Trains from a fresh start and evaluates on the way.

        Args:
            seed: it decides initialisation and order of the examples, not the data.
            learning_rate: the peak.

        Returns:
            `seed`, `learning_rate`, `seconds`; `validation`, the accuracy there at the end;
            `accuracy` and `bits` (cross-entropy per answer) on the test split at the end; the
            `curve` on the validation split: dicts of `step`, `train_bits` (mean since the last
            point), `bits` and `accuracy` in [0, 1]; and `by_distance`, None where answers have no
            distance: lists of `hits` and `count` on the test split, nearest first, and `width`,
            the distances in each group.
        """
        began, recipe = time.perf_counter(), self._recipe
        state = self.start(seed, learning_rate)
        curve = []
        losses = []
        count = recipe.evaluations
        points = {round(recipe.steps * (i + 1) / count) for i in range(count)}
        for step, rows in enumerate(self._order(seed), start=1):
            state, sums = self.update(state, rows)
            losses.append(sums["loss"] / sums["count"])
            if step in points:
                point = {"step": step, "train_bits": float(np.mean(losses)) / math.log(2)}
                validation = self._partial(state, self._task.validation)
                curve.append(point | self._objective.metrics(validation))
                losses = []
        test = self._partial(state, self._task.test)
        return {
            "seed": seed,
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - began,
            "validation": curve[-1]["accuracy"],
            **self._objective.metrics(test),
            "curve": curve,
            "by_distance": self._by_distance(test),
        }

    def start(self, seed: int, learning_rate: float) -> TrainState:
        """The state before the first update."""
        return self._start(jax.random.key(seed), jnp.float32(learning_rate))

    def update(self, state: TrainState, rows: Int[np.ndarray, "B"]) -> tuple[TrainState, Sums]:
        """The state after an update on some training examples, and its sums; takes the old one."""
        return self._update(state, self._batch(rows))

    def repeated_update(self) -> Callable[[], Sums]:
        """An update on the same examples over and over, to be timed."""
        rows, states = np.arange(self._recipe.batch_size), [self.start(0, 1e-3)]

        def update() -> Sums:
            state, sums = self.update(states.pop(), rows)
            states.append(state)
            return sums

        return update

    def _partial(self, state: TrainState, examples: Examples) -> Partial:
        """Sums over a split; every target counts once."""
        weights = {"weights": state.variables}
        return self._evaluator.partials(weights, Rows(examples))["weights"]

    def _by_distance(self, partial: Partial) -> dict[str, Any] | None:
        if not self._objective.farthest:
            return None
        found = {name: partial[f"{name}_by_distance"].tolist() for name in ("hits", "count")}
        return found | {"width": bin_width(self._objective.farthest)}

    def _batch(self, rows: Int[np.ndarray, "B"]) -> dict[str, jax.Array]:
        inputs, targets, _ = self._task.train
        return put_batch({"inputs": inputs[rows], "targets": targets[rows]}, self._mesh)

    def _order(self, seed: int) -> Iterator[Int[np.ndarray, "B"]]:
        recipe = self._recipe
        examples = len(self._task.train.targets)
        return iter(order(np.random.default_rng(seed), examples, recipe.steps, recipe.batch_size))


def order(
    rng: np.random.Generator, examples: int, steps: int, batch_size: int
) -> Int[np.ndarray, "steps batch"]:
    """Rows of every batch: each example once, then each once more, in another order."""
    epochs = -(-steps * batch_size // examples)
    rows = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    return rows[: steps * batch_size].reshape(steps, batch_size)
