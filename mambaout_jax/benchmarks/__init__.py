# SPDX-License-Identifier: Apache-2.0
"""One file per question of speed. Each compares contenders in one run and returns raw numbers
together with the machine they are from, ready for JSON.
"""
