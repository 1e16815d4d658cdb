# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, one file per question: `conv` (depthwise convolution), `scan` (SSM, convolution and
attention), `throughput` (whole models), `input` (the loader). In each, contenders take turns in one
process; the result is raw numbers with a description of the machine, ready for JSON. `timing` holds
the clock that they share. `lineup` says who takes part in `throughput`; `jax_models`,
`torch_models` and `official_models` make them.
"""
