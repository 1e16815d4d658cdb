# SPDX-License-Identifier: Apache-2.0
"""The paper's hypothesis as an experiment: length and visibility of a task vary, one at a time, and
blocks that differ in the token mixer alone are trained on it.

`tasks` makes the data, `model` is what is trained, `trainer` trains one, `grid` all of them, and
`report` shows what came out.

The same question to anybody's data: `compare` trains a config with several mixers, `gates` makes
their costs equal, `findings` says what came out, and `statistics` what a few seeds can show.
"""
