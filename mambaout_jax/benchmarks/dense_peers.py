# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of the comparison of dense models.

These are torchvision's Mask R-CNN and transformers' UperNet, on timm's backbone of the same name
with layer norm of its maps. Their weights come under mmdetection's and mmsegmentation's names,
which this library reads.
"""

import abc
import importlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mambaout_jax.benchmarks.dense_inputs import (
    AUXILIARY_WEIGHT,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Inputs,
)

PACKAGES = {  # what a peer is made of
    "detection": ("torch", "torchvision", "timm"),
    "segmentation": ("torch", "transformers", "timm"),
}
_POINTS = {"box": 7, "mask": 14}  # a side, of what the heads read of a box
_STRIDES = (4, 8, 16, 32)
_SURE = 2.0  # standard deviation of the class logits: as many objects are found as may be
_CLASS_ROWS = ("cls_score.weight", "cls_score.bias", "mask_fcn_logits.weight",
               "mask_fcn_logits.bias")  # fmt: skip

_MASK_RCNN_NAMES = (
    ("rpn.head.conv.0.0.", "rpn_head.rpn_conv."),
    ("rpn.head.cls_logits.", "rpn_head.rpn_cls."),
    ("rpn.head.bbox_pred.", "rpn_head.rpn_reg."),
    ("roi_heads.box_head.fc6.", "roi_head.bbox_head.shared_fcs.0."),
    ("roi_heads.box_head.fc7.", "roi_head.bbox_head.shared_fcs.1."),
    ("roi_heads.box_predictor.cls_score.", "roi_head.bbox_head.fc_cls."),
    ("roi_heads.box_predictor.bbox_pred.", "roi_head.bbox_head.fc_reg."),
    *((f"roi_heads.mask_head.{i}.0.", f"roi_head.mask_head.convs.{i}.conv.") for i in range(4)),
    ("roi_heads.mask_predictor.conv5_mask.", "roi_head.mask_head.upsample."),
    ("roi_heads.mask_predictor.mask_fcn_logits.", "roi_head.mask_head.conv_logits."),
    *(
        (f"backbone.fpn.{theirs}.{i}.0.", f"neck.{mmdets}.{i}.conv.")
        for theirs, mmdets in (("inner_blocks", "lateral_convs"), ("layer_blocks", "fpn_convs"))
        for i in range(4)
    ),
    ("backbone.maps.body.", "backbone."),
    *((f"backbone.maps.norms.{i}.", f"backbone.norm{i}.") for i in range(4)),
)
_UPERNET_NAMES = (
    *(
        (f"head.psp_modules.{i}.1.{part}.", f"decode_head.psp_modules.{i}.1.{mmsegs}.")
        for i in range(4)
        for part, mmsegs in (("conv", "conv"), ("batch_norm", "bn"))
    ),
    ("head.classifier.", "decode_head.conv_seg."),
    ("auxiliary.classifier.", "auxiliary_head.conv_seg."),
    ("head.", "decode_head."),
    ("auxiliary.", "auxiliary_head."),
    ("maps.body.", "backbone."),
    *((f"maps.norms.{i}.", f"backbone.norm{i}.") for i in range(4)),
)


def missing_packages(task: str) -> tuple[str, ...]:
    """Those of `PACKAGES` that are not installed, so that a task's peer cannot take part."""
    return tuple(name for name in PACKAGES[task] if importlib.util.find_spec(name) is None)


def _maps(backbone: str) -> Any:
    """A module from images to the four maps (B, C, H, W) of timm's model, with layer norm."""
    torch, timm = (importlib.import_module(name) for name in ("torch", "timm"))

    class Maps(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model(backbone, drop_path_rate=0.0)
            self.channels = [info["num_chs"] for info in self.body.feature_info]
            if hasattr(self.body, "head"):
                self.body.head = torch.nn.Identity()
            self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(c) for c in self.channels)

        def forward(self, x):
            maps = self.body.forward_intermediates(x, intermediates_only=True, output_fmt="NHWC")
            return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps, strict=True)]

    return Maps()


