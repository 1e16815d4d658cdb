# SPDX-License-Identifier: Apache-2.0
"""Brings files of the Hugging Face hub and of the web onto this machine, whole or not at all.

The hub's own client keeps what it has downloaded, and reads its environment: HF_ENDPOINT for a
mirror, HF_HOME for the place, HF_HUB_OFFLINE=1, HF_TOKEN. Files of the web are kept in
`$XDG_CACHE_HOME/mambaout_jax`, by default `~/.cache/mambaout_jax`; they appear there under their
name when they are complete.
"""

import hashlib
import http.client
import os
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
from huggingface_hub import constants, errors, hf_hub_download

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def hub_file(repository: str, filename: str, sha256: str | None = None) -> Path:
    """A file of a model repository on the hub, from the client's cache where it has it.

    Args:
        repository: "owner/name", with "@revision" after it for another one than the newest.
        filename: in the repository.
        sha256: of the file, where it is known.

    Raises:
        FileNotFoundError: no such repository, revision or file; or the hub cannot be reached and
            the file is not in the cache.
        RuntimeError: the download failed.
        ValueError: the file is not the one with this hash, or the name cannot be a repository's.
    """
    name, _, revision = repository.partition("@")
    hub = constants.ENDPOINT
    what = f"{filename} of {repository}"
    try:
        path = Path(hf_hub_download(name, filename, revision=revision or None))
    except errors.LocalEntryNotFoundError as error:
        reason = f"{hub} gave no answer: {_first_line(error.__cause__)}"
        if constants.HF_HUB_OFFLINE:
            reason = "HF_HUB_OFFLINE is set"
        raise FileNotFoundError(
            f"{what} is not in the cache {constants.HF_HUB_CACHE}, and {reason}. "
            "Run it once with a connection, set HF_ENDPOINT to a mirror, or copy the file here and "
            "give its path"
        ) from error
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{what} is only given to those who have agreed to its terms; do so on {hub}/{name}, "
            "then set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"{hub} has no repository {repository}; check the spelling, and set HF_TOKEN if it is "
            "private"
        ) from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} on {hub} has no {filename}; give the path or the URL of a .safetensors "
            "or .pth file instead"
        ) from error
    except errors.HFValidationError:  # says what a repository's name looks like
        raise
    except Exception as error:  # of the client's HTTP library, which changes with its version
        raise _failed(what, hub, error) from error
    _check_hash(path, what, sha256)
    return path


def web_file(url: str, sha256: str | None = None) -> Path:
    """A file of the web, downloaded once.

    Args:
        url: http or https.
        sha256: of the file, where it is known.

    Raises:
        FileNotFoundError: the server has no such file.
        RuntimeError: the download failed or broke off; nothing of it is kept.
        ValueError: the file is not the one with this hash; a download is not kept.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    target = _cache() / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if target.is_file():
        _check_hash(target, url, sha256)
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="incomplete_") as folder:
        part = Path(folder) / name
        try:
            _download(url, part)
        except urllib.error.HTTPError as error:
            with error:  # it is the response, too
                if error.code not in (404, 410):
                    raise _failed(name, url, error) from error
            raise FileNotFoundError(
                f"there is no file at {url} (HTTP {error.code}); check the address"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise _failed(name, url, error) from error
        _check_hash(part, url, sha256)
        part.replace(target)
    return target


def _download(url: str, part: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "mambaout-jax"})
    with (
        urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response,
        part.open("wb") as f,
    ):
        length = response.headers.get("Content-Length")
        if length is None:
            raise OSError("the server does not say how long the file is")
        with rich.progress.wrap_file(
            response,
            total=int(length),
            description=part.name,
            console=rich.console.Console(stderr=True),
            disable=not sys.stderr.isatty(),
        ) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                f.write(chunk)
        f.flush()
        os.fsync(f.fileno())  # or a crash could leave the name of a file without its content
    size = part.stat().st_size
    if size != int(length):
        raise OSError(f"it broke off after {size} of {length} bytes")


def _check_hash(path: Path, what: str, sha256: str | None) -> None:
    if sha256 is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise ValueError(
            f"{what} has the SHA-256 {actual}, published is {sha256}: it is damaged or was "
            f"replaced. Remove {path} if it is there, and try again"
        )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mambaout_jax"


def _failed(what: str, where: str, error: Any) -> RuntimeError:
    return RuntimeError(
        f"{what} could not be downloaded from {where}: {_first_line(error)}. Try again, or copy "
        "the file here and give its path"
    )


def _first_line(error: Any) -> str:
    return str(error).partition("\n")[0]
