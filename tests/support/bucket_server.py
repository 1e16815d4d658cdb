# SPDX-License-Identifier: Apache-2.0
"""A server on this machine that speaks as much of Google's and Amazon's storage as is used here."""

import hashlib
import http.server
import json
import threading
from urllib.parse import parse_qs, unquote, urlsplit

from support.local_server import LocalServer

BUCKET = "bucket"


class BucketServer(LocalServer):
    """Keeps `objects` of one bucket.

    Attributes:
        objects: name to bytes.
        generations: name to the number of the write.
        requests: (method, name), in order; the name is "" where objects are listed, and the method
            of what changes one is PUT or DELETE.
        refuse: from method and name to the status to send instead of an answer, or None; called
            before each answer.
    """

    def __init__(self):
        super().__init__(_Handler)
        self.objects: dict[str, bytes] = {}
        self.generations: dict[str, int] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse = lambda method, name: None
        self.lock = threading.Lock()
        self._writes = 0

    @property
    def environment(self):
        """Variables of a program that finds this server."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "key",
        }

    @property
    def changes(self):
        """The requests that change an object."""
        return [request for request in self.requests if request[0] in ("PUT", "DELETE")]

    def put(self, name, data):
        """Writes an object, as somebody else does."""
        self._writes += 1
        self.objects[name], self.generations[name] = data, self._writes

    def etag(self, name):
        text = f"{self.generations[name]} {hashlib.md5(self.objects[name]).hexdigest()}"
        return f'"{text}"'


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # else header and body are two packets, of which the second waits for 40 ms

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server, url = self.server, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        google, path = url.path.partition("/storage/v1/b/")[1:]
        bucket, _, name = (path if google else url.path.lstrip("/")).partition("/")
        name = query.get("name") or unquote(name[2:] if google else name)
        method = "PUT" if self.command == "POST" else self.command
        status = server.refuse(method, name)
        with server.lock:
            server.requests.append((method, name))
            if status is not None:
                self._answer(status, b'{"error": {"message": "as the test wants it"}}')
            elif bucket != BUCKET:
                self._answer(404, b'{"error": {"message": "no such bucket"}}')
            elif not name:
                (self._list_google if google else self._list_amazon)(query)
            else:
                self._object(name, body, google, query)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass

    def _object(self, name, body, google, query):
        server = self.server
        found = server.generations.get(name, 0)
        etag = server.etag(name) if found else ""
        match, none_match = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if (
            int(query.get("ifGenerationMatch", found)) != found
            or (match is not None and match != etag)
            or (none_match == "*" and found)
        ):
            self._answer(412)
        elif self.command in ("PUT", "POST"):
            server.put(name, body)
            self._answer(
                200, json.dumps(self._google_record(name)).encode() if google else b"", name
            )
        elif not found:
            self._answer(404)
        elif self.command == "DELETE":
            del server.objects[name], server.generations[name]
            self._answer(204)
        elif query.get("alt") == "json":
            self._answer(200, json.dumps(self._google_record(name)).encode(), name)
        else:
            self._answer(200, server.objects[name], name)

    def _google_record(self, name):
        server = self.server
        size, generation = len(server.objects[name]), server.generations[name]
        return {"name": name, "size": str(size), "generation": str(generation)}

    def _list_google(self, query):
        start, end = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
        names = [name for name in sorted(self.server.objects) if start <= name < end]
        items = [self._google_record(name) for name in names]
        self._answer(200, json.dumps({"items": items} if items else {}).encode())

    def _list_amazon(self, query):
        prefix = query.get("prefix", "")
        contents = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(data)}</Size></Contents>"
            for name, data in sorted(self.server.objects.items())
            if name.startswith(prefix)
        )
        count = contents.count("<Key>")
        text = (
            f"<ListBucketResult><Name>{BUCKET}</Name><KeyCount>{count}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )
        self._answer(200, text.encode())

    def _answer(self, status, body=b"", name=None):
        self.send_response(status)
        if name is not None:
            self.send_header("ETag", self.server.etag(name))
            self.send_header("X-Goog-Generation", str(self.server.generations[name]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
