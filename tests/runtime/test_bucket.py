# SPDX-License-Identifier: Apache-2.0
"""Objects in a bucket, and what is said where there is no bucket."""

import os
import socket
import subprocess
import sys
import time

import pytest

from mambaout_jax.runtime import bucket as bucket_file
from mambaout_jax.runtime.bucket import Bucket, BucketError

ADDRESSES = ["gs://bucket/runs/a", "s3://bucket/runs/a"]
COPY = ", or use a local folder and copy the files afterwards"


@pytest.fixture
def impatient(monkeypatch):
    retries = {"max_retries": 1, "initial_delay": "1ms", "max_delay": "1ms"}
    context = {"gcs_request_retries": retries, "s3_request_retries": retries}
    monkeypatch.setattr(bucket_file, "_CONTEXT", context)


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_written_is_read_listed_and_deleted(address, bucket_server):
    bucket = Bucket(address)
    bucket_server.put("runs/abc", b"of another run")
    for name, data in (("config.json", b"{}"), ("a b/ü#?&%2F.txt", b"\0\xff"), ("empty", b"")):
        assert bucket.read(name).data is None
        bucket.write(name, data)
        assert bucket.read(name).data == data
        assert bucket_server.objects[f"runs/a/{name}"] == data
    assert bucket.names("empty") == ["a b/ü#?&%2F.txt", "config.json", "empty"]
    bucket.delete("empty")
    bucket.delete("empty")
    assert bucket.names("config.json") == ["a b/ü#?&%2F.txt", "config.json"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_swap_succeeds_only_where_nobody_else_has_written(address, bucket_server):
    bucket = Bucket(address)
    nothing = bucket.read("x").generation
    first = bucket.swap("x", b"1", nothing)
    assert first
    assert bucket.swap("x", b"2", nothing) is None
    second = bucket.swap("x", b"3", first)
    assert second
    assert bucket.read("x") == (b"3", second)
    for data in (b"4", None):
        assert bucket.swap("x", data, first) is None
    assert bucket.swap("x", None, second)
    assert bucket.read("x").data is None


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, r"permission denied \(.+\); check the credentials: `(gcloud|aws) .+_\w+"),
        (401, r"permission denied \(.+\); check the credentials: `(gcloud|aws) .+_\w+"),
        (404, "there is no such bucket; check its name, or make it"),
        (400, r"(as the test wants it|HTTP status 400); check the network and the address"),
        (503, r"(as the test wants it|HTTP status 503); check the network and the address"),
    ],
)
def test_a_refusal_is_one_sentence(address, status, said, bucket_server, impatient):
    bucket = Bucket(address)
    bucket_server.refuse = lambda method, name: status
    with pytest.raises(BucketError, match=rf"^{address} cannot be written: {said}{COPY}$"):
        bucket.write("x", b"")


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_list_that_is_not_permitted_is_not_an_empty_one(address, bucket_server):
    bucket = Bucket(address)
    bucket.write("config.json", b"{}")
    bucket_server.refuse = lambda method, name: None if name else 403
    with pytest.raises(BucketError, match=r"cannot be listed: .*permission") as error:
        bucket.names("config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_server_that_never_answers_is_given_up(address, monkeypatch, bucket_server):
    monkeypatch.setattr(bucket_file, "_FIRST_ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("TENSORSTORE_GCS_HTTP_URL", "AWS_ENDPOINT_URL"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(BucketError, match="cannot be read: no answer within 0 s; check the"):
            Bucket(address)


def test_what_is_no_name_of_a_bucket_is_said():
    with pytest.raises(BucketError, match=r"^gs://b#/x cannot be opened: .*Invalid GCS bucket"):
        Bucket("gs://b#/x")


def test_another_server_of_amazons_protocol_is_named_by_the_usual_variables(monkeypatch):
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    assert bucket_file._s3_settings() == {"use_conditional_write": True}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio:9000/")
    assert bucket_file._s3_settings() == {
        "use_conditional_write": True, "endpoint": "http://minio:9000", "aws_region": "us-east-1",
    }  # fmt: skip
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert bucket_file._s3_settings()["aws_region"] == "eu-west-1"


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train --config x.py --workdir", "evaluate --workdir"])
@pytest.mark.parametrize("address", ADDRESSES)
def test_without_a_network_a_command_ends_in_a_sentence_within_seconds(address, verb, tmp_path):
    nowhere = "http://127.0.0.1:9"  # where nothing listens
    environment = {
        **{name: x for name, x in os.environ.items() if not name.startswith(("AWS_", "GOOGLE_"))},
        "TENSORSTORE_GCS_HTTP_URL": nowhere, "AWS_ENDPOINT_URL": nowhere,
        "GCE_METADATA_ROOT": "127.0.0.1:9", "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path), "TMPDIR": str(tmp_path),
    }  # fmt: skip
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", "mambaout_jax", *verb.split(), address],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert time.monotonic() - began < 25  # importing JAX on a busy machine is part of it
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {address} cannot be read: ")
    assert result.stderr.endswith(f"{COPY}\n")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
