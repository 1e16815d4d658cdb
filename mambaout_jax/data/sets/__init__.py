# SPDX-License-Identifier: Apache-2.0
"""Data sets: random-access sequences of decoded examples, one file each."""
