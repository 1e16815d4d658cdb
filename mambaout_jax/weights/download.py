# SPDX-License-Identifier: Apache-2.0
"""Downloads files from the Hugging Face hub and from the web, whole or not at all.

Files from the hub are kept in the cache of its own client, which obeys the usual environment
variables: HF_ENDPOINT (a mirror), HF_HOME (where the cache is), HF_HUB_OFFLINE=1 and HF_TOKEN.
Files from the web are kept in `$XDG_CACHE_HOME/mambaout_jax`, by default `~/.cache/mambaout_jax`,
and get their name there once they are complete.
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
    """Path of a file from a model repository on the hub, downloaded if it is not in the cache.

    Args:
        repository: "owner/name", or "owner/name@revision" for a revision other than the newest.
        filename: name of the file in the repository.
        sha256: expected SHA-256 of the file in hexadecimal; None if it is not known.

    Raises:
        FileNotFoundError: there is no such repository, revision or file; or the hub cannot be
            reached and the file is not in the cache.
        RuntimeError: the download failed.
        ValueError: the file has another SHA-256, or `repository` is not a valid name.
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
            f"{what} can only be downloaded after agreeing to its terms: do so on {hub}/{name}, "
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
    except Exception as error:  # from the client's HTTP library, which differs between its versions
        raise _failed(what, hub, error) from error
    _check_hash(path, what, sha256)
    return path


def web_file(url: str, sha256: str | None = None) -> Path:
    """Path of a file from the web, downloaded once and then kept.

    Args:
        url: address that begins with http:// or https://.
        sha256: expected SHA-256 of the file in hexadecimal; None if it is not known.

    Raises:
        FileNotFoundError: the server has no such file.
        RuntimeError: the download failed or broke off; nothing of it is kept.
        ValueError: the file has another SHA-256; if it was just downloaded, it is not kept.
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
        os.fsync(f.fileno())  # else a crash can leave the new name without the contents
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
