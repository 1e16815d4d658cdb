# SPDX-License-Identifier: Apache-2.0
"""ImageNet as ArrayRecord, the form that training reads best: what the original archives hold
(`archives`), single shards (`shards`), and the whole preparation, resumable and verified
(`imagenet`).
"""
