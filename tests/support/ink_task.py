# SPDX-License-Identifier: Apache-2.0
"""A second task, small and unlike the first: which pixels of a digit are ink, and how many.

Three terms of loss, a confusion matrix and lists per image as partial result, images of two sizes
in evaluation, one of them not square. All that a task is asked stands in this file.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mambaout_jax.config import Config
from mambaout_jax.tasks.task import Score, Task, add_up

INK = 100  # grey level


class PerPixel(nn.Module):
    """A convolution per image pixel: the logit of ink."""

    backbone: nn.Module

    @nn.compact
    def __call__(self, images, train=False):
        features = nn.gelu(self.backbone(images))
        return nn.Conv(1, (1, 1), name="head")(features)[..., 0]


class Local(nn.Module):
    """As much of a backbone as a run asks for."""

    strides = (1,)

    @nn.compact
    def __call__(self, images):
        return nn.Conv(4, (3, 3), name="conv")(images)


def ink(image, size):
    pixels = np.asarray(image.resize(size))[..., None]  # (H, W, 1)
    return {"image": pixels, "ink": pixels[..., 0] > INK}


@dataclasses.dataclass(frozen=True)
class Ink(Task):
    config: Config

    @classmethod
    def from_config(cls, config, source):
        return cls(config)

    def describe(self):
        return "ink per pixel"

    def score(self):
        return Score("iou")

    def record(self):
        return {"pixels.json": {"ink": INK}}

    def build(self, name, **options):
        return PerPixel(Local())

    def training_view(self):
        def view(example, rng):
            shift = int(rng.integers(-1, 2))
            arrays = ink(example["image"], (8, 8))
            return {name: np.roll(array, shift, axis=0) for name, array in arrays.items()}

        return view

    def evaluation_view(self):
        return lambda example: ink(example["image"], (8, 8) if example["label"] < 5 else (12, 8))

    def groups(self, source, train=False):
        return None if train else [source[i]["label"] < 5 for i in range(len(source))]

    def prepare(self, batch, key):
        images = batch["image"] / 255 - 0.5
        if key is not None:
            images += 0.01 * jax.random.normal(key, images.shape)
        return {**batch, "image": images}

    def loss(self, model, params, collections, batch, key):
        logits = model.apply({"params": params, **collections}, batch["image"], train=True)
        targets = batch["ink"].astype(logits.dtype)
        share = jax.nn.sigmoid(logits)
        terms = {
            "pixel": optax.sigmoid_binary_cross_entropy(logits, targets).mean((1, 2)),
            "amount": (share.mean((1, 2)) - targets.mean((1, 2))) ** 2,
            "smooth": 0.01 * jnp.abs(jnp.diff(share, axis=1)).mean((1, 2)),
        }
        total = sum(terms.values())  # (B,)
        sums = {name: term.sum() for name, term in {"loss": total, **terms}.items()}
        return total.mean(), (dict(collections), {**sums, "count": jnp.float32(len(total))})

    def evaluate(self, model, variables, batch):
        found = model.apply(variables, batch["image"]) > 0
        truth, counts = batch["ink"], batch["mask"][:, None, None]
        pairs = [[truth == row, found == column] for row in (0, 1) for column in (0, 1)]
        cells = jnp.stack([(a & b & counts).sum() for a, b in pairs])
        return {"matrix": cells.reshape(2, 2), "amounts": {"index": jnp.where(
            batch["mask"], batch["index"], -1), "amount": found.mean((1, 2))}}  # fmt: skip

    def merge(self, partials):
        amounts = {}
        for partial in partials:
            rows = partial["amounts"]
            if not isinstance(next(iter(rows)), int):  # fresh from the devices
                pairs = zip(rows["index"].tolist(), rows["amount"].tolist(), strict=True)
                rows = {index: amount for index, amount in pairs if index >= 0}
            assert not amounts.keys() & rows.keys(), "an example came twice"
            amounts |= rows
        return {"matrix": add_up([partial["matrix"] for partial in partials]), "amounts": amounts}

    def metrics(self, partial):
        matrix = partial["matrix"]
        return {
            "pixels": float(matrix.sum()),
            "iou": float(matrix[1, 1] / (matrix.sum() - matrix[0, 0])),
            "images": len(partial["amounts"]),
            "amount": float(np.mean(list(partial["amounts"].values()))),
        }

    def draw_batch(self, batch, path):
        assert batch["image"].dtype == jnp.float32
        path.write_text(f"{batch['image'].shape} {sorted(batch)}")
