# SPDX-License-Identifier: Apache-2.0
"""Preprocessing and the config say the same of every setting, there and back."""

import dataclasses

from mambaout_jax.config import default_config
from mambaout_jax.preprocessing import Preprocessing

GREY = Preprocessing(40, 0.9, "squash", "bilinear", (0.5,), (0.25,), ("a", "b"))


def test_it_passes_through_a_config_unchanged():
    data = default_config().data
    GREY.write_to(data)
    assert data.channels == 1
    assert Preprocessing.of(data, ("a", "b")) == GREY


def test_every_field_is_a_setting():
    data = default_config().data
    before = dict(data)
    GREY.write_to(data)
    changed = {name for name in before if before[name] != data[name]}
    fields = {field.name for field in dataclasses.fields(GREY)} - {"class_names"}
    assert changed == fields | {"channels"}
