# SPDX-License-Identifier: Apache-2.0
"""Table 1 of the MambaOut paper (arXiv 2405.07992), as printed. Read, never measured here."""

from typing import NamedTuple

MIXERS = ("Conv", "Conv + SSM", "Conv + Attn", "Attn", "Pool")  # in the order of the legend


class Printed(NamedTuple):
    """A row as printed: figures are texts, so that 16 and 16.0 stay what they are.

    Attributes:
        model: the paper's name of the model.
        token_mixer: one of `MIXERS`.
        parameters: in millions.
        macs: multiply-accumulates of an image of 224 pixels in 10⁹, "-" where there are none.
        top1: accuracy on ImageNet-1k's validation set in percent.
        name: this library's name of the model, of which it need not have every one.
    """

    model: str
    token_mixer: str
    parameters: str
    macs: str
    top1: str
    name: str


# fmt: off
TABLE_1 = (
    Printed("VAN-B0", "Conv", "4", "0.9", "75.4", "van_b0"),
    Printed("ConvNeXt-S", "Conv", "50", "8.7", "83.1", "convnext_small"),
    Printed("MogaNet-T", "Conv", "5", "1.1", "79.0", "moganet_tiny"),
    Printed("VAN-B3", "Conv", "45", "9.0", "83.9", "van_b3"),
    Printed("FasterNet-T1", "Conv", "8", "0.9", "76.2", "fasternet_t1"),
    Printed("ConvFormer-S36", "Conv", "40", "7.6", "84.1", "convformer_s36"),
    Printed("InceptionNeXt-A", "Conv", "4", "0.5", "75.3", "inception_next_atto"),
    Printed("InternImage-S", "Conv", "50", "8", "84.2", "internimage_s"),
    Printed("DeiT-Ti", "Attn", "6", "1.3", "72.2", "deit_tiny_patch16_224"),
    Printed("MogaNet-B", "Conv", "44", "9.9", "84.3", "moganet_base"),
    Printed("T2T-ViT-7", "Attn", "4", "1.1", "71.7", "t2t_vit_7"),
    Printed("T2T-ViT-19", "Attn", "39", "8.5", "81.9", "t2t_vit_19"),
    Printed("PVTv2-B0", "Conv + Attn", "3", "0.6", "70.5", "pvt_v2_b0"),
    Printed("Swin-S", "Attn", "50", "8.7", "83.0", "swin_small_patch4_window7_224"),
    Printed("MobileViTv3-XS", "Conv + Attn", "3", "0.9", "76.7", "mobilevitv3_xs"),
    Printed("Focal-Small", "Attn", "51", "9.1", "83.5", "focal_small"),
    Printed("EMO-6M", "Conv + Attn", "6.5", "1.0", "79.0", "emo_6m"),
    Printed("CSWin-S", "Attn", "35", "6.9", "83.6", "cswin_small"),
    Printed("Vim-Ti", "Conv + SSM", "7", "1.5", "76.1", "vim_tiny"),
    Printed("MViTv2-S", "Attn", "35", "7.0", "83.6", "mvitv2_small"),
    Printed("LocalVim-T", "Conv + SSM", "8", "1.5", "76.2", "local_vim_tiny"),
    Printed("CoAtNet-1", "Conv + Attn", "42", "8.4", "83.3", "coatnet_1_224_stride1x1"),
    Printed("EfficientVMamba-T", "Conv + SSM", "6", "0.8", "76.5", "efficientvmamba_tiny"),
    Printed("UniFormer-B", "Conv + Attn", "50", "8.3", "83.9", "uniformer_base_ls"),
    Printed("EfficientVMamba-S", "Conv + SSM", "11", "1.3", "78.7", "efficientvmamba_small"),
    Printed("CAFormer-S36", "Conv + Attn", "39", "8.0", "84.5", "caformer_s36"),
    Printed("MambaOut-Femto", "Conv", "7", "1.2", "78.9", "mambaout_femto"),
    Printed("SG-Former-M", "Conv + Attn", "39", "7.5", "84.1", "sgformer_m"),
    Printed("PoolFormer-S24", "Pool", "21", "3.4", "80.3", "poolformer_s24"),
    Printed("TransNeXt-Small", "Conv + Attn", "50", "10.3", "84.7", "transnext_small"),
    Printed("ConvNeXt-T", "Conv", "29", "4.5", "82.1", "convnext_tiny"),
    Printed("VMamba-S", "Conv + SSM", "44", "11.2", "83.5", "vmamba_v0_small"),
    Printed("VAN-B2", "Conv", "27", "5.0", "82.8", "van_b2"),
    Printed("LocalVMamba-S", "Conv + SSM", "50", "11.4", "83.7", "local_vmamba_small"),
    Printed("ConvFormer-S18", "Conv", "27", "3.9", "83.0", "convformer_s18"),
    Printed("PlainMamba-L2", "Conv + SSM", "25", "8.1", "81.6", "plainmamba_l2"),
    Printed("MogaNet-S", "Conv", "25", "5.0", "83.4", "moganet_small"),
    Printed("VMambaV9-S", "Conv + SSM", "50", "8.7", "83.6", "vmamba_v9_small"),
    Printed("InternImage-T", "Conv", "30", "5", "83.5", "internimage_t"),
    Printed("MambaOut-Small", "Conv", "48", "9.0", "84.1", "mambaout_small"),
    Printed("InceptionNeXt-T", "Conv", "28", "4.2", "82.3", "inception_next_tiny"),
    Printed("ConvNeXt-B", "Conv", "89", "15.4", "83.8", "convnext_base"),
    Printed("DeiT-S", "Attn", "22", "4.6", "79.8", "deit_small_patch16_224"),
    Printed("RepLKNet-31B", "Conv", "79", "15.3", "83.5", "replknet_31b"),
    Printed("T2T-ViT-14", "Attn", "22", "4.8", "81.5", "t2t_vit_14"),
    Printed("ConvFormer-M36", "Conv", "57", "12.8", "84.5", "convformer_m36"),
    Printed("Swin-T", "Attn", "29", "4.5", "81.3", "swin_tiny_patch4_window7_224"),
    Printed("HorNet-B", "Conv", "88", "15.5", "84.3", "hornet_base_gf"),
    Printed("Focal-Tiny", "Attn", "29", "4.9", "82.2", "focal_tiny"),
    Printed("MogaNet-L", "Conv", "83", "15.9", "84.7", "moganet_large"),
    Printed("CSWin-T", "Attn", "23", "4.3", "82.7", "cswin_tiny"),
    Printed("InternImage-B", "Conv", "97", "16", "84.9", "internimage_b"),
    Printed("CoAtNet-0", "Conv + Attn", "25", "4.2", "81.6", "coatnet_0_224_stride1x1"),
    Printed("DeiT-B", "Attn", "86", "17.5", "81.8", "deit_base_patch16_224"),
    Printed("iFormer-S", "Conv + Attn", "20", "4.8", "83.4", "iformer_small"),
    Printed("T2T-ViT-24", "Attn", "64", "13.8", "82.3", "t2t_vit_24"),
    Printed("MOAT-0", "Conv + Attn", "28", "5.7", "83.3", "moat_0"),
    Printed("Swin-B", "Attn", "88", "15.4", "83.5", "swin_base_patch4_window7_224"),
    Printed("CAFormer-S18", "Conv + Attn", "26", "4.1", "83.6", "caformer_s18"),
    Printed("CSwin-B", "Attn", "78", "15.0", "84.2", "cswin_base"),
    Printed("SG-Former-S", "Conv + Attn", "23", "4.8", "83.2", "sgformer_s"),
    Printed("MViTv2-B", "Attn", "52", "10.2", "84.4", "mvitv2_base"),
    Printed("TransNeXt-Tiny", "Conv + Attn", "28", "5.7", "84.0", "transnext_tiny"),
    Printed("CoAtNet-2", "Conv + Attn", "75", "15.7", "84.1", "coatnet_2_224_stride1x1"),
    Printed("Vim-S", "Conv + SSM", "26", "5.1", "80.5", "vim_small"),
    Printed("iFormer-L", "Conv + Attn", "87", "14.0", "84.8", "iformer_large"),
    Printed("VMamba-T", "Conv + SSM", "22", "5.6", "82.2", "vmamba_v0_tiny"),
    Printed("MOAT-2", "Conv + Attn", "73", "17.2", "84.7", "moat_2"),
    Printed("Mamba-2D-S", "Conv + SSM", "24", "-", "81.7", "mamba2d_small"),
    Printed("CAFormer-M36", "Conv + Attn", "56", "13.2", "85.2", "caformer_m36"),
    Printed("LocalVim-S", "Conv + SSM", "28", "4.8", "81.2", "local_vim_small"),
    Printed("TransNeXt-Base", "Conv + Attn", "90", "18.4", "84.8", "transnext_base"),
    Printed("LocalVMamba-T", "Conv + SSM", "26", "5.7", "82.7", "local_vmamba_tiny"),
    Printed("VMamba-B", "Conv + SSM", "75", "18.0", "83.7", "vmamba_v0_base"),
    Printed("EfficientVMamba-B", "Conv + SSM", "33", "4.0", "81.8", "efficientvmamba_base"),
    Printed("Mamba-2D-B", "Conv + SSM", "92", "-", "83.0", "mamba2d_base"),
    Printed("PlainMamba-L1", "Conv + SSM", "7", "3.0", "77.9", "plainmamba_l1"),
    Printed("PlainMamba-L3", "Conv + SSM", "50", "14.4", "82.3", "plainmamba_l3"),
    Printed("VMambaV9-T*", "Conv + SSM", "31", "4.9", "82.5", "vmamba_v9_tiny"),
    Printed("VMambaV9-B", "Conv + SSM", "89", "15.4", "83.9", "vmamba_v9_base"),
)
# fmt: on

# Which of several models of its authors a row means; by the paper's name, as everywhere below.
_STRIDE = "with the stride in the first convolution of a block, as its paper writes it"
WHICH = {
    "CoAtNet-0": _STRIDE,
    "CoAtNet-1": _STRIDE,
    "CoAtNet-2": _STRIDE,
    "HorNet-B": "with global filters, as the printed parameters are",
    "LocalVim-S": "with the scans of the model that its authors' code makes",
    "MobileViTv3-XS": "at 256 pixels, its published size",
    "RepLKNet-31B": "as it is trained, with its small kernels beside the large ones",
    "UniFormer-B": "with layer scale, as the printed accuracy is",
}

# Why parameters are not those that are printed, where it is known.
_HEADLESS = "parameters are printed without the classifier's"
PARAMETERS = {
    "VMamba-T": _HEADLESS,
    "VMamba-S": _HEADLESS,
    "VMamba-B": _HEADLESS,
    "PlainMamba-L1": _HEADLESS,
    "PlainMamba-L2": _HEADLESS,
    "PlainMamba-L3": _HEADLESS,
    "EfficientVMamba-B": _HEADLESS,
    "Mamba-2D-B": "parameters are printed without those of the layer that merges patches",
}
