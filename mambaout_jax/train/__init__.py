# SPDX-License-Identifier: Apache-2.0
"""Training: state, optimiser, step, loop, its batches, reports, previews and stops."""
