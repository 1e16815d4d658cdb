# SPDX-License-Identifier: Apache-2.0
"""A run's batches: where they begin, and the count of what could not be read."""

import numpy as np
import pytest
from PIL import Image
from support.tiny_run import get_config

from mambaout_jax.data.sets.sources import UnreadableImageError
from mambaout_jax.data.views.crops import TrainingView
from mambaout_jax.train.reader import Reader


class Faulty:
    """Twenty flat images, half of which cannot be read."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index % 2:
            raise UnreadableImageError(f"cannot read {index}.jpg: broken")
        return {"image": Image.new("L", (4, 4), index), "label": index % 4 // 2}


def reader(start=0, replaced=0, limit=1.0):
    config = get_config()
    config.batch_size, config.data.max_corrupt_fraction = 10, limit
    return Reader(config, Faulty(), TrainingView(config), start, replaced)


def test_reader_counts_what_was_replaced_and_begins_where_it_is_told():
    with reader() as all_batches:
        batches = [all_batches.next() for _ in range(4)]
        all_batches.check(4)
    assert batches[0].keys() == {"image", "label"}
    assert all_batches.replaced == 20  # two epochs
    assert all_batches.seconds > 0
    with reader(start=2, replaced=10) as rest:
        np.testing.assert_array_equal(rest.next()["image"], batches[2]["image"])
        rest.next()
        rest.check(4)
    assert rest.replaced == 20


def test_reader_gives_batches_of_one_group():
    class Numbers(Faulty):
        def __getitem__(self, index):
            return {"number": index}

    config = get_config()
    config.batch_size = 5
    groups = [index < 10 for index in range(20)]
    with Reader(config, Numbers(), lambda example, _: dict(example), 0, 0, groups) as batches:
        found = [batches.next()["number"] < 10 for _ in range(4)]
    assert sorted(batch.mean() for batch in found) == [0, 0, 1, 1]


def test_reader_stops_at_more_than_the_limit_but_not_below_ten():
    with reader(limit=0.0) as batches:
        for _ in range(2):
            batches.next()
        batches.check(2)  # an epoch, of which ten were replaced
        for _ in range(2):
            batches.next()
        with pytest.raises(RuntimeError, match=r"^20 of 40 training .* raise the limit"):
            batches.check(4)
