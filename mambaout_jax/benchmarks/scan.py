# SPDX-License-Identifier: Apache-2.0
"""What does an SSM cost against a convolution or attention, as the sequence grows?

Token mixers of equal width D, described in `scan_mixers`, map the same tokens. The batch shrinks as
the sequence grows, so that calls have about as many tokens at all lengths. "pallas" takes part on
GPUs and TPUs, for which it is written, and elsewhere if it is named.

In addition, the three portable scans run alone, without projections, at five fixed shapes, `BARS`:
the chunked scan is compared there with the other two and, on CPUs, with what the machine can do
(`scan_bounds`). A peer takes part where its packages are installed: `scan_block_peer` on CPUs,
`scan_peer` on GPUs.
"""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from mambaout_jax.benchmarks.scan_block_peer import block_peer
from mambaout_jax.benchmarks.scan_bounds import describe_bound, describe_rates, measure_rates
from mambaout_jax.benchmarks.scan_mixers import (
    ATTENTIONS,
    MIXERS,
    PASSES,
    SCANS,
    Settings,
    make_parameters,
    measure_mixers,
    measure_scans,
)
from mambaout_jax.benchmarks.scan_peer import cuda_peer, print_peer
from mambaout_jax.benchmarks.scan_plot import draw
from mambaout_jax.benchmarks.timing import (
    Limits,
    environment,
    find_device,
    free_memory,
    ignore,
    save_json,
)
from mambaout_jax.mixers.ssm import STATE_SIZE

WIDTHS = (96, 192, 384, 576)  # the four stages of MambaOut-Tiny and -Small
LENGTHS = (49, 196, 784, 3136, 12544, 65536)  # maps with sides of 7, 14, 28, 56, 112 and 256 tokens
BARS = (  # B, L, D, N, G
    (2, 3136, 96, 16, 1),
    (8, 196, 384, 16, 1),
    (16, 256, 16, 16, 1),  # as narrow as small studies have them
    (2, 3136, 4 * 192, 1, 4),  # the first two stages of vmamba_v9_tiny, all directions at once
    (2, 784, 4 * 384, 1, 4),
)

# Arguments of `run` for a trial.
QUICK = {
    "widths": WIDTHS[:1],
    "lengths": LENGTHS[:2],
    "tokens_per_call": 3136,
    "rounds": 2,
    "bars": BARS[2:3],
}

_TOKENS_PER_CALL = {"cpu": 2 * 3136, "accelerator": 64 * 3136}


def run(
    *,
    widths: Sequence[int] = WIDTHS,
    lengths: Sequence[int] = LENGTHS,
    mixers: Sequence[str] | None = None,
    state_size: int = STATE_SIZE,
    dtype: str = "float32",
    tokens_per_call: int | None = None,
    rounds: int = 5,
    budget_seconds: float = 20.0,
    memory_limit: int | None = None,
    bars: Sequence[tuple[int, ...]] = BARS,
    device: str | None = None,
    keep: Callable[[dict[str, Any]], object] = ignore,
) -> dict[str, Any]:
    """Measures each mixer at each width and length, forward alone and with all gradients.

    Progress is printed to the standard error.

    Args:
        widths: D, channels of the tokens.
        lengths: L, tokens of a sequence; "conv" needs squares.
        mixers: names from `scan_mixers.MIXERS`; None: all that the platform has.
        state_size: N, states of the SSMs per channel.
        dtype: precision of the tokens and the computation; parameters and states are at least
            float32.
        tokens_per_call: the batch is this number over L, at least 1; None: 6,272 on CPUs, otherwise
            200,704.
        rounds: how many turns each mixer has; the numbers reported are medians over them.
        budget_seconds: time that the calls of one mixer at one length and pass may take together.
        memory_limit: bytes that a call may take; None: what is free, see `timing.free_memory`.
        bars: shapes (B, L, D, N, G) for the scans alone.
        device: "cpu", "gpu" or "tpu"; None: JAX's default.
        keep: called after every width and length with the result so far.

    Returns:
        A dict ready for JSON: `environment`; `settings`; `rows`, one per mixer, width, length and
        pass, with the keys that `timing.race` describes, tokens per second, and the time over that
        of the convolution (median over rounds); `crossovers`, see `find_crossovers`; `bars`, the
        rows of the scans alone, see `scan_mixers.measure_scans`; on CPUs, with bars, `rates`, see
        `scan_bounds.measure_rates`; `peer`, see `scan_peer.collect`, None on TPUs.

    Raises:
        ValueError: a mixer is unknown, the device is not there, a list is empty, a number is below
            1, or the heads of attention do not divide a width.
    """
    jax_device = find_device(device)
    limits = Limits(
        free_memory(jax_device) if memory_limit is None else memory_limit, budget_seconds
    )
    mixers, tokens = _fill_in(mixers, tokens_per_call, jax_device.platform)
    settings = Settings(mixers, state_size, dtype, tokens, rounds, limits)
    _check(settings, widths, lengths)
    result = _begin(jax_device, settings)
    with jax.default_device(jax_device):
        _measure(result, widths, sorted(lengths), bars, settings, keep)
        result["peer"] = _compare_with_peer(jax_device, rounds)
    return result


