# SPDX-License-Identifier: Apache-2.0
"""How many images per second, against timm in the same process?

Measured are inference and a training step with AdamW, with the same weights and images on both
sides: ours compiled as this library compiles its models, timm's eager and with torch.compile,
channels last. They take turns, so that a busy machine slows all of them equally. The yardsticks,
other models of timm, have no counterpart of ours; they show where the family stands.

Needs PyTorch and timm, which the package itself does not need.
"""

import functools
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mambaout_jax.benchmarks.timing import (
    environment,
    find_device,
    first_line,
    ignore,
    interleaved_milliseconds,
    report_progress,
    save_json,
    speedup,
    summary,
)
from mambaout_jax.benchmarks.torch_peer import torch_device
from mambaout_jax.models import create_model, list_models
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.weights.convert import from_torch

MODELS = (
    "mambaout_femto",
    "mambaout_kobe",
    "mambaout_tiny",
    "mambaout_small",
    "mambaout_small_rw",
    "mambaout_base",
    "mambaout_base_short_rw",
    "mambaout_base_tall_rw",
    "mambaout_base_wide_rw",
    "mambaout_base_plus_rw",
)
YARDSTICKS = ("convnext_tiny", "vit_small_patch16_224")
QUICK = {"models": ("test_mambaout",), "image_size": 64, "rounds": 2, "compiled": False}

_PLAN = ("compile_seconds", "temp_bytes", "torch_compile_seconds", "torch_peak_bytes")
_CLASSES = 1000
_LEARNING_RATE, _WEIGHT_DECAY = 1e-3, 0.05
_MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.2}  # between logits, in standard deviations

save = save_json


def run(
    *,
    models: Sequence[str] = (*MODELS, *YARDSTICKS),
    batch_size: int = 8,
    image_size: int = 224,
    dtype: str = "float32",
    rounds: int = 5,
    compiled: bool = True,
    device: str | None = None,
    keep: Callable[[dict[str, Any]], object] = ignore,
) -> dict[str, Any]:
    """Times models against timm's; progress is printed to the standard error.

    Args:
        models: timm's names of models; those that this library has too are compared.
        batch_size: images per call.
        image_size: pixels, height and width.
        dtype: precision of the computation on both sides; parameters are float32.
        rounds: how many turns each contender has; the numbers reported are medians over them.
        compiled: whether torch.compile takes part; it takes minutes to compile on a CPU.
        device: "cpu", "gpu" or "tpu"; None: JAX's default. timm runs on the same device, and on the
            CPU if that is a TPU.
        keep: called after every row with the result so far.

    Returns:
        A dict ready for JSON: `environment`, the arguments, and `rows`, one per model and pass. A
        row has `images_per_second` and `milliseconds` of each contender; `speedup`, how many times
        faster ours is than timm's (round by round: median, min, max); `compile_seconds` and
        `temp_bytes` of ours; `torch_compile_seconds`, the first call of timm's compiled model; and
        `torch_peak_bytes`, all memory of an eager call, which is known on GPUs only. Unknown values
        are None. If torch.compile failed, `torch_compile_error` says why.

    Raises:
        ValueError: PyTorch or timm is not installed, the device is not there, or the logits differ.
    """
    jax_device = find_device(device)
    peer = torch_device(_import_peers()[1], jax_device)
    result: dict[str, Any] = {
        "environment": environment(jax_device) | _torch_versions(),
        "batch_size": batch_size,
        "image_size": image_size,
        "dtype": dtype,
        "rounds": rounds,
        "rows": [],
    }
    with jax.default_device(jax_device):
        for name in models:
            theirs = _Timm(name, batch_size, image_size, dtype, compiled, peer)
            ours = _Ours(name, theirs, dtype) if name in list_models() else None
            for passed in ("inference", "training"):
                report_progress(f"{name} {passed}")
                plan: dict[str, Any] = dict.fromkeys(_PLAN)
                calls = theirs.calls(passed, plan)
                if ours is not None:
                    calls = {"ours": ours.call(passed, plan), **calls}
                times = interleaved_milliseconds(calls, rounds=rounds, calls_per_round=1)
                row = {"model": name, "pass": passed} | _row(times, batch_size) | plan
                result["rows"].append(row)
                keep(result)
    return result


