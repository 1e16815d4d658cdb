# SPDX-License-Identifier: Apache-2.0
"""Paths as users write them: the home directory, and addresses that are no paths."""

from pathlib import Path

import pytest

from mambaout_jax.paths import local_path


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("runs/a", "runs/a"), ("/runs/a", "/runs/a"), ("~", "/home/me"),
        ("~/runs/~", "/home/me/runs/~"),
        (Path("~/runs"), "/home/me/runs"), ("runs/~me", "runs/~me"), ("C:/runs", "C:/runs"),
        ("a:b/c", "a:b/c"), ("runs/gs://a", "runs/gs:/a"),
    ],
)  # fmt: skip
def test_a_path_is_where_it_says(written, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path(written) == Path(meant)


@pytest.mark.parametrize(
    "address", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", "abfss://a@b.net/c"]
)
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_refused(address, kind):
    with pytest.raises(ValueError, match=r"is an address, and files .* mount it and") as error:
        local_path(kind(address))
    assert str(error.value).startswith(address.replace(":///", "://"))


def test_an_unknown_home_directory_is_refused():
    with pytest.raises(ValueError, match=r"^~nobody-here/run: no home .* known for ~nobody-here;"):
        local_path("~nobody-here/run")
