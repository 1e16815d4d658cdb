# SPDX-License-Identifier: Apache-2.0
"""Images from disk to batches. Nothing here imports JAX.

`sets` holds one file per data set: random-access sequences of decoded examples
(`sets.sources.Source`). `views` turns an image into the pixels that a model sees. `loader`
shuffles, views and batches examples, whatever they are. `prepare` writes data sets in the form that
is read fastest. Pixels leave as uint8; they are normalised on the device.
"""