def find_crossovers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The L from which attention is slower than a scan, for each pair of them, width and pass.

    Args:
        rows: rows of `run`'s result; only lengths at which both mixers were measured count.

    Returns:
        Dicts with `width`, `pass`, `attention`, `scan`, `relation` and `length`. The relation is
        "=" if the crossover is between two lengths (log of the ratio of times, interpolated
        linearly in log L), "<" if attention is slower even at the shortest length, and ">" if it is
        not slower at the longest.
    """
    times = {}
    for row in rows:
        if row["status"] == "measured":
            curves = times.setdefault((row["width"], row["pass"]), {})
            curves.setdefault(row["mixer"], {})[row["length"]] = row["median_ms"]
    found = []
    for (width, pass_name), curves in times.items():
        for attention in (name for name in ATTENTIONS if name in curves):
            for scan in (name for name in SCANS if name in curves):
                if curves[scan].keys() & curves[attention].keys():
                    relation, length = _crossover(curves[scan], curves[attention])
                    pair = {"attention": attention, "scan": scan}
                    where = {"relation": relation, "length": length}
                    found.append({"width": width, "pass": pass_name} | pair | where)
    return found


def save(result: dict[str, Any], path: Path) -> list[Path]:
    """Writes the result of `run` as FILE.json, its rows as FILE.csv, and FILE.png.

    Returns:
        The three paths.
    """
    table = path.with_suffix(".csv")
    figure = path.with_suffix(".png")
    save_json(result, path)
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, result["rows"][0])
        writer.writeheader()
        writer.writerows(result["rows"])
    draw(result, figure)
    return [path, table, figure]


def print_table(result: dict[str, Any]) -> None:
    """Prints the result of `run`: medians over rounds, and why anything was not measured."""
    device = result["environment"]
    settings = result["settings"]
    print(f"{device['device']} ({device['platform']}), jax {device['jax']}, {settings['dtype']}")
    for width in dict.fromkeys(row["width"] for row in result["rows"]):
        title = f"\nD={width} N={settings['state_size']}"
        rows = {
            name: [row for row in result["rows"] if (row["width"], row["pass"]) == (width, name)]
            for name in PASSES
        }
        for name in PASSES:
            print(f"{title}, {name}: ms per call (over conv)")
            _print_grid(rows[name], lambda row: _times_cell(row, "over_conv"))
        print(f"{title}, {PASSES[-1]}: temporary MiB")
        _print_grid(rows[PASSES[-1]], _memory_cell)
    for row in result["rows"]:
        if row["note"]:
            print("{mixer} D={width} L={length} {pass}: {status}, {note}".format(**row))
    print("\nLength from which attention is slower (in the paper L > 6D is long)")
    for found in result["crossovers"]:
        pair = "D={width} {pass}: {attention} than {scan}".format(**found)
        length = "L {relation} {length:,.0f}".format(**found)
        print(f"{pair:<58}{length:<14}6D = {6 * found['width']:,}")
    _print_bars(result["bars"], result["rates"])
    if result["peer"] is not None:
        print_peer(result["peer"])


def _fill_in(
    mixers: Sequence[str] | None, tokens_per_call: int | None, platform: str
) -> tuple[tuple[str, ...], int]:
    """The mixers and tokens per call, with `run`'s defaults instead of None."""
    on_cpu = platform == "cpu"
    if mixers is None:
        mixers = [name for name in MIXERS if name != "pallas" or not on_cpu]
    if tokens_per_call is None:
        tokens_per_call = _TOKENS_PER_CALL["cpu" if on_cpu else "accelerator"]
    return tuple(mixers), tokens_per_call


def _begin(jax_device: Any, settings: Settings) -> dict[str, Any]:
    """The result of `run` before anything has been measured."""
    return {
        "environment": environment(jax_device),
        "settings": settings._asdict() | {"limits": settings.limits._asdict()},
        "rows": [],
        "crossovers": [],
        "rates": None,
        "bars": [],
        "peer": None,
    }


