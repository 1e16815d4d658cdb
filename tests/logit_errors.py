# SPDX-License-Identifier: Apache-2.0
"""Measures how far the logits of every model are from those of its references (see goldens/).

    python tests/logit_errors.py
    python tests/logit_errors.py "mambaout*/*" deit/deit_tiny_patch16_224

A row of experiments/results/logit_errors.json is a golden: the largest difference of a logit, in
standard deviations of the reference's logits, and what it was measured with. `mambaout report`
shows the largest of a model. Arguments are names or patterns of goldens; the rows of others stay.
Models run operation by operation, as in `models/test_goldens.py`. The file is written after each,
so that a run that is stopped loses nothing: name the goldens that are left. A golden that fails
keeps no row, and the exit code is 1.
"""

import datetime
import fnmatch
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
from goldens.fill import input_of
from support.goldens import MODELS, load, logit_error, model_of

from mambaout_jax.benchmarks.timing import environment
from mambaout_jax.models import create_model
from mambaout_jax.runtime.files import read_json, write_json
from mambaout_jax.weights.convert import from_torch

FILE = Path(__file__).parents[1] / "experiments" / "results" / "logit_errors.json"
DOUBLE = "_f64"  # ends the name of a golden in float64


def name_of(path):
    """The name of a golden, such as "mambaout/mambaout_femto"."""
    return f"{path.parent.name}/{path.stem}"


def compared(paths):
    """The goldens whose logits are compared.

    A model has one in float64 where float32 leaves its logits undecided: then that one alone.
    """
    undecided = {
        path.with_stem(path.stem.removesuffix(DOUBLE)) for path in paths if is_double(path)
    }
    return [path for path in paths if path not in undecided]


def is_double(path):
    return path.stem.endswith(DOUBLE)


def measure(path):
    """The row of a golden."""
    arrays, meta, state_dict = load(path)
    model = create_model(model_of(path))
    variables = from_torch(model_of(path), state_dict)
    images = input_of(tuple(meta["input_shape"]), meta["seed"]).transpose(0, 2, 3, 1)
    with jax.enable_x64(is_double(path)):
        if is_double(path):
            variables, images = jax.tree.map(np.float64, (variables, images))
        logits = np.asarray(model.apply(variables, images))
    where = environment()
    return {
        "golden": name_of(path),
        "model": model_of(path),
        "error": logit_error(logits, arrays["output"]),
        "dtype": str(logits.dtype),
        "date": datetime.date.today().isoformat(),
        **{key: where[key] for key in ("device", "platform", "machine", "cpu_count")},
        **{key: where[key] for key in ("python", "jax", "jaxlib")},
    }


def main(patterns):
    paths = compared(MODELS)
    chosen = [
        path for path in paths if any(fnmatch.fnmatch(name_of(path), one) for one in patterns)
    ]
    if not chosen:
        sys.exit(f"no golden matches {patterns}; they are called {', '.join(map(name_of, paths))}")
    rows = {row["golden"]: row for row in read_json(FILE)["rows"]} if FILE.exists() else {}
    failed = 0
    for path in chosen:
        name = name_of(path)
        rows.pop(name, None)
        try:
            rows[name] = measure(path)
            print(f"{name}: {rows[name]['error']:.2g} in {rows[name]['dtype']}", flush=True)
        except Exception:  # the others are still worth their time
            print(f"{name} failed:", traceback.format_exc(), file=sys.stderr, flush=True)
            failed += 1
        write_json(FILE, {"rows": [rows[name_of(each)] for each in paths if name_of(each) in rows]})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["*"]))
