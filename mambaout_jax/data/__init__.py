# SPDX-License-Identifier: Apache-2.0
"""Images from disk to batches: sources → transforms → loader. Nothing here names JAX.

A *source* is a random-access sequence of decoded examples (`sources.Source`), `transforms` turns
one image into `image_size` x `image_size` pixels, and `loader` orders, transforms and batches.
Pixels leave as uint8; they are normalised on the device.
"""
