# SPDX-License-Identifier: Apache-2.0
"""Training: mesh, state, optimizer, step, loop, evaluation, checkpoints, metrics, progress."""
