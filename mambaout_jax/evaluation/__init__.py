# SPDX-License-Identifier: Apache-2.0
"""The loop over a set; runs, weights and ImageNet's test sets through it; single images."""
