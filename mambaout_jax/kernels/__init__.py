# SPDX-License-Identifier: Apache-2.0
"""Array functions with more than one implementation: depthwise convolution, selective scan.

They know nothing of flax. Each is one public function with an `implementation=` argument, a
portable reference among the choices, and `"auto"`, which follows measurements per platform.
"""
