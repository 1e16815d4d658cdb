# SPDX-License-Identifier: Apache-2.0
"""Data sets as random-access sequences of decoded examples: `digits`, folders of images
(`sources`), ImageNet (`imagenet`) and its test sets (`suites`); `image_files` decodes.
"""
