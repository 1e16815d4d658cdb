# SPDX-License-Identifier: Apache-2.0
"""PyTorch's side of the comparison of whole models: a model of timm, or an official one."""

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mambaout_jax.benchmarks.jax_models import LEARNING_RATE, WEIGHT_DECAY
from mambaout_jax.benchmarks.timing import first_line

_SIZED = ("vit", "deit", "swin")  # parts of timm's names of models that are made for one image size


class Peer(NamedTuple):
    """A PyTorch model to compare with.

    Attributes:
        title: what the contender is called.
        model: a module on the CPU that maps images (B, 3, H, W) to logits, without drop path.
        rename: from its state dict, as arrays, to one that `weights.convert.from_torch` reads.
        channels_last: whether its images and weights are laid out channels last.
        compiles: whether torch.compile may take part too.
    """

    title: str
    model: Any
    rename: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]] = dict
    channels_last: bool = False
    compiles: bool = False


def import_timm() -> Any:
    """The module `timm`.

    Raises:
        ValueError: timm or PyTorch is not installed.
    """
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ValueError(
            f"bench throughput compares with timm, and {error}; pip install torch timm, or leave "
            "timm out with --no-timm"
        ) from error


def timm_model(name: str, image_size: int) -> Peer:
    """A model of timm with random weights."""
    sized = {"img_size": image_size} if any(part in name for part in _SIZED) else {}
    model = import_timm().create_model(name, drop_path_rate=0.0, **sized)
    return Peer("timm", model, channels_last=True, compiles=True)


class Theirs:
    """A peer on a device, with images and labels.

    Attributes:
        title: what the contender is called.
        logits: what it makes of the images, float32 (B, 1000).
    """

    def __init__(self, peer: Peer, images: np.ndarray, labels: np.ndarray, dtype: str, device: str):
        """Runs inference once.

        Args:
            peer: the model.
            images: float32 (B, H, W, 3).
            labels: (B,).
            dtype: of the computation; parameters stay float32.
            device: "cpu" or "cuda".
        """
        torch = importlib.import_module("torch")
        layout = torch.channels_last if peer.channels_last else torch.contiguous_format
        self.title = peer.title
        self._torch, self._device, self._peer = torch, device, peer
        self._model = peer.model.to(device, memory_format=layout)
        self._dtype = getattr(torch, dtype)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
        self._x = x.contiguous(memory_format=layout)
        self._labels = torch.from_numpy(labels).to(device)
        with torch.inference_mode():
            self.logits = self._forward(self._model.eval(), self._x).float().cpu().numpy()

    def state_dict(self) -> Mapping[str, np.ndarray]:
        """The weights under names that `weights.convert.from_torch` knows."""
        state = self._model.state_dict()
        return self._peer.rename({name: value.cpu().numpy() for name, value in state.items()})

    def calls(
        self, passed: str, plan: dict[str, Any], *, compiled: bool
    ) -> dict[str, Callable[[], Any]]:
        """A call of each contender, by title.

        Args:
            passed: "inference" or "training".
            plan: `torch_compile_seconds` and `torch_peak_bytes` are written into it by title, where
                known, and `torch_compile_error` where torch.compile failed.
            compiled: whether torch.compile takes part, where it may.
        """
        make = self._inference if passed == "inference" else self._training
        calls = {self.title: make(self._model)}
        if self._device == "cuda":
            self._torch.cuda.reset_peak_memory_stats()
            calls[self.title]()
            plan["torch_peak_bytes"][self.title] = self._torch.cuda.max_memory_allocated()
        if compiled and self._peer.compiles:
            # Models share code: after compiling it eight times torch would run the rest eagerly.
            self._torch._dynamo.reset()
            title = f"{self.title} compiled"
            call = make(self._torch.compile(self._model))
            start = time.perf_counter()
            try:
                call()
            except Exception as error:  # for example no C++ compiler; the others still run
                plan["torch_compile_error"] = first_line(error)
            else:
                calls[title] = call
                plan["torch_compile_seconds"][title] = time.perf_counter() - start
        return calls

    def _forward(self, model: Any, images: Any) -> Any:
        enabled = self._dtype != self._torch.float32
        with self._torch.autocast(self._device, dtype=self._dtype, enabled=enabled):
            return model(images)

    def _wait(self) -> None:
        if self._device == "cuda":
            self._torch.cuda.synchronize()

    def _inference(self, model: Any) -> Callable[[], None]:
        def infer():
            model.eval()
            with self._torch.inference_mode():
                self._forward(model, self._x)
            self._wait()

        return infer

    def _training(self, model: Any) -> Callable[[], None]:
        optimizer = self._torch.optim.AdamW(
            model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        cross_entropy = self._torch.nn.functional.cross_entropy

        def train():
            model.train()
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(self._forward(model, self._x), self._labels).backward()
            optimizer.step()
            self._wait()

        return train
