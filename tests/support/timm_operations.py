# SPDX-License-Identifier: Apache-2.0
"""RandAugment's operations by the names that timm gives them."""

from mambaout_jax.data.views.rand_augment import Operation

# timm's name -> ours
TIMM_NAMES = {
    "AutoContrast": "auto_contrast", "Equalize": "equalize", "Invert": "invert",
    "Rotate": "rotate", "PosterizeIncreasing": "posterize", "SolarizeIncreasing": "solarize",
    "SolarizeAdd": "solarize_add", "ColorIncreasing": "color", "ContrastIncreasing": "contrast",
    "BrightnessIncreasing": "brightness", "SharpnessIncreasing": "sharpness",
    "ShearX": "shear_x", "ShearY": "shear_y", "TranslateXRel": "translate_x",
    "TranslateYRel": "translate_y",
}  # fmt: skip


def from_timm(name, *draws):
    """Our operation for timm's `name` and what it drew."""
    return Operation(TIMM_NAMES[name], *draws)
