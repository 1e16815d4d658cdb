# SPDX-License-Identifier: Apache-2.0
"""Evaluation of runs and weights: validation sets, ImageNet's test sets, single images."""
