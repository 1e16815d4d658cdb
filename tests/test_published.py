# SPDX-License-Identifier: Apache-2.0
"""What published records say of preprocessing, and of accuracy."""

import pytest

from mambaout_jax.imagenet_classes import CLASS_NAMES
from mambaout_jax.models import find_variant, list_models
from mambaout_jax.weights.catalog import CATALOG


def test_first_result_is_at_the_size_of_training():
    for weights in CATALOG.values():
        for result in weights.results[:1]:
            assert result.image_size == weights.image_size
            assert result.crop_fraction == weights.crop_fraction


@pytest.mark.parametrize(
    ("key", "image_size", "expected"),
    [
        ("mambaout_femto.in1k", None, (224, 1.0, "center")),
        ("mambaout_base_tall_rw.sw_e500_in1k", None, (224, 0.95, "center")),
        ("mambaout_base_tall_rw.sw_e500_in1k", 288, (288, 1.0, "center")),
        ("mambaout_base_tall_rw.sw_e500_in1k", 256, (256, 0.95, "center")),
        ("mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k", None, (384, 1.0, "squash")),
    ],
)
def test_preprocessing_is_the_published_one_at_its_size(key, image_size, expected):
    found = CATALOG[key].preprocessing(image_size)
    assert (found.image_size, found.crop_fraction, found.crop_mode) == expected
    assert found.interpolation == "bicubic"
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    assert found.class_names == CLASS_NAMES


def test_imagenet_12k_has_its_own_classes_and_no_names():
    weights = CATALOG["mambaout_base_plus_rw.sw_e150_in12k"]
    assert weights.num_classes == 11821
    assert weights.preprocessing().class_names is None


# Table 1 of the MambaOut paper, as printed; Kobe is in the README of its code.
TOP1 = {
    "mambaout_femto": 78.9, "mambaout_kobe": 80.0, "mambaout_tiny": 82.7, "mambaout_small": 84.1,
    "mambaout_base": 84.2, "deit_tiny_patch16_224": 72.2, "deit_small_patch16_224": 79.8,
    "deit_base_patch16_224": 81.8, "convnext_tiny": 82.1, "convnext_small": 83.1,
    "convnext_base": 83.8, "swin_tiny_patch4_window7_224": 81.3,
    "swin_small_patch4_window7_224": 83.0, "swin_base_patch4_window7_224": 83.5,
    "fasternet_t1": 76.2, "vmamba_v9_tiny": 82.5, "vmamba_v9_small": 83.6, "vmamba_v9_base": 83.9,
    "vmamba_v0_tiny": 82.2, "vmamba_v0_small": 83.5, "vmamba_v0_base": 83.7, "vim_tiny": 76.1,
    "vim_small": 80.5, "local_vim_tiny": 76.2, "local_vim_small": 81.2, "local_vmamba_tiny": 82.7,
    "local_vmamba_small": 83.7, "plainmamba_l1": 77.9, "plainmamba_l2": 81.6,
    "plainmamba_l3": 82.3, "efficientvmamba_tiny": 76.5, "efficientvmamba_small": 78.7,
    "efficientvmamba_base": 81.8, "mamba2d_small": 81.7, "mamba2d_base": 83.0,
    "van_b0": 75.4, "van_b2": 82.8, "van_b3": 83.9, "poolformer_s24": 80.3, "caformer_s18": 83.6,
    "caformer_s36": 84.5, "caformer_m36": 85.2, "convformer_s18": 83.0, "convformer_s36": 84.1,
    "convformer_m36": 84.5, "inception_next_atto": 75.3, "inception_next_tiny": 82.3,
    "moganet_tiny": 79.0, "moganet_small": 83.4, "moganet_base": 84.3, "moganet_large": 84.7,
    "hornet_base_gf": 84.3, "replknet_31b": 83.5, "replknet_31b_merged": 83.5, "emo_6m": 79.0,
    "cswin_tiny": 82.7, "cswin_small": 83.6, "cswin_base": 84.2, "pvt_v2_b0": 70.5,
    "coatnet_0_224_stride1x1": 81.6, "coatnet_1_224_stride1x1": 83.3,
    "coatnet_2_224_stride1x1": 84.1, "moat_0": 83.3, "moat_2": 84.7,
    "mvitv2_small": 83.6, "mvitv2_base": 84.4, "focal_tiny": 82.2, "focal_small": 83.5,
    "internimage_t": 83.5, "internimage_s": 84.2, "internimage_b": 84.9,
    "t2t_vit_7": 71.7, "t2t_vit_14": 81.5, "t2t_vit_19": 81.9, "t2t_vit_24": 82.3,
    "mobilevitv3_xs": 76.7, "uniformer_base_ls": 83.9, "iformer_small": 83.4,
    "iformer_large": 84.8, "sgformer_s": 83.2, "sgformer_m": 84.1, "transnext_tiny": 84.0,
    "transnext_small": 84.7, "transnext_base": 84.8,
}  # fmt: skip


def test_accuracies_of_models_are_those_of_table_1():
    found = {name: find_variant(name)[1].top1 for name in list_models()}
    assert {name: top1 for name, top1 in found.items() if top1} == TOP1


def test_accuracies_of_models_are_those_of_their_official_weights():
    official = {weights.model: weights for key, weights in CATALOG.items() if ".official" in key}
    assert len(official) == 23
    for name, weights in official.items():
        assert weights.results[0].top1 == find_variant(name)[1].top1
