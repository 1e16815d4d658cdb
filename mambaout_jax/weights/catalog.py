# SPDX-License-Identifier: Apache-2.0
"""Published weights: where they are, how their images are prepared, what accuracy they reach.

Read, never measured here:

    names, sizes, crops, classes  timm/models/{mambaout,deit}.py of huggingface/pytorch-image-models
    its accuracies                results/results-imagenet.csv there, at aa4b585; DeiT's at 0173a13
    and on other test sets        results-{imagenet-real,imagenetv2-matched-frequency,imagenet-a,
                                  imagenet-r,sketch}.csv beside it, at aa4b585
    official files and top-1      models/mambaout.py and README.md of yuweihao/MambaOut, at 9f2f234
    licences                      the model cards on huggingface.co, and LICENSE of MambaOut, of
                                  whose weights timm's femto, tiny and small are copies; DeiT's
                                  are those of facebookresearch/deit

`test_mambaout` and the variants that are this project's own have no published weights.
"""

import dataclasses
import fnmatch

from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.models import find_variant, list_models
from mambaout_jax.preprocessing import Preprocessing

_HUB = "hf_hub:timm/"
_RELEASE = "https://github.com/yuweihao/MambaOut/releases/download/model/"
_IMAGENET_12K = 11821


@dataclasses.dataclass(frozen=True)
class Result:
    """Published accuracy on the ImageNet-1k validation set and on other test sets, in percent.

    Attributes:
        image_size, crop_fraction: of the evaluation.
        top1, top5: on the validation set; top5 is None where only top-1 is published.
        real, v2, a, r, sketch: top-1 by ReaL's labels, on ImageNet-V2 (matched frequency), -A, -R
            and -Sketch; None where it is not known here.
    """

    image_size: int
    crop_fraction: float
    top1: float
    top5: float | None = None
    real: float | None = None
    v2: float | None = None
    a: float | None = None
    r: float | None = None
    sketch: float | None = None


@dataclasses.dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        model: one of `list_models()`.
        source: "hf_hub:<repository>" or the URL of a file.
        naming: of the tensors, a key of the family's `TORCH_NAMES`.
        licence: SPDX identifier, None where none could be read.
        results: the first at the size of training.
        image_size, crop_fraction, crop_mode: of evaluation at the size of training.
        num_classes: 1000 are those of ImageNet-1k.
        sha256: of the file, None where none is published.
    """

    model: str
    source: str
    naming: str
    licence: str | None
    results: tuple[Result, ...]
    image_size: int = 224
    crop_fraction: float = 1.0
    crop_mode: str = "center"
    num_classes: int = 1000
    sha256: str | None = None

    def preprocessing(self, image_size: int | None = None) -> Preprocessing:
        """The published one at this size, None for the size of training.

        Where nothing is published at the size, the crop is that of training.
        """
        size = image_size or self.image_size
        crops = {result.image_size: result.crop_fraction for result in self.results}
        return Preprocessing(
            image_size=size,
            crop_fraction=crops.get(size, self.crop_fraction),
            crop_mode=self.crop_mode,
            class_names=imagenet_classes() if self.num_classes == 1000 else None,
        )


def find_weights(pattern: str = "*") -> dict[str, Weights]:
    """Published weights whose key matches a shell-style pattern, in the catalog's order."""
    return {key: CATALOG[key] for key in fnmatch.filter(CATALOG, pattern)}


def published_result(source: str, how: Preprocessing) -> Result | None:
    """What is published for weights whose images are prepared so, None where nothing is.

    Args:
        source: key of the catalog, or where the weights of one are.
        how: of the evaluation; its `class_names` do not matter.
    """
    for key, weights in CATALOG.items():
        if source not in (key, weights.source, weights.source.replace("hf_hub:", "hf-hub:")):
            continue
        for result in weights.results:
            published = weights.preprocessing(result.image_size)
            if dataclasses.replace(published, class_names=how.class_names) == how:
                return result
    return None


def weights_of(model: str) -> dict[str, Weights]:
    """Published weights of one of `list_models()`; the first are those to start from."""
    return {key: weights for key, weights in CATALOG.items() if weights.model == model}


def imagenet_classes() -> tuple[str, ...]:
    """Names of the 1000 classes of ImageNet-1k, in label order."""
    return CLASS_NAMES


def _timm(tag, licence, *results, **fields):
    """Weights `<model>.<tag>` of timm; a result is the fields of `Result` in their order."""
    rows = tuple(Result(*row) for row in results)
    return tag, Weights(tag.partition(".")[0], f"{_HUB}{tag}", "timm", licence, rows, **fields)


def _official(model, top1):
    result = Result(224, 1.0, top1)
    url = f"{_RELEASE}{model}.pth"
    return f"{model}.official", Weights(model, url, "official", "Apache-2.0", (result,))


