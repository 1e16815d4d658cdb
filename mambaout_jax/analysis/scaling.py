# SPDX-License-Identifier: Apache-2.0
"""How a training step of a classifier scales over chips: estimates on paper, and their tables.

Nothing here is measured on an accelerator. Speeds follow from the vendors' figures (`CHIPS`) and
from two assumptions (`Assumed`). Programs that were compiled for a machine (`mambaout compile`) and
the measured speed of the input pipeline are read from their JSON files. `docs/scaling.md` holds the
tables.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mambaout_jax.analysis.cost import Cost, count
from mambaout_jax.models import create_model, find_variant
from mambaout_jax.runtime.files import read_json

BATCH = 4096  # images of one update, in the recipe of the paper
SHOWN_CHIPS = 32  # of the pod that the recipe names
WRITING = 200e6  # bytes a second that a file system takes; an assumption
# Model and token mixer.
MODELS = (
    ("mambaout_femto", "conv"),
    ("mambaout_kobe", "conv"),
    ("mambaout_tiny", "conv"),
    ("mambaout_tiny", "conv+ssm"),
    ("mambaout_small", "conv"),
    ("mambaout_base", "conv"),
)

_FLOAT = 4  # bytes of a parameter, a moment, an average
_OPERATIONS = 2 * 3  # a multiplication and an addition; forward, and twice as much backward
_UPDATE = 7 * _FLOAT  # AdamW reads parameter, gradient and two moments and writes all but one
_COUNTERS = 3 * 4  # bytes of the state's three counts of updates: its own, Adam's, the schedule's
_IMAGE = (224, 224, 3)
_RECIPE = "rand-augment"  # the row of the benchmark of the input that augments as ImageNet does


class Chip(NamedTuple):
    """What a vendor says of a chip.

    Attributes:
        peak: operations a second in bfloat16, dense.
        memory: bytes.
        memory_bandwidth: bytes a second, reading and writing.
        link: bytes a second that it sends over all links to the chips of its island.
        island: most chips that such links join.
        network: bytes a second that it sends to other islands.
        cores: of its host's processors, per chip; two threads count as one core.
        source: where the figures are from.
    """

    peak: float
    memory: float
    memory_bandwidth: float
    link: float
    island: int
    network: float
    cores: int
    source: str


# Links are published in both directions together: half of that is sent.
CHIPS: dict[str, Chip] = {
    "v5e": Chip(
        197e12, 16e9, 819e9, 400e9 / 2, 256,
        6.4e12 / 8 / 256,  # bits a second of a pod
        224 // 2 // 8,  # threads of a machine with 8 chips
        "https://cloud.google.com/tpu/docs/v5e",
    ),
    "v5p": Chip(
        459e12, 95e9, 2765e9, 1200e9 / 2, 6144,
        50e9 / 8,  # bits a second of a chip
        208 // 2 // 4,  # threads of a machine with 4 chips
        "https://cloud.google.com/tpu/docs/v5p",
    ),
    "H100": Chip(
        1979e12 / 2,  # published with sparsity
        80e9, 3350e9, 900e9 / 2, 8,
        400e9 / 8,  # bits a second of a GPU's own port, in a DGX H100
        112 // 8,  # cores of a DGX H100
        "https://www.nvidia.com/en-us/data-center/h100/, https://docs.nvidia.com/dgx/dgxh100-user-guide/",
    ),
}  # fmt: skip


class Assumed(NamedTuple):
    """What is assumed of a program: nobody measured it here.

    Attributes:
        peak: share of the operations a second. High for these models on purpose: with less, a step
            takes longer, so that the exchange hides more easily and fewer images are decoded.
        links: share of the bytes a second between chips; half is what remains where a slice of TPUs
            is too small for its links to close to rings.
        gradient: bytes of one as it is exchanged: 4 as it is kept, 2 where a compiler adds those up
            in bfloat16 that it makes so.
    """

    peak: float = 0.4
    links: float = 0.5
    gradient: int = 4


ASSUMED = Assumed()


@functools.cache
def cost_of(model: str, mixer: str) -> Cost:
    """Parameters, and MACs of one image of 224 pixels, of a classifier of 1,000 classes.

    Args:
        model: a model of the library.
        mixer: "conv" for the model as its table has it, or another `token_mixer` of MambaOut.
    """
    if mixer == "conv":
        variant = find_variant(model)[1]
        return Cost(variant.parameters, variant.macs)
    return count(create_model(model, token_mixer=mixer), _IMAGE)


def image_seconds(macs: int, chip: Chip, assumed: Assumed = ASSUMED) -> float:
    """Seconds of the forward and backward pass of one image on one chip: 6 MACs / (share · peak).

    Args:
        macs: multiply-accumulates of the forward pass of one image.
    """
    return _OPERATIONS * macs / (assumed.peak * chip.peak)


def all_reduce_seconds(
    parameters: int, chip: Chip, chips: int, assumed: Assumed = ASSUMED
) -> float:
    """Seconds in which chips add up their gradients: by rings in islands, then between islands.

    A ring of n takes 2 (n - 1) / n · bytes / bandwidth (Patarasuk and Yuan 2009). Between islands
    each chip exchanges its own part of what its island has added up.

    Raises:
        ValueError: `chips` is below 1, or more than an island and no multiple of it.
    """
    inside = min(chips, chip.island)
    if chips < 1 or chips % inside:
        raise ValueError(f"chips={chips} must be 1 to {chip.island}, or a multiple of it")
    size = assumed.gradient * parameters
    within = _ring(inside) * size / (assumed.links * chip.link)
    between = _ring(chips // inside) * size / inside / (assumed.links * chip.network)
    return within + between


def update_seconds(parameters: int, chip: Chip) -> float:
    """Least seconds of AdamW's update, 28 bytes of memory per parameter; the same on any chips."""
    return _UPDATE * parameters / chip.memory_bandwidth


