# SPDX-License-Identifier: Apache-2.0
"""docs/scaling.md: no number of it may differ from what the library says."""

import re
from pathlib import Path

import pytest

from mambaout_jax.analysis.scaling import (
    ASSUMED,
    BATCH,
    CHIPS,
    MODELS,
    SHOWN_CHIPS,
    WRITING,
    Assumed,
    all_reduce_seconds,
    checkpoint_bytes,
    cost_of,
    image_seconds,
    input_cores,
    input_speeds,
    least_images,
    most_chips,
    tables,
    update_seconds,
    with_tables,
)
from mambaout_jax.config import default_config
from mambaout_jax.runtime.files import read_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
DOCUMENT = ROOT / "docs" / "scaling.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
TABLE = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
WORDS = ("mambaout_tiny", "conv+ssm", "float32", "bfloat16", *CHIPS)  # names with digits


def rows_of(name):
    """The cells of a table of the document, without its head."""
    (text,) = (found[2] for found in TABLE.finditer(TEXT) if found[1] == name)
    lines = [line for line in text.splitlines() if line]
    return [line.strip("| ").split(" | ") for line in lines[2:]]


def number(cell):
    return float(cell.replace(",", ""))


def near(cell, value):
    """Whether a cell is a value, rounded to the digits that the cell has."""
    digits = len(cell.partition(".")[2])
    return abs(number(cell) - value) <= 0.5001 * 10**-digits


def phrases():
    """Everything with a digit that stands outside the tables, made from the library."""
    speeds = input_speeds(RESULTS / "input_cpu.json")
    short = [
        (model, name)
        for model, mixer in MODELS
        for name, chip in CHIPS.items()
        if mixer == "conv"
        and input_cores(cost_of(model, mixer).macs, chip, speeds["opencv"]) > chip.cores
    ]
    unit = CHIPS["v5e"]._replace(peak=1.0, memory_bandwidth=1.0)
    operations = image_seconds(1, unit, Assumed(peak=1.0))
    each = checkpoint_bytes(1) - checkpoint_bytes(0)
    half = ASSUMED.gradient // 2
    mebibytes = [ASSUMED.gradient * cost_of(*model).parameters / 2**20 for model in MODELS[2:4]]
    averaged = checkpoint_bytes(1, ema=True) - checkpoint_bytes(0, ema=True)
    cores = read_json(RESULTS / "input_cpu.json")["environment"]["cpu_count"]
    tiny, base, gpus = (
        (result["target"], result["image_size"], result["programs"][0]["batch_size"])
        for name in ("tiny_v5e-32", "base_384_v5e-32", "tiny_ssm_h100x8")
        for result in [read_json(RESULTS / f"compile_{name}.json")]
    )
    return [
        f"mambaout_tiny,pod --target {tiny[0]} mambaout",
        f"mambaout_base,pod --target {base[0]} \\",
        f"--config.data.image_size={base[1]} --config.batch_size={base[2]} ",
        f"mambaout_tiny,8gpu --target {gpus[0]} \\",
        f"--config.batch_size={gpus[2]} --config.accumulate_steps=1 ",
        "[Patarasuk and Yuan 2009](https://doi.org/10.1016/j.jpdc.2008.09.002)",
        'most_chips(cost_of("mambaout_tiny", "conv+ssm"), CHIPS["v5e"], 1024, Assumed(peak=0.2))',
        f"seconds = {operations:g} · MACs · images per chip / ({ASSUMED.peak} · peak)",
        f"mambaout_tiny are {mebibytes[0]:.1f} MiB, with conv+ssm {mebibytes[1]:.1f} MiB",
        f"seconds = 2 (n - 1) / n · {ASSUMED.gradient} bytes · parameters / ({ASSUMED.links} ·",
        f"**{ASSUMED.gradient} bytes per gradient**, as it is kept",
        f"a program exchanges {half}, the",
        f"a utilisation of {ASSUMED.peak}**",
        f"**{ASSUMED.links} of the published bandwidth",
        f"two thirds of that time, so that behind that alone {3 / 2} times as many images",
        f"on {SHOWN_CHIPS} chips with {BATCH // SHOWN_CHIPS} images each",
        f"reading and writing of {update_seconds(1, unit):g} bytes per parameter",
        f"is for {SHOWN_CHIPS} chips as well",
        f'"chips at batch {BATCH}"',
        f"{speeds['pillow']:.0f} images a second with Pillow and {speeds['opencv']:.0f} with Open",
        f"a machine of {cores} cores",
        f"peak · {ASSUMED.peak} / ({operations:g} · MACs) images a second",
        f"that is so with OpenCV for {listed(short)}.",
        "`--config.ema.decay` is above 0,",
        f"bytes = {each} P + {checkpoint_bytes(0)}, or {averaged} P + {checkpoint_bytes(0)} with",
        f"takes {WRITING / 1e6:g} MB a second",
        f"`--config.checkpoint.keep`, {default_config().checkpoint.keep} by default",
    ]


