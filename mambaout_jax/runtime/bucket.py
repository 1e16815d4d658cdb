# SPDX-License-Identifier: Apache-2.0
"""Objects below an address such as gs://bucket/run, read and written by TensorStore's drivers.

Google Cloud Storage (gs://) takes its credentials from GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth
application-default login` or the machine; Amazon S3 (s3://) from the AWS_… variables, ~/.aws or the
machine. AWS_ENDPOINT_URL names another server that speaks S3's protocol; it has to know conditional
writes (If-Match and If-None-Match), on which the lock of a run stands.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

import tensorstore as ts

# Four attempts over about five seconds; whoever can wait longer tries again.
_RETRIES = {"max_retries": 4, "initial_delay": "500ms", "max_delay": "2s"}
_CONTEXT = {"gcs_request_retries": _RETRIES, "s3_request_retries": _RETRIES}
_FIRST_ANSWER_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 100_000
_CREDENTIALS = {
    "gs": "`gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "`aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}


class BucketError(RuntimeError):
    """A bucket cannot be read or written; says which, why, and what to do."""


class Object(NamedTuple):
    """What is under a name.

    Attributes:
        data: None where there is nothing.
        generation: of this state, or of there being nothing; for `Bucket.swap`.
    """

    data: bytes | None
    generation: bytes


class Bucket:
    """The objects below an address.

    Args:
        address: such as gs://bucket/run.

    Raises:
        BucketError: it cannot be reached within ten seconds. So do all methods, later; of them only
            a write tells whether there is such a bucket.
    """

    def __init__(self, address: str):
        self.address = address
        self._scheme, _, rest = address.partition("://")
        bucket, _, folder = rest.partition("/")
        spec = {"driver": "gcs", "bucket": bucket, "path": f"{folder}/"}
        if self._scheme == "s3":
            spec |= {"driver": "s3", **_s3_settings()}
        with _without_native_log():
            self._store = self._wait("opened", _FIRST_ANSWER_SECONDS, lambda: _open(spec))
            self._wait("read", _FIRST_ANSWER_SECONDS, lambda: self._store.read("config.json"))

    def read(self, name: str) -> Object:
        """The object of a name."""
        # How long it is turns out at its end: only a connection that stands still is given up.
        found = self._wait("read", 30 * _ANSWER_SECONDS, lambda: self._store.read(name))
        return Object(found.value if found.state == "value" else None, found.stamp.generation)

    def write(self, name: str, data: bytes) -> None:
        """Puts `data` under a name, whatever is there. At most 5 GB."""
        seconds = _ANSWER_SECONDS + len(data) / _SLOWEST_BYTES_PER_SECOND
        self._wait("written", seconds, lambda: self._store.write(name, data))

    def swap(self, name: str, data: bytes | None, generation: bytes) -> bytes | None:
        """Replaces an object, or deletes it, if it is still what `read` has found.

        Returns:
            Its new generation; None where it was another, and nothing was done.
        """
        stamp = self._wait(
            "written", _ANSWER_SECONDS, lambda: self._store.write(name, data, if_equal=generation)
        )
        return stamp.generation or None

    def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""
        self._wait("written", _ANSWER_SECONDS, lambda: self._store.write(name, None))

    def names(self, witness: str) -> list[str]:
        """The names of all objects, sorted.

        Args:
            witness: one that is known to be there. Google's driver lists nothing, without an error,
                where listing is not permitted.

        Raises:
            BucketError: also where `witness` is not among them.
        """
        keys = self._wait("listed", 10 * _ANSWER_SECONDS, lambda: self._store.list())
        names = sorted(key.decode(errors="surrogateescape") for key in keys)
        if witness not in names:
            raise BucketError(
                f"{self.address} cannot be listed: {witness} is there, and not among the names; "
                "the permission to list is needed (storage.objects.list, or s3:ListBucket)"
            )
        return names

    def _wait(self, what: str, seconds: float, start):
        """The result of a request; what TensorStore says of a failure becomes a sentence."""
        try:
            return start().result(timeout=seconds)
        except TimeoutError:
            reason, advice = f"no answer within {seconds:.0f} s", "check the network"
        except (ValueError, OSError, RuntimeError) as error:
            reason, advice = self._explain(str(error))
        raise BucketError(
            f"{self.address} cannot be {what}: {reason}; {advice}, or use a local folder and copy "
            "the files afterwards"
        )

    def _explain(self, text: str) -> tuple[str, str]:
        """Why a request has failed, and what to do, from TensorStore's message."""
        if text.startswith("NOT_FOUND") or "resolve aws_region" in text:
            return "there is no such bucket", "check its name, or make it"
        message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
        reason = message[1] if message else re.sub(r" \[\w+='.*", "", text.partition("\n")[0])
        reason = re.sub(r"^[A-Z_]+: (All \d+ retry attempts failed: )?", "", reason)[:300]
        if reason == "Unknown":
            code = re.search(r"http_response_code='(\d+)'", text)
            reason = f"HTTP status {code[1]}" if code else "no reason is given"
        if text.startswith(("PERMISSION_DENIED", "UNAUTHENTICATED")):
            advice = f"check the credentials: {_CREDENTIALS[self._scheme]}"
            return f"permission denied ({reason})", advice
        return reason, "check the network and the address"


def _open(spec: dict) -> ts.Future:
    return ts.KvStore.open(spec, context=ts.Context(_CONTEXT))


def _s3_settings() -> dict:
    """What the driver does not read from the environment by itself."""
    settings: dict = {"use_conditional_write": True}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        settings |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
    if os.environ.get("AWS_ACCESS_KEY_ID"):  # the default looks for files first, and logs it
        settings["aws_credentials"] = {"type": "environment"}
    return settings


@contextlib.contextmanager
def _without_native_log() -> Iterator[None]:
    """Keeps off the terminal what C++ code logs of every place where no credentials are."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