def least_images(cost: Cost, chip: Chip, chips: int, assumed: Assumed = ASSUMED) -> float:
    """Images per chip whose two passes take as long as the all-reduce, which hides behind more.

    Raises:
        ValueError: as `all_reduce_seconds`.
    """
    exchange = all_reduce_seconds(cost.parameters, chip, chips, assumed)
    return exchange / image_seconds(cost.macs, chip, assumed)


def most_chips(cost: Cost, chip: Chip, batch: int = BATCH, assumed: Assumed = ASSUMED) -> int:
    """Most chips, a power of two that divides the batch, over which the all-reduce can hide.

    Args:
        batch: images of one update, on all chips.
    """
    chips = 1
    while batch % (2 * chips) == 0 and (
        least_images(cost, chip, 2 * chips, assumed) <= batch // (2 * chips)
    ):
        chips *= 2
    return chips


def input_cores(macs: int, chip: Chip, speed: float, assumed: Assumed = ASSUMED) -> float:
    """Cores that decode and augment what one chip consumes at most.

    Args:
        macs: multiply-accumulates of the forward pass of one image.
        speed: images a second and core.
    """
    return 1 / image_seconds(macs, chip, assumed) / speed


def checkpoint_bytes(parameters: int, *, ema: bool = False, statistics: int = 0) -> int:
    """Bytes of a state of AdamW in a checkpoint, before it is compressed.

    Args:
        parameters: trained ones; a frozen one would have no moments.
        ema: whether an average of parameters and statistics is kept.
        statistics: numbers of batch normalisation.
    """
    variables = parameters + statistics
    return _FLOAT * (variables + 2 * parameters + (variables if ema else 0)) + _COUNTERS


def memory_rows(paths: Iterable[Path]) -> list[list[str]]:
    """A row for each training step in JSON files of `mambaout compile --out`, in the files' order.

    Returns:
        Model, mixer, machine, chips, batch, pixels, dtype, then per chip MiB of arguments, GiB of
        temporaries, GiB at the peak and of memory, MiB of results of all-reduces, and whether it
        fits. What the compiler did not tell of a program that does not is "–".
    """
    rows = []
    for path in paths:
        result = read_json(path)
        for found in result["programs"]:
            if found["program"] != "train":
                continue
            sizes = found["bytes"]
            exchanged = found["collectives"].get("all-reduce", {}).get("bytes", 0)
            told = found["fits"] or found["collectives"]
            rows.append(
                [
                    result["model"],
                    found["mixer"] or "–",
                    result["target"],
                    f"{found['chips']}",
                    f"{found['batch_size']:,}",
                    f"{result['image_size']}",
                    result["dtype"],
                    _scaled(sizes.get("arguments"), 2**20, 1),
                    _scaled(sizes.get("temporaries"), 2**30, 2),
                    _scaled(sizes.get("peak"), 2**30, 2),
                    _scaled(found["limit"] or None, 2**30, 2),
                    _scaled(exchanged if told else None, 2**20, 1),
                    "yes" if found["fits"] else "**no**",
                ]
            )
    return rows


