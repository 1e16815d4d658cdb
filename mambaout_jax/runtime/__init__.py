# SPDX-License-Identifier: Apache-2.0
"""What programs run on: compiler options, huge pages, the device mesh, checkpoints."""
