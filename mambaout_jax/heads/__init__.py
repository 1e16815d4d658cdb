# SPDX-License-Identifier: Apache-2.0
"""Heads: from the features of a backbone to the outputs of a task."""
