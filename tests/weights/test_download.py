# SPDX-License-Identifier: Apache-2.0
"""Downloads from a server on this machine, with the hub's own client and with ours."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from support.hub_server import COMMIT, HubServer

from mambaout_jax.weights import download
from mambaout_jax.weights.download import web_file

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server():
    with HubServer() as running:
        running.files["owner/name/model.safetensors"] = BODY
        running.files["release/model.pth"] = BODY
        yield running


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


# The hub's client reads its environment when it is imported: each test is a user's own process.
HUB = """
import json, sys, time
from mambaout_jax.weights.download import hub_file
time.sleep = lambda seconds: None  # the client waits between its tries
try:
    print(json.dumps([None, str(hub_file(*json.loads(sys.argv[1])))]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


def hub_file(home, url, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", HUB, json.dumps(arguments)],
        env={**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": url, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(result.stdout)


def read(answer):
    error, path = answer
    assert error is None, path
    with open(path, "rb") as file:
        return file.read()


def test_hub_file_is_downloaded_once_and_serves_without_the_hub(home, server):
    arguments = (home, server.url, "owner/name", "model.safetensors")
    assert read(hub_file(*arguments)) == BODY
    assert read(hub_file(*arguments)) == BODY
    assert read(hub_file(*arguments, SHA256)) == BODY
    assert sum(request.startswith("GET /owner") for request in server.requests) == 1
    server.status = 503
    assert read(hub_file(*arguments)) == BODY
    assert read(hub_file(home, "http://127.0.0.1:9", *arguments[2:])) == BODY
    assert read(hub_file(*arguments, HF_HUB_OFFLINE="1")) == BODY


def test_hub_file_of_a_revision(home, server):
    name = f"owner/name@{COMMIT}"
    assert read(hub_file(home, server.url, name, "model.safetensors")) == BODY
    assert f"GET /owner/name/resolve/{COMMIT}/model.safetensors" in server.requests
    error, message = hub_file(home, server.url, "owner/name@v9", "model.safetensors")
    assert error == "FileNotFoundError"
    assert f"{server.url} has no repository owner/name@v9" in message


def test_hub_file_that_is_not_there_is_named(home, server):
    error, message = hub_file(home, server.url, "owner/other", "model.safetensors")
    assert error == "FileNotFoundError"
    assert f"{server.url} has no repository owner/other; check the spelling" in message
    error, message = hub_file(home, server.url, "owner/name", "config.json")
    assert error == "FileNotFoundError"
    assert f"owner/name on {server.url} has no config.json; give the path" in message
    error, message = hub_file(home, server.url, "no name", "config.json")
    assert (error, "'no name'" in message) == ("HFValidationError", True)


def test_hub_out_of_reach_says_what_to_do(home, server):
    arguments = ("owner/name", "model.safetensors")
    error, message = hub_file(home, "http://127.0.0.1:9", *arguments)
    assert error == "FileNotFoundError"
    assert "model.safetensors of owner/name is not in the cache" in message
    assert "http://127.0.0.1:9 gave no answer" in message
    assert "HF_ENDPOINT" in message
    error, message = hub_file(home, server.url, *arguments, HF_HUB_OFFLINE="1")
    assert error == "FileNotFoundError"
    assert "HF_HUB_OFFLINE is set" in message
    assert server.requests == []


def test_broken_hub_download_is_an_error_and_is_not_kept(home, server):
    server.cut = 100
    arguments = (home, server.url, "owner/name", "model.safetensors")
    error, message = hub_file(*arguments)
    assert error == "RuntimeError"
    assert f"model.safetensors of owner/name could not be downloaded from {server.url}" in message
    assert "Try again" in message
    assert hub_file(*arguments, HF_HUB_OFFLINE="1")[0] == "FileNotFoundError"
    server.cut = None
    assert read(hub_file(*arguments)) == BODY


def test_wrong_hash_of_a_hub_file_is_an_error(home, server):
    error, message = hub_file(home, server.url, "owner/name", "model.safetensors", "0" * 64)
    assert error == "ValueError"
    assert f"has the SHA-256 {SHA256}, published is {'0' * 64}" in message


def kept(home):
    return [path for path in home.rglob("*") if path.is_file()]


def test_web_file_is_downloaded_once(home, server):
    url = f"{server.url}/release/model.pth"
    path = web_file(url)
    assert path.read_bytes() == BODY
    assert path.name == "model.pth"
    assert path.is_relative_to(home / "mambaout_jax")
    server.status = 503
    assert web_file(url, SHA256) == path
    assert kept(home) == [path]


def test_web_files_of_one_name_do_not_mix(home, server):
    server.files["other/model.pth"] = b"other"
    assert web_file(f"{server.url}/release/model.pth").read_bytes() == BODY
    assert web_file(f"{server.url}/other/model.pth").read_bytes() == b"other"


def test_missing_web_file_is_not_found(home, server):
    with pytest.raises(FileNotFoundError, match=r"no file at .*nothing\.pth \(HTTP 404\)"):
        web_file(f"{server.url}/release/nothing.pth")
    assert kept(home) == []


@pytest.mark.parametrize("cut", [0, 100, len(BODY) - 1])
def test_broken_web_download_is_an_error_and_is_not_kept(home, server, cut):
    url = f"{server.url}/release/model.pth"
    server.cut = cut
    with pytest.raises(RuntimeError, match=rf"broke off after {cut} of {len(BODY)} bytes"):
        web_file(url)
    assert kept(home) == []
    server.cut = None
    assert web_file(url).read_bytes() == BODY


def test_web_file_of_unknown_length_is_refused(home, server):
    server.hide_length = True
    with pytest.raises(RuntimeError, match="does not say how long the file is"):
        web_file(f"{server.url}/release/model.pth")
    assert kept(home) == []


def test_wrong_hash_of_a_web_file_is_an_error_and_is_not_kept(home, server):
    with pytest.raises(ValueError, match=rf"SHA-256 {SHA256}, published is {'f' * 64}"):
        web_file(f"{server.url}/release/model.pth", "f" * 64)
    assert kept(home) == []


def test_damage_in_the_cache_is_found_by_the_hash(home, server):
    url = f"{server.url}/release/model.pth"
    web_file(url).write_bytes(BODY[:-1] + b"?")
    with pytest.raises(ValueError, match=r"damaged or was replaced. Remove .*model\.pth"):
        web_file(url, SHA256)


@pytest.mark.parametrize("status", [403, 500])
def test_server_errors_are_told(home, server, status):
    server.status = status
    with pytest.raises(RuntimeError, match=rf"model\.pth could not be .*HTTP Error {status}"):
        web_file(f"{server.url}/release/model.pth")
    assert kept(home) == []


def test_web_out_of_reach_is_told(home):
    with pytest.raises(
        RuntimeError, match=r"downloaded from http://127\.0\.0\.1:9/a\.pth.*refused"
    ):
        web_file("http://127.0.0.1:9/a.pth")
    assert kept(home) == []


def test_crash_while_downloading_leaves_nothing_under_the_name(home, server, monkeypatch):
    url = f"{server.url}/release/model.pth"

    def crash(url, part):
        part.write_bytes(BODY[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_download", crash)
    with pytest.raises(KeyboardInterrupt):
        web_file(url)
    assert kept(home) == []


def test_cache_is_in_the_home_directory_by_default(tmp_path, server, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = web_file(f"{server.url}/release/model.pth")
    assert path.is_relative_to(tmp_path / ".cache" / "mambaout_jax")
