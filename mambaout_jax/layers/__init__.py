# SPDX-License-Identifier: Apache-2.0
"""Small layers that model families share, with PyTorch's numerics."""
