# SPDX-License-Identifier: Apache-2.0
"""What a batch means: loss, prediction and metric sums, one file per task."""