def print_table(result: dict[str, Any]) -> None:
    """Prints the result of `run`: speeds, ours over each of timm's, compilation and memory."""
    where = result["environment"]
    print(
        f"{where['device']} ({where['platform']}), jax {where['jax']}, torch {where['torch']}, "
        f"timm {where['timm']}; {result['dtype']}, batch {result['batch_size']}, "
        f"{result['image_size']} pixels; images/s, medians"
    )
    for row in result["rows"]:
        speeds = "  ".join(
            f"{name} {speed['median']:.1f}" for name, speed in row["images_per_second"].items()
        )
        ratios = "  ".join(
            "ours / {}: {median:.2f}x ({min:.2f}-{max:.2f})".format(name, **ratio)
            for name, ratio in row["speedup"].items()
        )
        print(f"{row['model']:24}{row['pass']:11}{speeds}  {ratios}")
        for line in _plan_lines(row):
            print(f"  {line}")


def _plan_lines(row: dict[str, Any]) -> Iterator[str]:
    """Lines on compilation and memory, as far as these are known."""
    for title, unit, keys in (
        ("compilation", "s", {"ours": "compile_seconds", "timm": "torch_compile_seconds"}),
        ("memory", "MiB", {"ours, temporary": "temp_bytes", "timm, in all": "torch_peak_bytes"}),
    ):
        scale = 2**20 if unit == "MiB" else 1
        known = {name: row[key] / scale for name, key in keys.items() if row[key] is not None}
        if known:
            yield f"{title}: " + "; ".join(f"{k} {v:,.1f} {unit}" for k, v in known.items())
    if "torch_compile_error" in row:
        yield f"torch.compile failed: {row['torch_compile_error']}"


def _row(times: dict[str, list[float]], batch_size: int) -> dict[str, Any]:
    """Speeds, times and ratios of contenders, from their milliseconds per call."""
    speeds = {
        name: summary([1e3 * batch_size / value for value in values])
        for name, values in times.items()
    }
    ratios = {
        name: speedup(values, times["ours"])
        for name, values in times.items()
        if "ours" in times and name != "ours"
    }
    milliseconds = {name: summary(values) for name, values in times.items()}
    return {"images_per_second": speeds, "milliseconds": milliseconds, "speedup": ratios}


