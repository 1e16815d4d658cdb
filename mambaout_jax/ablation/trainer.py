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

from mambaout_jax.ablation.model import TokenModel, encode, rescale
from mambaout_jax.ablation.tasks import UNSCORED, Examples, TokenTask
from mambaout_jax.config import Config, default_config, resolve
from mambaout_jax.data.loader import EvaluationView
from mambaout_jax.evaluation.evaluator import Evaluator
from mambaout_jax.models import parameter_rules
from mambaout_jax.runtime.mesh import make_mesh, put_batch, replicated
from mambaout_jax.tasks.task import Batch, Objective, Partial, Sums, add_up
from mambaout_jax.train.optimizer import make_optimizer, make_schedule
from mambaout_jax.train.state import TrainState, init_state
from mambaout_jax.train.step import make_train_step


class Recipe(NamedTuple):
    """How a model is trained.

    Attributes:
        steps: updates.
        batch_size: examples per update.
        learning_rate: peak, after a warm-up of a tenth; a half cosine follows, to 0.
        weight_decay: AdamW's; biases, norms, positions and the SSM's rates do not decay.
        evaluations: points of the curve.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    evaluations: int

    def config(self) -> Config:
        """The same as settings of a run."""
        config = default_config()
        config.batch_size = config.evaluation.batch_size = self.batch_size
        config.data.num_threads = 1  # the examples need no decoding
        config.optimizer.learning_rate = self.learning_rate
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
    """

    vocabulary: int

    def evaluation_view(self) -> EvaluationView:
        return dict

    def prepare(self, batch: Batch, key: Key[Array, ""] | None) -> Batch:
        """Ids as one-hot features; of an example that fills a batch up nothing is asked."""
        targets = batch["targets"]
        if key is None:
            mask = batch["mask"].reshape(-1, *[1] * (targets.ndim - 1))
            targets = jnp.where(mask, targets, UNSCORED)
        return {"inputs": encode(batch["inputs"], self.vocabulary), "targets": targets}

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        sums = self.evaluate(model, {"params": params, **collections}, batch)
        return sums["loss"] / sums["count"], (dict(collections), sums)

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Sums:
        logits: Any = model.apply(variables, batch["inputs"])
        return scores(logits, batch["targets"])

    def merge(self, partials: Sequence[Partial]) -> Partial:
        return add_up(partials)

    def metrics(self, partial: Partial) -> dict[str, float]:
        """Bits per scored target, and the share of right answers."""
        count = partial["count"]
        return {
            "bits": float(partial["loss"] / count / math.log(2)),
            "accuracy": float(partial["hits"] / count),
        }


def scores(logits: Float[Array, "... K"], targets: Int[Array, "..."]) -> Sums:
    """Sums over the scored targets: cross-entropy in nats, hits, count."""
    scored = targets != UNSCORED
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(scored, targets, 0))
    values = {"loss": losses, "hits": logits.argmax(axis=-1) == targets, "count": scored}
    return {
        name: jnp.where(scored, value, 0).sum().astype(logits.dtype)
        for name, value in values.items()
    }


class Rows:
    """Examples that lie in memory, as a set to be evaluated."""

    def __init__(self, examples: Examples):
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples.targets)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        inputs, targets = self._examples
        return {"inputs": inputs[index], "targets": np.asarray(targets[index])}


class Trainer:
    """One compiled program for all seeds of a model and task, on one device.

    Attributes:
        compile_seconds: how long the update took to compile.
    """

    def __init__(self, model: TokenModel, task: TokenTask, recipe: Recipe):
        self._task, self._recipe = task, recipe
        config, objective = recipe.config(), TokenObjective(task.vocabulary)
        schedule = make_schedule(config.schedule, resolve(config, len(task.train.targets)))
        rules = parameter_rules("mambaout_tiny")  # whose blocks these are, too
        optimizer = make_optimizer(config.optimizer, schedule, rules)
        shape = (*task.grid, task.features)

        def start(key: Key[Array, ""]) -> TrainState:
            state = init_state(key, model, optimizer, shape, with_ema=False)
            return state.started_from({"params": rescale(state.params)})

        self._mesh = make_mesh(fsdp=1, devices=jax.devices()[:1])
        self._start = jax.jit(start, out_shardings=replicated(self._mesh))
        state = jax.eval_shape(self._start, jax.random.key(0))
        shardings = jax.tree.map(lambda _: replicated(self._mesh), state)
        update = make_train_step(model, objective, optimizer, config, self._mesh, shardings)
        began = time.perf_counter()
        self._update = update.lower(state, self._batch(np.arange(recipe.batch_size))).compile()
        self.compile_seconds = time.perf_counter() - began
        self._evaluator = Evaluator(model, objective, config, self._mesh)

    def train(self, seed: int) -> dict[str, Any]:
        """Trains from a fresh start and evaluates on the way.

        Args:
            seed: it decides initialisation and order of the examples, not the data.

        Returns:
            `seed`, `seconds`, `accuracy` and `bits` at the end, and the `curve`: dicts of `step`,
            `train_bits` (mean since the last point), `bits` (cross-entropy on the test set, per
            scored target) and `accuracy` in [0, 1].
        """
        began, recipe = time.perf_counter(), self._recipe
        state = self.start(seed)
        curve = []
        losses = []
        count = recipe.evaluations
        points = {round(recipe.steps * (i + 1) / count) for i in range(count)}
        for step, rows in enumerate(self._order(seed), start=1):
            state, sums = self.update(state, rows)
            losses.append(sums["loss"] / sums["count"])
            if step in points:
                point = {"step": step, "train_bits": float(np.mean(losses)) / math.log(2)}
                curve.append(point | self.evaluate(state))
                losses = []
        last = {name: curve[-1][name] for name in ("accuracy", "bits")}
        return {"seed": seed, "seconds": time.perf_counter() - began, **last, "curve": curve}

    def start(self, seed: int) -> TrainState:
        """The state before the first update."""
        return self._start(jax.random.key(seed))

    def update(self, state: TrainState, rows: Int[np.ndarray, "B"]) -> tuple[TrainState, Sums]:
        """The state after an update on some training examples, and its sums; takes the old one."""
        return self._update(state, self._batch(rows))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Accuracy and bits per scored target of the test set; every target counts once."""
        weights = {"weights": state.variables}
        partial = self._evaluator.partials(weights, Rows(self._task.test))["weights"]
        return TokenObjective(self._task.vocabulary).metrics(partial)

    def repeated_update(self) -> Callable[[], Sums]:
        """An update on the same examples over and over, to be timed."""
        rows, states = np.arange(self._recipe.batch_size), [self.start(0)]

        def update() -> Sums:
            state, sums = self.update(states.pop(), rows)
            states.append(state)
            return sums

        return update

    def _batch(self, rows: Int[np.ndarray, "B"]) -> dict[str, jax.Array]:
        inputs, targets = (column[rows] for column in self._task.train)
        return put_batch({"inputs": inputs, "targets": targets}, self._mesh)

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