def tables(results: Path) -> dict[str, str]:
    """The tables of `docs/scaling.md` by name, in Markdown.

    Args:
        results: folder of `compile_*.json` and `input_cpu.json`.
    """
    return {
        "memory": as_markdown(_MEMORY, memory_rows(sorted(results.glob("compile_*.json")))),
        "chips": as_markdown(_CHIPS, _chip_rows()),
        "limits": as_markdown(_LIMITS, _limit_rows()),
        "input": as_markdown(_INPUT, _input_rows(input_speeds(results / "input_cpu.json"))),
        "checkpoints": as_markdown(_CHECKPOINTS, _checkpoint_rows()),
    }


def input_speeds(path: Path) -> dict[str, float]:
    """Images a second and core by decoder, medians, from a JSON file of `mambaout bench input`."""
    (row,) = (row for row in read_json(path)["rows"] if row["recipe"] == _RECIPE)
    speeds = row["images_per_second_and_core"]
    return {name: speeds[f"ours {name}"]["median"] for name in ("pillow", "opencv")}


def as_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns but for the first are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """A document with its tables made anew, each between `<!-- NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: the document has another set of tables.
    """
    place = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    names = [found[2] for found in place.finditer(text)]
    if sorted(names) != sorted(tables):
        raise ValueError(f"the document has places for {names}, and there are {[*tables]}")
    return place.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[3]}", text)


_MEMORY = (
    "model", "mixer", "machine", "chips", "batch", "pixels", "dtype", "arguments, MiB",
    "temporaries, GiB", "peak, GiB", "memory, GiB", "all-reduced, MiB", "fits",
)  # fmt: skip
_CHIPS = (
    "chip", "bfloat16, TFLOP/s", "memory, GB", "memory, GB/s", "links, GB/s", "chips so linked",
    "network, GB/s", "cores", "source",
)  # fmt: skip
_LIMITS = (
    "model", "mixer", "chip", "passes of an image, ms", f"all-reduce, {SHOWN_CHIPS} chips, ms",
    "it adds, %", "update, ms", "images per chip to hide it", f"chips at batch {BATCH}",
    "images on each",
)  # fmt: skip
_INPUT = ("model", "mixer", "chip", "images/s", "cores, Pillow", "cores, OpenCV", "cores there")
_CHECKPOINTS = (
    "model", "mixer", "parameters", "MB", "MB with average", "seconds", "seconds with average"
)  # fmt: skip


def _ring(chips: int) -> float:
    return 2 * (chips - 1) / chips


def _scaled(size: float | None, unit: float, digits: int) -> str:
    return "–" if size is None else f"{size / unit:,.{digits}f}"


def _pairs() -> Iterator[tuple[list[str], Cost, Chip]]:
    for model, mixer in MODELS:
        for name, chip in CHIPS.items():
            yield [model, mixer, name], cost_of(model, mixer), chip


def _chip_rows() -> Iterator[list[str]]:
    for name, chip in CHIPS.items():
        yield [
            name,
            f"{chip.peak / 1e12:g}",
            f"{chip.memory / 1e9:g}",
            f"{chip.memory_bandwidth / 1e9:g}",
            f"{chip.link / 1e9:g}",
            f"{chip.island:,}",
            f"{chip.network / 1e9:g}",
            f"{chip.cores}",
            chip.source,
        ]


def _limit_rows() -> Iterator[list[str]]:
    for names, cost, chip in _pairs():
        passes = image_seconds(cost.macs, chip)
        exchange = all_reduce_seconds(cost.parameters, chip, SHOWN_CHIPS)
        most = most_chips(cost, chip)
        yield [
            *names,
            f"{1e3 * passes:.3f}",
            f"{1e3 * exchange:.2f}",
            f"{100 * exchange * SHOWN_CHIPS / BATCH / passes:.1f}",
            f"{1e3 * update_seconds(cost.parameters, chip):.2f}",
            f"{least_images(cost, chip, SHOWN_CHIPS):.1f}",
            f"{most:,}",
            f"{BATCH // most}",
        ]


def _input_rows(speeds: Mapping[str, float]) -> Iterator[list[str]]:
    for names, cost, chip in _pairs():
        cores = [input_cores(cost.macs, chip, speed) for speed in speeds.values()]
        images = f"{1 / image_seconds(cost.macs, chip):,.0f}"
        yield [*names, images, *(f"{number:.1f}" for number in cores), f"{chip.cores}"]


def _checkpoint_rows() -> Iterator[list[str]]:
    for model, mixer in MODELS:
        parameters = cost_of(model, mixer).parameters
        sizes = [checkpoint_bytes(parameters, ema=ema) for ema in (False, True)]
        megabytes = [f"{size / 1e6:,.1f}" for size in sizes]
        seconds = [f"{size / WRITING:.1f}" for size in sizes]
        yield [model, mixer, f"{parameters:,}", *megabytes, *seconds]
