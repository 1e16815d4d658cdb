# SPDX-License-Identifier: Apache-2.0
"""Does the task need an SSM? The paper's hypotheses on tasks that fit on a laptop.

    python experiments/ablations/grid.py --preset small --out runs/grid
    python experiments/ablations/grid.py --preset tiny --out runs/grid_tiny
    python experiments/ablations/grid.py --preset full --out runs/grid_full --jobs 2
    python experiments/ablations/grid.py --preset full --tasks cue --mixers conv "conv deep" \
        "conv+ssm bidirectional" --seeds 3 --out runs/cue

Writes <out>.json (all numbers) and <out>.md (tables) after every cell, and at the end <out>.png,
<out>_distance.png and <out>_depth.png (figures). Started again with the same settings, it goes on
with the next cell. README.md in this folder tells the protocol.

Hardware: two CPU cores; "tiny" takes a minute and only shows that everything runs.
Result: experiments/results/ablation_small.md, in 13 minutes. "full", an estimated 12 hours, has not
been run to its end: experiments/results/ablation_full.json has what is done so far. Copied to
<out>.json, a run goes on from it.
"""

import argparse
import os
from pathlib import Path

import jax

from mambaout_jax.ablation.grid import choose_preset, run_grid
from mambaout_jax.ablation.plots import draw_all
from mambaout_jax.ablation.presets import PRESETS
from mambaout_jax.ablation.report import as_markdown
from mambaout_jax.cli.errors import positive


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="small")
    add("--tasks", nargs="+", metavar="TASK", help="tasks or single forms, such as cue or cue_long")
    add("--mixers", nargs="+", metavar="MIXER", help='such as conv "conv+ssm causal"')
    add("--seeds", type=positive, metavar="COUNT", help="how many")
    add("--out", type=Path, required=True, help="path without suffix")
    add(
        "--jobs",
        type=positive,
        help="cells at once, each on one CPU core (as many as there are cores; 1 on a GPU or TPU)",
    )
    arguments = parser.parse_args()
    out = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        preset = choose_preset(arguments.preset, arguments.tasks, arguments.mixers, arguments.seeds)
        path = out.with_name(f"{out.name}.json")
        on_cpu = jax.default_backend() == "cpu"
        jobs = arguments.jobs or (os.cpu_count() if on_cpu else 1) or 1
        for result in run_grid(arguments.preset, preset, path, jobs=jobs):
            out.with_name(f"{out.name}.md").write_text(as_markdown(result))
        draw_all(result, out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