def listed(pairs):
    """Models, each with its chips in parentheses."""
    chips = {model: [name for other, name in pairs if other == model] for model, _ in pairs}
    return ", ".join(f"{model} ({', '.join(names)})" for model, names in chips.items())


@pytest.fixture(scope="module")
def fault():
    """Where a text is not the document as the library would have it; empty where it is."""
    made, said = tables(RESULTS), phrases()

    def check(text):
        if with_tables(text, made) != text:
            return "a table is not what `scaling.tables` makes; put it in by `scaling.with_tables`"
        prose = " ".join(TABLE.sub("", text).split())
        for phrase in said:
            if phrase not in prose:
                return f"it does not say: {phrase}"
            prose = prose.replace(phrase, "")
        for word in WORDS:
            prose = re.sub(rf"(?<![\w.]){re.escape(word)}(?!\w)", "", prose)
        left = re.search(r".{0,40}\d.{0,40}", prose)
        return f"nothing is known of: {left[0]}" if left else ""

    return check


def test_every_number_is_the_librarys(fault):
    assert fault(TEXT) == ""


def test_no_digit_can_change_unnoticed(fault):
    for place in re.finditer(r"\d", TEXT):
        start, end = place.span()
        other = str((int(place[0]) + 1) % 10)
        assert fault(TEXT[:start] + other + TEXT[end:]), TEXT[start - 30 : end + 30]


def test_memory_is_what_the_compiler_said():
    programs = [
        (result, found)
        for result in map(read_json, sorted(RESULTS.glob("compile_*.json")))
        for found in result["programs"]
        if found["program"] == "train"
    ]
    rows = rows_of("memory")
    assert len(rows) == len(programs)
    for row, (result, found) in zip(rows, programs, strict=True):
        named = result["model"], found["mixer"] or "–", result["target"], result["dtype"]
        assert (*row[:3], row[6]) == named
        sizes = found["chips"], found["batch_size"], result["image_size"]
        assert tuple(number(cell) for cell in row[3:6]) == sizes
        assert near(row[8], found["bytes"]["temporaries"] / 2**30)
        assert near(row[9], found["bytes"]["peak"] / 2**30)
        assert row[12] == ("yes" if found["fits"] else "**no**")
        for cell, size in (
            (row[7], found["bytes"].get("arguments")),
            (row[11], found["collectives"].get("all-reduce", {}).get("bytes")),
        ):
            assert size is None or near(cell, size / 2**20)


def test_limits_are_those_of_the_formulas():
    rows = rows_of("limits")
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (*m, chip) for m in MODELS for chip in CHIPS
    ]
    for model, mixer, name, passes, exchange, adds, update, least, chips, images in rows:
        cost, chip = cost_of(model, mixer), CHIPS[name]
        assert near(passes, 1e3 * image_seconds(cost.macs, chip))
        assert near(exchange, 1e3 * all_reduce_seconds(cost.parameters, chip, 32))
        step = 128 * image_seconds(cost.macs, chip)
        assert near(adds, 100 * all_reduce_seconds(cost.parameters, chip, 32) / step)
        assert near(update, 1e3 * 28 * cost.parameters / chip.memory_bandwidth)
        assert near(least, least_images(cost, chip, 32))
        assert number(chips) == most_chips(cost, chip, 4096)
        assert number(chips) * number(images) == 4096
        assert number(images) >= least_images(cost, chip, int(number(chips)))
        assert number(images) / 2 < least_images(cost, chip, 2 * int(number(chips)))


def test_the_ssm_adds_more_macs_than_parameters():
    plain, ssm = cost_of("mambaout_tiny", "conv"), cost_of("mambaout_tiny", "conv+ssm")
    assert ssm.macs / plain.macs > ssm.parameters / plain.parameters > 1


def test_cores_are_those_of_the_measured_speed():
    speeds = input_speeds(RESULTS / "input_cpu.json")
    for model, mixer, name, images, pillow, opencv, there in rows_of("input"):
        speed = 0.4 * CHIPS[name].peak / (6 * cost_of(model, mixer).macs)
        assert near(images, speed)
        assert near(pillow, speed / speeds["pillow"])
        assert near(opencv, speed / speeds["opencv"])
        assert number(there) == CHIPS[name].cores


def test_checkpoints_are_12_or_16_bytes_per_parameter():
    for model, mixer, parameters, size, averaged, seconds, longer in rows_of("checkpoints"):
        count = cost_of(model, mixer).parameters
        assert number(parameters) == count
        for cell, time, each in ((size, seconds, 12), (averaged, longer, 16)):
            assert near(cell, (each * count + 12) / 1e6)
            assert near(time, (each * count + 12) / 200e6)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((\.\./[\w/.]+)\)", TEXT))))
def test_linked_files_exist(path):
    assert (DOCUMENT.parent / path).is_file()


def test_the_example_computes():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    *first, last = code.strip().splitlines()
    names = {}
    exec("\n".join(first), names)
    assert eval(last, names) == most_chips(
        cost_of("mambaout_tiny", "conv+ssm"), CHIPS["v5e"], 1024, Assumed(0.2, 0.5)
    )
