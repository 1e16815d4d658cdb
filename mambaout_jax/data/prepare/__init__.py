# SPDX-License-Identifier: Apache-2.0
"""Writes data sets in the form that training reads best; resumable and verified."""
