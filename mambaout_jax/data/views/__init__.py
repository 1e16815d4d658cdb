# SPDX-License-Identifier: Apache-2.0
"""What a model sees of an example: crops, RandAugment, OpenCV's faster crops."""