class _Theirs(abc.ABC):
    """What both peers have in common.

    Attributes:
        title: what the contender is called.
        losses: of the training step that was last run, by this library's names.
    """

    title: str
    names: tuple[tuple[str, str], ...]

    def __init__(self, inputs: Inputs, device: str, model: Any):
        self._torch = importlib.import_module("torch")
        self._device = device
        self._model = model.to(device, memory_format=self._torch.channels_last)
        self._dtype = getattr(self._torch, inputs.dtype)
        self.losses: dict[str, float] = {}
        x = self._tensor(inputs.images).permute(0, 3, 1, 2)
        self._x = x.contiguous(memory_format=self._torch.channels_last)

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights, under the names of mmdetection or mmsegmentation."""
        state = {}
        for key, value in self._model.state_dict().items():
            new = next((mm + key[len(ours) :] for ours, mm in self.names if key.startswith(ours)),
                       key)  # fmt: skip
            new = new.replace(".batch_norm.", ".bn.")
            state[new] = self._as_mm(key, value.cpu().numpy())
        return state

    def calls(self, passed: str) -> Callable[[], None]:
        """A call of a pass, "inference" or "training"; training steps go on from one another."""
        if passed == "inference":
            return self._infer
        optimizer = self._torch.optim.AdamW(
            self._model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )

        def train():
            self._model.train()
            optimizer.zero_grad(set_to_none=True)
            with self._autocast():
                losses = self._training_losses()
            sum(losses.values()).backward()
            optimizer.step()
            self._wait()
            self.losses = {key: float(value.detach()) for key, value in losses.items()}

        return train

    def _as_mm(self, key: str, value: np.ndarray) -> np.ndarray:
        return value

    @abc.abstractmethod
    def _infer(self) -> Any: ...

    @abc.abstractmethod
    def _training_losses(self) -> dict[str, Any]: ...

    def _tensor(self, x: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(x)).to(self._device)

    def _autocast(self) -> Any:
        enabled = self._dtype != self._torch.float32
        return self._torch.autocast(self._device, dtype=self._dtype, enabled=enabled)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()


class TheirDetector(_Theirs):
    """torchvision's Mask R-CNN as it comes, but for 1000 proposals also while training.

    Images are neither resized nor normalised, and masks are left at 28 x 28, as this library's
    detector has them. The class logits are scaled to vary as those of a trained model do, so that
    100 objects are found in an image; else the mask head would have nothing to do.
    """

    title = "torchvision"
    names = _MASK_RCNN_NAMES

    def __init__(self, backbone: str, inputs: Inputs, device: str):
        torch, vision = (importlib.import_module(name) for name in ("torch", "torchvision"))
        detection, ops = vision.models.detection, vision.ops
        maps = _maps(backbone)

        class Pyramid(torch.nn.Module):
            out_channels = 256

            def __init__(self):
                super().__init__()
                extra = ops.feature_pyramid_network.LastLevelMaxPool()
                self.maps = maps
                self.fpn = ops.FeaturePyramidNetwork(maps.channels, self.out_channels, extra)

            def forward(self, x):
                return self.fpn(OrderedDict((str(i), y) for i, y in enumerate(self.maps(x))))

        anchors = detection.rpn.AnchorGenerator(
            tuple((8 * stride,) for stride in (*_STRIDES, 64)), ((0.5, 1.0, 2.0),) * 5
        )
        height, width = inputs.images.shape[1:3]
        model = detection.MaskRCNN(
            Pyramid(), num_classes=inputs.classes + 1, rpn_anchor_generator=anchors,
            rpn_post_nms_top_n_train=1000, min_size=height, max_size=width,
            image_mean=[0.0] * 3, image_std=[1.0] * 3, _skip_resize=True,
        )  # fmt: skip
        model.transform.postprocess = lambda result, *_: result
        super().__init__(inputs, device, model)
        self._ops = ops
        self._boxes = list(self._tensor(inputs.regions))
        self._targets = [
            {
                "boxes": self._tensor(boxes),
                "labels": self._tensor(labels.astype(np.int64) + 1),
                "masks": self._tensor(masks),
            }
            for boxes, labels, masks in zip(inputs.boxes, inputs.labels, inputs.masks, strict=True)
        ]
        self._scale_logits()

    def outputs(self) -> dict[str, np.ndarray]:
        """What the heads say, in this library's layout: of the maps, and of `inputs.regions`.

        Boxes are cropped as mmdetection does, not as torchvision's default does.
        """
        heads = self._model.roi_heads
        with self._torch.inference_mode(), self._autocast():
            maps, features = self._features()
            scores, deltas = self._model.rpn.head(list(maps.values()))
            hidden = heads.box_head(features["box"])
            logits, _ = heads.box_predictor(hidden)
            masks = heads.mask_predictor(heads.mask_head(features["mask"]))
        found = {
            "finest map": maps["0"].permute(0, 2, 3, 1),
            "proposals' scores": scores[0].permute(0, 2, 3, 1),
            "proposals' deltas": deltas[0].permute(0, 2, 3, 1),
            "class logits": self._torch.roll(logits, -1, 1),
            "mask logits": masks[:, 1:].permute(0, 2, 3, 1),
        }
        return {name: x.float().cpu().numpy() for name, x in found.items()}

    def _features(self):
        """The pyramid, and what the two heads read of the regions."""
        self._model.eval()
        maps = self._model.backbone(self._x)
        level = self._ops.poolers.LevelMapper(0, 3, canonical_scale=56, canonical_level=0)
        levels = level(self._boxes)
        rois = self._ops._utils.convert_boxes_to_roi_format(self._boxes)
        features = {}
        for head, points in _POINTS.items():
            rows = rois.new_zeros((len(rois), 256, points, points))
            for i, stride in enumerate(_STRIDES):
                here = levels == i
                rows[here] = self._ops.roi_align(
                    maps[str(i)].float(), rois[here], points, 1 / stride, -1, aligned=True
                )
            features[head] = rows
        return maps, features

    def _scale_logits(self) -> None:
        heads = self._model.roi_heads
        with self._torch.inference_mode():
            logits, _ = heads.box_predictor(heads.box_head(self._features()[1]["box"]))
            factor = _SURE / logits.std()
        with self._torch.no_grad():
            heads.box_predictor.cls_score.weight *= factor.item()

    def _as_mm(self, key: str, value: np.ndarray) -> np.ndarray:
        if key.endswith(_CLASS_ROWS):  # the background is their first class
            return value[1:] if "mask" in key else np.roll(value, -1, 0)
        return value[4:] if "box_predictor.bbox_pred." in key else value

    def found(self) -> int:
        """The least number of objects found in any image."""
        return min(len(image["labels"]) for image in self._infer())

    def _infer(self) -> Any:
        self._model.eval()
        with self._torch.inference_mode(), self._autocast():
            result = self._model(list(self._x))
        self._wait()
        return result

    def _training_losses(self) -> dict[str, Any]:
        losses = self._model(list(self._x), self._targets)
        return {
            "rpn_class": losses["loss_objectness"],
            "rpn_box": losses["loss_rpn_box_reg"],
            "class": losses["loss_classifier"],
            "box": losses["loss_box_reg"],
            "mask": losses["loss_mask"],
        }


class TheirSegmenter(_Theirs):
    """transformers' UperNet head and auxiliary head, which drop no channels, at full size."""

    title = "transformers"
    names = _UPERNET_NAMES

    def __init__(self, backbone: str, inputs: Inputs, device: str):
        torch = importlib.import_module("torch")
        upernet = importlib.import_module("transformers.models.upernet.modeling_upernet")
        config = upernet.UperNetConfig(
            hidden_size=512, num_labels=inputs.classes, auxiliary_channels=256,
            auxiliary_in_channels=None, backbone_config={"model_type": "convnext"},
        )  # fmt: skip
        resize = torch.nn.functional.interpolate

        class Segmenter(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.maps = _maps(backbone)
                self.head = upernet.UperNetHead(config, self.maps.channels)
                self.auxiliary = upernet.UperNetFCNHead(config, self.maps.channels)

            def forward(self, x):
                maps = self.maps(x)
                heads = (self.head, self.auxiliary) if self.training else (self.head,)
                return [resize(head(maps), size=x.shape[2:], mode="bilinear") for head in heads]

        super().__init__(inputs, device, Segmenter())
        self._labels = self._tensor(inputs.labels.astype(np.int64))

    def outputs(self) -> dict[str, np.ndarray]:
        """Logits in this library's layout, of every fourth pixel of the maps at stride 4."""
        self._model.eval()
        with self._torch.inference_mode(), self._autocast():
            logits = self._model.head(self._model.maps(self._x))
        return {"logits": logits.permute(0, 2, 3, 1).float().cpu().numpy()}

    def _infer(self) -> Any:
        self._model.eval()
        with self._torch.inference_mode(), self._autocast():
            classes = self._model(self._x)[0].argmax(1)
        self._wait()
        return classes

    def _training_losses(self) -> dict[str, Any]:
        main, auxiliary = (
            self._torch.nn.functional.cross_entropy(logits.float(), self._labels, ignore_index=255)
            for logits in self._model(self._x)
        )
        return {"main": main, "auxiliary": AUXILIARY_WEIGHT * auxiliary}


THEIRS: Mapping[str, Callable[..., Any]] = {
    "detection": TheirDetector,
    "segmentation": TheirSegmenter,
}
