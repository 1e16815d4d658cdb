# SPDX-License-Identifier: Apache-2.0
"""What is measured of predictions: pure functions of arrays."""
