# SPDX-License-Identifier: Apache-2.0
"""Compiled programs as a table, as JSON and as a picture of their memory."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mambaout_jax.analysis.figures import COLORS, INK, new_figure, save_figure
from mambaout_jax.aot.steps import PROGRAMS, compile_step, largest_batch
from mambaout_jax.aot.targets import devices_of, find_target, versions
from mambaout_jax.benchmarks.timing import save_json
from mambaout_jax.config import Config
from mambaout_jax.models import takes_option

_SHOWN = 5  # arrays at the peak in the table


def compile_for(
    config: Config,
    target: str,
    *,
    mixers: Sequence[str] = (),
    search: bool = False,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compiles what a run of a config would run, for a machine, once per token mixer.

    Args:
        config: a run's.
        target: a key of `targets.TARGETS`.
        mixers: values of the model's option `token_mixer`; none: the config's own.
        search: also find the largest batch of the training step (several compilations).
        log: takes a line when something is done.

    Returns:
        A JSON-able dict: `target`, `kind`, `versions`, `model`, `dtype`, and `programs`, dicts of
        `steps.compile_step` with their `mixer`; that of training with `largest_batch`, if wanted.

    Raises:
        ValueError: no such target, a setting is wrong, or the model has no token mixer to choose.
        ModuleNotFoundError: the target's compiler is not installed.
    """
    find_target(target)
    if mixers and not takes_option(config.model.name, "token_mixer"):
        raise ValueError(
            f"model.name={config.model.name!r} has no token mixer to choose; leave --mixers out"
        )
    devices = devices_of(target)
    result: dict[str, Any] = {
        "target": target,
        "kind": devices[0].device_kind,
        "versions": versions(),
        "model": config.model.name,
        "dtype": config.model.dtype,
        "image_size": config.data.image_size,
        "programs": [],
    }
    for mixer, changed in _with_mixers(config, mixers):
        for program in PROGRAMS:
            found = compile_step(changed, target, devices, program) | {"mixer": mixer}
            log(_line(found))
            if search and program == "train":
                found["largest_batch"] = largest_batch(changed, target, devices, log)
            result["programs"].append(found)
    return result


def as_text(result: dict[str, Any]) -> str:
    """The result as lines of text, one table for each program."""
    rows = [
        f"{result['model']}, {result['dtype']}, {result['image_size']} pixels, for "
        f"{result['target']} ({result['programs'][0]['chips']} x {result['kind']}); numbers are "
        "those of the compiler, nothing was run"
    ]
    for found in result["programs"]:
        rows += ["", *_rows_of(found)]
    return "\n".join(rows)


def write(result: dict[str, Any], out: Path) -> list[Path]:
    """Writes <out>.json and, where programs fit, <out>.png; returns the files."""
    files = save_json(result, out.with_name(f"{out.name}.json"))
    drawn = [found for found in result["programs"] if found["memory"]]
    if drawn:
        picture = out.with_name(f"{out.name}.png")
        _draw(result, drawn, picture)
        files.append(picture)
    return files


def _with_mixers(config: Config, mixers: Sequence[str]) -> Iterator[tuple[str, Config]]:
    if not mixers:
        yield str(config.model.options.get("token_mixer", "")), config
    for mixer in mixers:
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            changed.model.options.token_mixer = mixer
        yield mixer, changed


def _line(found: dict[str, Any]) -> str:
    name = " ".join(filter(None, (found["mixer"], found["program"])))
    verdict = "fits" if found["fits"] else "does not fit"
    return f"{name}: {verdict}, compiled in {found['seconds']:.0f} s"


def _rows_of(found: dict[str, Any]) -> list[str]:
    sizes, limit = found["bytes"], found["limit"]
    memory = ", ".join(f"{name} {_gib(size)}" for name, size in sizes.items())
    of = f" of {_gib(limit)}" if limit else ""
    rows = {
        "program": " ".join(filter(None, (found["mixer"], found["program"]))),
        "batch": f"{found['batch_size']:,} = {found['chips']} chips x "
        f"{found['batch_size'] // found['chips']}",
        "memory a chip": f"{'fits' if found['fits'] else 'DOES NOT FIT'}{of}: {memory}",
        "compiled in": f"{found['seconds']:.1f} s",
    }
    if found.get("flops"):  # which the compiler of GPUs does not tell
        rows["a chip computes"] = (
            f"{found['flops'] / 1e9:,.1f} GFLOPs, {found['bytes_accessed'] / 1e9:,.2f} GB moved"
        )
    if found["fits"]:
        rows["exchanged"] = (
            ", ".join(
                f"{x['count']} {kind} ({x['bytes'] / 2**20:,.1f} MiB)"
                for kind, x in found["collectives"].items()
            )
            or "nothing"
        )
    for number, array in enumerate(found["largest"][:_SHOWN]):
        rows["at the peak" if not number else " " * number] = (
            f"{_gib(array['size'])} {array['shape']}  {array['name']}"
        )
    if best := found.get("largest_batch"):
        rows["largest batch"] = f"{best['batch_size']:,}"
    width = max(map(len, rows))
    return [f"{name.strip():{width}}  {value}" for name, value in rows.items()]


def _draw(result: dict[str, Any], programs: list[dict[str, Any]], path: Path) -> None:
    figure = new_figure(900, 520)
    axes = figure.add_subplot()
    for color, found in zip(COLORS, programs, strict=False):
        steps = len(found["memory"])
        held = found["bytes"]["arguments"]
        axes.plot(
            [100 * i / max(1, steps - 1) for i in range(steps)],
            [(held + size) / 2**30 for size in found["memory"]],
            color=color,
            label=" ".join(filter(None, (found["mixer"], found["program"]))),
        )
    if limit := programs[0]["limit"]:
        axes.axhline(limit / 2**30, color=INK, linestyle=":", label="memory of a chip")
    axes.set(
        xlabel="part of the program, percent",
        ylabel="alive on one chip, GiB",
        title=f"{result['model']} for {result['target']}: arrays alive, from the program's text",
        ylim=(0, None),
    )
    axes.legend(frameon=False)
    save_figure(figure, path)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"
