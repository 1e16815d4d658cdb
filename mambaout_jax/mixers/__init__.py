# SPDX-License-Identifier: Apache-2.0
"""Token mixers that families share: linen modules that map (B, L, C) to the same shape.

They see a sequence and know nothing of images; a family decides in which order its tokens stand.
"""
