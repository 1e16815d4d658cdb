# SPDX-License-Identifier: Apache-2.0
"""Weights of other frameworks: where they are, how they are named, how they are read."""
