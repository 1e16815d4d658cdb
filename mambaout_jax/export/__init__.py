# SPDX-License-Identifier: Apache-2.0
"""Models with their weights as one file that any JAX runs, without this package."""
