# SPDX-License-Identifier: Apache-2.0
"""A web server on this machine that speaks as much of the Hugging Face hub as its client needs."""

import hashlib
import http.server

from support.local_server import LocalServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(LocalServer):
    """Serves `files`.

    Attributes:
        files: path, such as "owner/name/config.json" for the hub's files, to bytes.
        cut: bytes of every file that are sent before the connection breaks off, None for all.
        status: sent instead of any answer, where it is set.
        hide_length: do not say how long files are.
        requests: "METHOD path", in order.
    """

    def __init__(self):
        super().__init__(_Handler)
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.status: int | None = None
        self.hide_length = False
        self.requests: list[str] = []


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def log_message(self, *_):
        pass

    def _answer(self, with_body):
        server = self.server
        server.requests.append(f"{self.command} {self.path}")
        if server.status is not None:
            return self._error(server.status, "")
        repository, resolve, rest = self.path.partition("?")[0].strip("/").partition("/resolve/")
        revision, _, filename = rest.partition("/")
        path = f"{repository}/{filename}" if resolve else repository
        if path not in server.files:
            known = any(name.startswith(f"{repository}/") for name in server.files)
            return self._error(404, "EntryNotFound" if known else "RepoNotFound")
        if resolve and revision not in ("main", COMMIT):
            return self._error(404, "RevisionNotFound")
        body = server.files[path]
        self.send_response(200)
        if not server.hide_length:
            self.send_header("Content-Length", str(len(body)))
        if resolve:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: server.cut])
        return None

    def _error(self, status, code):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", code)
        self.end_headers()
