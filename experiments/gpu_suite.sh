#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What this project wants to measure on a GPU, most important first: ten minutes are enough for the
# first measurements, and finished measurements are kept if time runs out.
#
#   bash experiments/gpu_suite.sh OUT            on the GPU
#   bash experiments/gpu_suite.sh OUT cpu --quick    to see that it runs
#
# Needs Python with `pip install -e .[cuda13]`; torch and timm for the peers (without them their part
# fails and the rest is measured); and for the scan's peer mamba_ssm, built with its CUDA kernels.
# Raw numbers: OUT/*.json. The exit code is the number of parts that failed.
set -uo pipefail
out=${1:?usage: bash experiments/gpu_suite.sh OUT [gpu|cpu] [--quick]}
device=${2:-gpu}
quick=${3:-}
if [ "$device" = cpu ]; then dtype=float32; else dtype=bfloat16; fi
mkdir -p "$out"
failed=0
# JAX and PyTorch share one card.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

part() { # seconds, name, arguments of mambaout bench
  local limit=${quick:+600} name=$2
  limit=${limit:-$1}
  shift 2
  echo "== $name"
  if ! timeout "$limit" mambaout bench "$@" --device "$device" --dtype "$dtype" $quick \
    --out "$out/$name.json"; then
    echo "== $name FAILED"
    failed=$((failed + 1))
  fi
}

# First measurements: XLA's and cuDNN's depthwise convolution at the four stages, the scans with
# the CUDA peer, the plain training step, and whether the kernels are correct.
part 120 conv conv --rounds 5
if [ -n "$quick" ]; then
  part 600 scan scan --lengths 49 --mixers conv chunked
  part 600 throughput throughput
else
  part 180 scan scan --widths 192 --lengths 49 196 784 3136 --rounds 3 --budget-seconds 5
  part 180 step throughput --models mambaout_tiny --batch-size 128 --no-compiled
  echo "== tests"
  JAX_PLATFORMS=cuda timeout 180 python -m pytest -q -n 0 -m gpu tests || failed=$((failed + 1))
  # The full comparison: torch.compile and the yardsticks, the sweep that tells what "auto" should
  # choose for the depthwise convolution, then all widths and models.
  part 600 throughput throughput --models mambaout_tiny convnext_tiny vit_small_patch16_224 \
    --batch-size 128
  part 600 conv_sweep conv --shapes sweep --rounds 3
  part 1200 scan_all scan --rounds 3
  part 1200 throughput_all throughput --batch-size 128
fi
echo "$failed parts failed; numbers are in $out"
exit "$failed"
