# SPDX-License-Identifier: Apache-2.0
"""Token mixers that families share, or that fill a file of their own.

conv        a causal convolution along a sequence
attention   softmax attention: full, causal, in windows of a map
aggregated_attention, guided_attention
            attention to tokens nearby and a coarse map at once, and to groups of tokens
ssm         the selective SSM along a sequence, and over a map along a route
routes      the orders in which a scan walks over a map
"""
