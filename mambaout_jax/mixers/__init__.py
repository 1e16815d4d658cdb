# SPDX-License-Identifier: Apache-2.0
"""Token mixers that families share.

conv        a causal convolution along a sequence
attention   softmax attention: full, causal, in windows of a map
ssm         the selective SSM along a sequence, and over a map along a route
routes      the orders in which a scan walks over a map
"""