def _measure(
    result: dict[str, Any],
    widths: Sequence[int],
    lengths: Sequence[int],
    bars: Sequence[tuple[int, ...]],
    settings: Settings,
    keep: Callable[[dict[str, Any]], object],
) -> None:
    """Adds the rows of each width and length, then those of the scans alone, to the result."""
    parameters = {width: make_parameters(width, settings) for width in widths}
    for width in widths:
        previous = {}
        for length in lengths:
            result["rows"] += measure_mixers(parameters[width], width, length, settings, previous)
            result["crossovers"] = find_crossovers(result["rows"])
            keep(result)
    wanted = bars and result["environment"]["platform"] == "cpu"
    rates = measure_rates(settings.rounds, settings.limits.memory) if wanted else None
    result["rates"] = rates and rates._asdict()
    for bar in bars:
        result["bars"] += measure_scans(bar, settings, rates)
        keep(result)


def _compare_with_peer(jax_device: Any, rounds: int) -> dict[str, Any] | None:
    """What `scan_peer.collect` returns; None on platforms without a peer."""
    if jax_device.platform == "cpu":
        return block_peer(rounds)
    return cuda_peer(jax_device, rounds) if jax_device.platform == "gpu" else None


def _check(settings: Settings, widths: Sequence[int], lengths: Sequence[int]) -> None:
    if unknown := [name for name in settings.mixers if name not in MIXERS]:
        raise ValueError(f"mixers={unknown} are not known; allowed are {', '.join(MIXERS)}")
    numbers = {
        "mixers": len(settings.mixers),
        "widths": min(widths, default=0),
        "lengths": min(lengths, default=0),
        "state_size": settings.state_size,
        "tokens_per_call": settings.tokens_per_call,
        "rounds": settings.rounds,
    }
    for name, smallest in numbers.items():
        if smallest < 1:
            raise ValueError(f"{name}: none, or {smallest}; give one or more, each at least 1")


def _crossover(scan: dict[int, float], attention: dict[int, float]) -> tuple[str, float]:
    """Relation and length as in `find_crossovers`, from times by length."""
    lengths = sorted(scan.keys() & attention.keys())
    excess = [math.log(attention[length] / scan[length]) for length in lengths]
    last = max((index for index, value in enumerate(excess) if value <= 0), default=None)
    if last is None:
        return "<", lengths[0]
    if last == len(lengths) - 1:
        return ">", lengths[-1]
    low = math.log(lengths[last])
    high = math.log(lengths[last + 1])
    share = excess[last] / (excess[last] - excess[last + 1])
    return "=", math.exp(low + share * (high - low))


def _print_grid(rows: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> None:
    """Prints a line per length and a column per mixer."""
    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    print(f"{'L':>7}{'batch':>7}" + "".join(f"{name:>18}" for name in mixers))
    for length in dict.fromkeys(row["length"] for row in rows):
        line = {row["mixer"]: row for row in rows if row["length"] == length}
        batch = line[mixers[0]]["batch"]
        print(f"{length:>7}{batch:>7}" + "".join(f"{cell(line[name]):>18}" for name in mixers))


def _times_cell(row: dict[str, Any], ratio: str) -> str:
    if row["median_ms"] is None:
        return row["status"]
    return f"{row['median_ms']:.2f}" + ("" if row[ratio] is None else f" ({row[ratio]:.1f}x)")


def _memory_cell(row: dict[str, Any]) -> str:
    return row["status"] if row["temp_bytes"] is None else f"{row['temp_bytes'] / 2**20:,.2f}"


def _print_bars(bars: list[dict[str, Any]], rates: dict[str, float] | None) -> None:
    print("\nThe scan alone, softplus and skip inside: ms per call (over chunked), temporary MiB")
    print("(over chunked), and the bound of the chunked scan (share of it that is reached)")
    print(describe_rates(rates))
    for row in bars:
        shape = "B={batch} L={length} D={width} N={state_size} G={groups}".format(**row)
        ratio = row["memory_over_chunked"]
        memory = _memory_cell(row) + ("" if ratio is None else f" ({ratio:.1f}x)")
        milliseconds = _times_cell(row, "time_over_chunked")
        line = f"{shape:<30}{row['pass']:<18}{row['mixer']:<13}{milliseconds:>18}{memory:>18}"
        print(f"{line}  {describe_bound(row)}".rstrip())
        if row["note"]:
            print(f"  {row['status']}, {row['note']}")
