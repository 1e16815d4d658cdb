# SPDX-License-Identifier: Apache-2.0
"""The checker of annotations, for the import hook: an int is a float, as in PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
