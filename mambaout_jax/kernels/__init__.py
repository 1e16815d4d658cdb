# SPDX-License-Identifier: Apache-2.0
"""Array functions with more than one implementation. They know nothing of flax.

Depthwise and strided convolutions, the selective scan, matrix products, layer normalisation, the
GELU, RoIAlign and non-maximum suppression. `dispatch` chooses: by a word where the function has
`implementation=`, by the platform that the program is lowered for, and the plain form within
`plain_implementations`.
"""
