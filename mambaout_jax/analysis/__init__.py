# SPDX-License-Identifier: Apache-2.0
"""A model's parameters and multiply-accumulates (`cost`), and pictures: curves of runs, grids of
images and confusion matrices (`figures`), and the blocks that are compared (`diagram`).
"""
