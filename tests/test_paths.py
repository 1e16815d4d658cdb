# SPDX-License-Identifier: Apache-2.0
"""Paths as users write them: the home directory, and addresses that are no paths."""

from pathlib import Path

import pytest

from mambaout_jax.paths import in_bucket, local_path, workdir_path


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


BUCKETS = ["gs://bucket/run", "s3://bucket/run"]
OTHERS = ["file:///tmp/run", "abfss://a@b.net/c", "http://host/run", "gcs://bucket/run"]


@pytest.mark.parametrize("address", BUCKETS + OTHERS)
@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_refused(address, kind):
    allowed = "only the working directory of a run may" if address in BUCKETS else "files are read"
    with pytest.raises(ValueError, match=f"is an address, and {allowed} .* mount it and") as error:
        local_path(kind(address))
    assert str(error.value).startswith(address.replace(":///", "://"))
    assert in_bucket(kind(address)) == (address in BUCKETS)


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("gs://bucket/run", "gs://bucket/run"), ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("GS://Bucket_1/Run", "gs://Bucket_1/Run"), ("gs://bucket//a///b", "gs://bucket/a/b"),
        ("runs/a", Path("runs/a")), ("~/a", Path("/home/me/a")), ("gs:a", Path("gs:a")),
    ],
)  # fmt: skip
def test_a_run_may_be_kept_in_a_bucket(written, meant, kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert workdir_path(kind(written)) == meant


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        *((address, "is no address of a working directory: those .*, gs://") for address in OTHERS),
        ("gs://bucket", r"^gs://bucket is a whole bucket; .* such as gs://bucket/runs/first$"),
        ("s3://bucket/", r"^s3://bucket is a whole bucket; .* such as s3://bucket/runs/first$"),
        ("~nobody-here/run", "no home directory is known"),
    ],
)
def test_no_other_address_may_hold_a_run(address, said, kind):
    with pytest.raises(ValueError, match=said):
        workdir_path(kind(address))


def test_an_unknown_home_directory_is_refused():
    with pytest.raises(ValueError, match=r"^~nobody-here/run: no home .* known for ~nobody-here;"):
        local_path("~nobody-here/run")