# fmt: off
CATALOG: dict[str, Weights] = dict((
    _timm("mambaout_femto.in1k", "Apache-2.0",
          (224, 1.0, 78.880, 94.408, 85.580, 67.570, 11.400, 41.093, 28.704),
          (288, 1.0, 79.912, 95.134, 86.558, 69.090, 16.827, 39.710, 27.652)),
    _timm("mambaout_kobe.in1k", "Apache-2.0",
          (224, 1.0, 79.986, 94.982, 86.192, 68.640, 14.800, 42.233, 30.191),
          (288, 1.0, 81.064, 95.682, 87.091, 70.190, 21.227, 40.630, 28.798)),
    _timm("mambaout_tiny.in1k", "Apache-2.0",
          (224, 1.0, 82.742, 96.098, 87.689, 71.830, 25.613, 46.963, 34.685),
          (288, 1.0, 83.452, 96.540, 88.486, 72.540, 33.000, 45.530, 33.099)),
    _timm("mambaout_small.in1k", "Apache-2.0",
          (224, 1.0, 84.094, 96.626, 88.266, 73.970, 34.307, 50.140, 37.674),
          (288, 1.0, 84.512, 96.970, 88.740, 74.970, 41.853, 48.863, 36.193)),
    _timm("mambaout_base.in1k", "Apache-2.0",
          (224, 1.0, 84.194, 96.668, 88.270, 73.760, 36.987, 49.833, 37.539),
          (288, 1.0, 84.730, 96.934, 88.821, 74.560, 43.840, 48.573, 35.943)),
    _timm("mambaout_small_rw.sw_e450_in1k", "Apache-2.0",
          (224, 1.0, 84.040, 96.742, 88.462, 73.690, 30.107, 51.340, 38.896),
          (288, 1.0, 84.604, 97.096, 88.962, 74.820, 38.093, 50.367, 37.918)),
    _timm("mambaout_base_short_rw.sw_e500_in1k", "Apache-2.0",
          (224, 0.95, 84.364, 96.944, 88.778, 74.430, 38.533, 52.623, 40.810),
          (288, 1.0, 84.842, 97.286, 89.297, 75.240, 46.107, 51.763, 39.851),
          crop_fraction=0.95),
    _timm("mambaout_base_tall_rw.sw_e500_in1k", "Apache-2.0",
          (224, 0.95, 84.436, 96.956, 88.733, 74.400, 39.040, 52.653, 40.431),
          (288, 1.0, 84.988, 97.334, 89.276, 74.950, 46.507, 52.037, 39.337),
          crop_fraction=0.95),
    _timm("mambaout_base_wide_rw.sw_e500_in1k", "Apache-2.0",
          (224, 0.95, 84.448, 96.872, 88.787, 74.640, 36.240, 54.027, 42.312),
          (288, 1.0, 84.966, 97.222, 89.286, 75.170, 43.893, 53.447, 41.669),
          crop_fraction=0.95),
    _timm("mambaout_base_plus_rw.sw_e150_in12k_ft_in1k", "Apache-2.0",
          (224, 1.0, 86.642, 98.150, 89.908, 77.670, 59.720, 65.307, 51.056),
          (288, 1.0, 86.916, 98.238, 90.149, 77.610, 64.960, 64.800, 50.294)),
    _timm("mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k", "Apache-2.0",
          (384, 1.0, 87.508, 98.428, 90.520, 78.150, 68.493, 66.997, 52.111),
          image_size=384, crop_mode="squash"),
    _timm("mambaout_base_plus_rw.sw_e150_in12k", None, num_classes=_IMAGENET_12K),
    _official("mambaout_femto", 78.9),
    _official("mambaout_kobe", 80.0),
    _official("mambaout_tiny", 82.7),
    _official("mambaout_small", 84.1),
    _official("mambaout_base", 84.2),
    _timm("deit_tiny_patch16_224.fb_in1k", "Apache-2.0",
          (224, 0.9, 72.172, 91.112), crop_fraction=0.9),
    _timm("deit_small_patch16_224.fb_in1k", "Apache-2.0",
          (224, 0.9, 79.844, 95.044), crop_fraction=0.9),
    _timm("deit_base_patch16_224.fb_in1k", "Apache-2.0",
          (224, 0.9, 81.992, 95.736), crop_fraction=0.9),
))
# fmt: on


def model_table(pattern: str = "*") -> str:
    """Parameters, MACs and published accuracies of the models whose name matches, as text.

    Raises:
        ValueError: no model matches.
    """
    names = list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}; there are {', '.join(list_models())}")
    lines = [("model", "parameters", "MACs at 224", "top-1", "weights")]
    for name in names:
        _, variant = find_variant(name)
        cost = (f"{variant.parameters / 1e6:.2f} M", f"{variant.macs / 1e9:.2f} G")
        rows = [
            (f"{weights.results[0].top1:g}" if weights.results else "-", key)
            for key, weights in weights_of(name).items()
        ] or [("-", "none published")]
        lines.append((name, *cost, *rows[0]))
        lines.extend(("", "", "", *row) for row in rows[1:])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return f"{table}\ntop-1: published ImageNet-1k accuracy in percent at the size of training"