class _Ours:
    """Our side: compiled calls on timm's weights, images and labels."""

    def __init__(self, name: str, theirs: "_Timm", dtype: str):
        self._images = jnp.asarray(theirs.images)
        self._labels = jnp.asarray(theirs.labels)
        self._model = create_model(
            name, dtype=jnp.dtype(dtype), drop_path=0.0, image_size=theirs.images.shape[1]
        )
        self._variables = jax.device_put(
            from_torch(name, theirs.state_dict(), image_size=theirs.images.shape[1])
        )
        logits = jax.jit(self._model.apply)(self._variables, self._images)
        difference = float(np.abs(logits - theirs.logits).max() / theirs.logits.std())
        if not difference <= _MAX_DIFFERENCE[dtype]:
            raise ValueError(
                f"the logits of {name} differ from timm's by {difference:.2g} standard deviations; "
                "the two sides do not compute the same"
            )

    def call(self, passed: str, plan: dict[str, Any]) -> Callable[[], Any]:
        """A compiled call; seconds and memory of the compilation are written into `plan`."""
        if passed == "inference":
            arguments = (self._variables, self._images)
            compiled = _compile(self._model.apply, arguments, plan)
            return functools.partial(compiled, *arguments)
        optimizer = optax.adamw(_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        state = [jax.tree.map(jnp.copy, self._variables), None]
        state[1] = optimizer.init(state[0])

        def loss(variables, images, labels):
            logits: Any = self._model.apply(variables, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(variables, moments, images, labels):
            gradients = jax.grad(loss)(variables, images, labels)
            updates, moments = optimizer.update(gradients, moments, variables)
            return optax.apply_updates(variables, updates), moments

        compiled = _compile(step, (*state, self._images, self._labels), plan, donate=(0, 1))

        def train():
            state[:] = compiled(*state, self._images, self._labels)
            return state

        return train


def _compile(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    plan: dict[str, Any],
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    options = to_run_fast(jax.tree.leaves(arguments)[0].device.platform)
    start = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=donate, compiler_options=options)
    compiled = jitted.lower(*arguments).compile()
    plan["compile_seconds"] = time.perf_counter() - start
    memory = compiled.memory_analysis()
    plan["temp_bytes"] = None if memory is None else memory.temp_size_in_bytes
    return compiled


class _Timm:
    """timm's side, channels last.

    Attributes:
        images: float32 (B, H, W, 3).
        labels: (B,).
        logits: the model's outputs for the images, (B, 1000).
    """

    def __init__(
        self, name: str, batch_size: int, image_size: int, dtype: str, compiled: bool, device: str
    ):
        timm, torch = _import_peers()
        rng = np.random.default_rng(0)
        self.images = rng.standard_normal((batch_size, image_size, image_size, 3), np.float32)
        self.labels = rng.integers(_CLASSES, size=batch_size)
        torch.manual_seed(0)
        sized = {"img_size": image_size} if "vit" in name or "deit" in name else {}
        model = timm.create_model(name, drop_path_rate=0.0, **sized)
        self._torch = torch
        self._device = device
        self._compiled = compiled
        self._model = model.to(device, memory_format=torch.channels_last)
        self._dtype = getattr(torch, dtype)
        self._x = torch.from_numpy(self.images).permute(0, 3, 1, 2).to(device)
        self._x = self._x.contiguous(memory_format=torch.channels_last)
        self._labels = torch.from_numpy(self.labels).to(device)
        with torch.inference_mode():
            self.logits = self._forward(self._model.eval(), self._x).float().cpu().numpy()

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy() for name, value in self._model.state_dict().items()}

    def calls(self, passed: str, plan: dict[str, Any]) -> dict[str, Callable[[], Any]]:
        """A call of each contender, by name; compile time and memory are written into `plan`."""
        make = self._inference if passed == "inference" else self._training
        calls = {"timm": make(self._model)}
        if self._device == "cuda":
            self._torch.cuda.reset_peak_memory_stats()
            calls["timm"]()
            plan["torch_peak_bytes"] = self._torch.cuda.max_memory_allocated()
        if self._compiled:
            # Models share code: after compiling it eight times torch would run the rest eagerly.
            self._torch._dynamo.reset()
            call = make(self._torch.compile(self._model))
            start = time.perf_counter()
            try:
                call()
            except Exception as error:  # for example no C++ compiler; the others still run
                plan["torch_compile_error"] = first_line(error)
            else:
                calls["timm compiled"] = call
                plan["torch_compile_seconds"] = time.perf_counter() - start
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
            model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
        )
        cross_entropy = self._torch.nn.functional.cross_entropy

        def train():
            model.train()
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(self._forward(model, self._x), self._labels).backward()
            optimizer.step()
            self._wait()

        return train


def _import_peers() -> tuple[Any, Any]:
    try:
        return importlib.import_module("timm"), importlib.import_module("torch")
    except ImportError as error:
        raise ValueError(
            f"bench throughput compares with timm, and {error}; pip install torch timm"
        ) from error


def _torch_versions() -> dict[str, Any]:
    timm, torch = _import_peers()
    return {
        "torch": torch.__version__,
        "timm": timm.__version__,
        "torch_threads": torch.get_num_threads(),
    }
