# SPDX-License-Identifier: Apache-2.0
"""Programs compiled for machines that are not here: what fits, what is exchanged, what it takes.

`targets` knows the machines, `steps` compiles what `train` would run, `program` reads what the
compiler says, `report` makes tables and a picture of it. `gpu_kernels` compiles single kernels for
an H100 and counts, by `machine_code` and `sass`, what their inner loops issue.
"""
