# SPDX-License-Identifier: Apache-2.0
"""Small tasks, each in a short and a long form of one generator (paper, Section 3).

    fully visible     cue, sweep, legend     a fact is carried across a map
                      digits, scenes         what is asked lies near its question
    autoregressive    flip_flop              a symbol is carried along a sequence
                      copying, induction, recall, sequential_digits

A fully visible task shows all tokens at once, as a map. An autoregressive task asks for the next
token of a sequence, so that a mixer which looks ahead would read the answer. From the short form to
the long one nothing changes but how many tokens there are.

The digits are scikit-learn's scans, the rest is generated from a seed. Nothing is downloaded.

Not here: whether two digits far apart match. No mixer learned it in 400 updates, attention
included, so that it told nothing.
"""

from collections.abc import Callable

from mambaout_jax.ablation.digits import digits, scenes, sequential_digits
from mambaout_jax.ablation.examples import TokenTask
from mambaout_jax.ablation.maps import cue, legend, sweep
from mambaout_jax.ablation.sequences import copying, flip_flop, induction, recall

TOKEN_TASKS: dict[str, Callable[..., TokenTask]] = {
    "cue": cue,
    "sweep": sweep,
    "legend": legend,
    "digits": digits,
    "scenes": scenes,
    "flip_flop": flip_flop,
    "copying": copying,
    "induction": induction,
    "recall": recall,
    "sequential_digits": sequential_digits,
}
